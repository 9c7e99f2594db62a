"""`invdiff tune`: search a sampler's settings on validation images; what it finds the other commands take."""

import importlib.util
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff._version import __version__
from invdiff.benchmark.fingerprint import of_image, of_module, with_contents
from invdiff.benchmark.lock import held
from invdiff.cli.app import command, report
from invdiff.cli.config_file import write_config
from invdiff.cli.entries import load, overrule
from invdiff.cli.inputs import make_prior, true_images
from invdiff.cli.search_space import read_space
from invdiff.cli.values import check_kinds, check_node
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, measure
from invdiff.samplers import Auto, Sampler
from invdiff.samplers.settings import as_config
from invdiff.tuning.space import Search
from invdiff.tuning.validation import SCORES, Validation

if TYPE_CHECKING:  # with them comes optuna, an extra
    from invdiff.tuning.tune import Tried, Tuning

SPLIT = 1_000_000  # what is added to the seed: validation images, their measurements and samples are those of no test
PUBLISHED = "published"  # the name of such settings among the first trials
SHOWN = 5  # of the best trials


@command("tune")
def main(config: DictConfig, output: Path) -> None:
    """Go on with the search in `output`, or begin one, and say what it has found; see `configs/tune.yaml`."""
    if importlib.util.find_spec("optuna") is None:
        raise BadInput("tuning needs the package optuna, which is not here: pip install 'invdiff[tune]'")
    from invdiff.tuning.tune import Tuning

    _check_values(config)
    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = instantiate(config.operator)
    noise: Noise = instantiate(config.noise)
    sampler = instantiate(config.sampler)
    if isinstance(sampler, Auto):
        raise BadInput("sampler=auto has no settings to search; name a sampler: sampler=dps")
    search, notes = _search(config, sampler)
    seed = SPLIT + config.seed
    truth, images, where = _validation_images(config, prior, seed)
    problem = InverseProblem(operator, noise, measure(operator, noise, truth, seed), image_shape=tuple(truth.shape[1:]))
    search.sampler.check(problem, prior)
    validation = Validation(
        problem=problem,
        truth=truth,
        prior=prior,
        score=config.score,
        num_samples=config.num_samples,
        seed=seed,
        batch=config.batch,
    )
    settings = _settings(config, search, prior, images)
    output.mkdir(parents=True, exist_ok=True)
    with held(output, report, alone=True):
        tuning = Tuning(
            output,
            search,
            validation,
            settings=settings,
            prune_after=config.prune_after,
            seed=config.seed,
            compute=compute,
        )
        write_config(config, output)
        console = Console(highlight=False, markup=False)
        for words in (where, _price(search), *notes):
            console.print(words, soft_wrap=True)
        try:
            tuning.run(config.trials)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"interrupted; the {len(tuning.trials())} finished trials are in {output}, the same command goes on "
                "from there"
            ) from stop
        best = tuning.best()
        if best is None:
            reasons = dict.fromkeys(t.reason for t in tuning.trials() if t.reason)
            raise BadInput("no trial came to its end: " + "; ".join(list(reasons)[:3]))
        _draw(tuning, output / "history.png")
        _print(tuning, best, output, console)


# -- what goes in ------------------------------------------------------------------------------------------------------


def _check_values(config: DictConfig) -> None:
    check_kinds(config, "operator", "noise", "prior", "sampler", "data", "compute", "volume")
    whole = {"trials": 1, "images": 1, "num_samples": 1, "seed": 0, "batch": 1, "size": 8, "prune_after": 1}
    for key, least in whole.items():
        value = config[key]
        if value is None and key in ("size", "prune_after"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key} must be a whole number from {least} on, got {value}")
    if not isinstance(config.input, (str, type(None))):
        raise BadInput(f"input must be one file or a folder, got {config.input}")
    budget = config.budget
    if budget.calls is not None and budget.calls != "open" and not _positive(budget.calls):
        raise BadInput(f"budget.calls must be a number above 0, null or open, got {budget.calls}")
    if not _positive(budget.vjp_weight):
        raise BadInput(f"budget.vjp_weight must be a number above 0, got {budget.vjp_weight}")


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _search(config: DictConfig, sampler: Sampler) -> tuple[Search, list[str]]:
    """Space, first settings and price, and what to know of them; published settings are added to the configuration."""
    budget = config.budget
    search = Search(
        sampler=sampler,
        parameters=read_space(config.space if "space" in config else OmegaConf.create({}), sampler),
        first={},
        calls=None if budget.calls in (None, "open") else float(budget.calls),
        vjp_weight=budget.vjp_weight,
    )
    if budget.calls is None:
        search = replace(search, calls=search.cost(sampler))
    search.check()
    search = replace(search, sampler=search.at_budget(sampler))
    first: dict[str, Sampler] = {}
    notes = []
    for name, node in _first_nodes(config).items():
        check_node(node, f"first.{name}")
        try:
            first[name] = search.at_budget(instantiate(node))
        except ValueError as error:
            reason = " ".join(str(error).split())
            if name != PUBLISHED:
                raise BadInput(f"first.{name}: {reason}") from error
            notes.append(f"the published settings are not among the first trials: {reason}")
    return replace(search, first=first), notes


def _first_nodes(config: DictConfig) -> dict[str, DictConfig]:
    """Whole samplers by name: those of `first`, and the published settings of this pair where there are some."""
    if not isinstance(config.first, DictConfig):
        raise BadInput(f"first must be settings by a name, {{bold:{{zeta:8}}}}, got {config.first}")
    found: dict[str, DictConfig] = {}
    for key, settings in config.first.items():
        name = str(key)
        if not isinstance(settings, DictConfig):
            raise BadInput(f"first.{name} must be settings, {{setting:value}}, got {settings}")
        if "_target_" in settings:
            found[name] = settings
            continue
        found[name] = config.sampler.copy()
        OmegaConf.set_struct(found[name], False)
        own: Any = OmegaConf.to_container(settings, resolve=True)
        overrule(found[name], own, f"first.{name}")
    published = _published()
    if published is not None and PUBLISHED not in found:
        found[PUBLISHED] = published
        with open_dict(config):  # so that the saved configuration, which knows no choices, has them too
            config.first[PUBLISHED] = published
    return found


def _published() -> DictConfig | None:
    """The sampler of `experiment/paper` that goes with what was chosen."""
    choices = HydraConfig.get().runtime.choices
    sampler, operator = choices.get("sampler"), choices.get("operator")
    path = files("invdiff.configs") / "experiment" / "paper" / f"{sampler}_{operator}.yaml"
    if not path.is_file():
        return None
    node = load("sampler", str(sampler), "sampler")
    known: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()))
    overrule(node, known["sampler"], PUBLISHED)
    return node


def _validation_images(config: DictConfig, prior: Prior, seed: int) -> tuple[Tensor, Any, str]:
    """The images, what they are as JSON, and the split in words."""
    source, count = config.data.copy(), config.images
    drawn = config.input is None and get_object(source["_target_"]) is drawn_from_prior
    if drawn:
        source.count = count
    view = OmegaConf.create({"input": config.input, "data": source, "size": config.size, "volume": config.volume})
    view.seed = seed
    truth, names, _ = true_images(view, prior, say=lambda notes: None)
    if drawn:
        # Where they come from and not what they are: the last digits of a network depend on the machine.
        described = with_contents(OmegaConf.to_container(source, resolve=True))
        words = f"validation: {count} images drawn from the prior with seed {seed}; no other seed draws them"
        return truth, described, words
    there = len(names)
    if config.input is None:
        words = f"validation: {' and '.join(names)}, all there is in data=; test on other images"
        return truth, [of_image(image.numpy()) for image in truth], words
    if there < count:
        raise BadInput(f"images={count}, but there are {there} in {config.input}")
    truth, names = truth[there - count :], names[there - count :]
    words = f"validation: the last {count} of {there} images in {config.input}, {names[0]} to {names[-1]}; "
    words += (
        f"test on the others: images={there - count} of benchmark takes them" if there > count else "test on others"
    )
    return truth, [of_image(image.numpy()) for image in truth], words


def _settings(config: DictConfig, search: Search, prior: Prior, images: Any) -> dict[str, Any]:
    """Everything that determines the trials, as JSON."""

    def node(key: str) -> Any:
        return with_contents(OmegaConf.to_container(config[key], resolve=True))

    return {
        "sampler": as_config(search.sampler),
        "space": {p.name: {k: v for k, v in asdict(p).items() if k != "name"} for p in search.parameters},
        "first": {name: as_config(sampler) for name, sampler in search.first.items()},
        "budget": {"calls": search.calls, "vjp_weight": search.vjp_weight},
        "operator": node("operator"),
        "noise": node("noise"),
        "prior": node("prior") | {"fingerprint": of_module(prior)},
        "images": images,
        "number of images": config.images,
        "size": config.size,
        "score": config.score,
        "num_samples": config.num_samples,
        "seed": config.seed,
        "batch": config.batch,
        "prune_after": config.prune_after,
        "precision": config.compute.precision,
        "invdiff": __version__,
    }


# -- what comes out ----------------------------------------------------------------------------------------------------


def _price(search: Search) -> str:
    if search.calls is None:
        return "budget: open; trials differ in their network calls, see the column calls"
    return (
        f"budget: at most {search.calls:g} network calls a sample in every trial, a VJP counting {search.vjp_weight:g}"
    )


def _draw(tuning: "Tuning", path: Path) -> None:
    from invdiff.report.comparison import save_figure  # matplotlib is slow to import
    from invdiff.report.tuning import tuning_figure

    save_figure(tuning_figure(tuning), path)


def _print(tuning: "Tuning", best: "Tried", output: Path, console: Console) -> None:
    from invdiff.tuning.tune import SEARCHED

    trials, score = tuning.trials(), tuning.validation.score
    ranked = tuning.ranked()
    shown = ranked[:SHOWN] + [t for t in ranked[SHOWN:] if t.origin != SEARCHED]
    kind = type(tuning.search.sampler).__name__
    table = Table(
        title=Text(f"{kind} · {SCORES[score]} on {len(tuning.validation.truth)} images"), title_justify="left"
    )
    names = [p.name for p in tuning.search.parameters]
    short = [name.rpartition(".")[2] for name in names]  # a terminal of 80 columns has no room for the whole
    for heading in ("trial", "from", score, "calls", *(short if len({*short}) == len(short) else names)):
        table.add_column(heading, justify="left" if heading == "from" else "right", no_wrap=heading == "from")
    for t in shown:
        # Settings that were known before may lie outside of the space: shown as they are in the sampler.
        values = [_word(_of(t.sampler, name)) for name in names]
        table.add_row(*map(Text, (str(t.number), t.origin, f"{t.score:.4g}", f"{t.calls:g}", *values)))
    console.print(table)
    counts = {state: sum(t.state == state for t in trials) for state in dict.fromkeys(t.state for t in trials)}
    console.print(f"{len(trials)} trials: " + ", ".join(f"{n} {state}" for state, n in counts.items()), soft_wrap=True)
    importance = tuning.importance()
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        console.print(f"what matters, over the complete trials: {shares}", soft_wrap=True)
    given = next((t for t in trials if t.origin == "given"), None)
    if best.origin != SEARCHED:
        console.print(f"nothing better was found than the settings of {best.origin!r}", soft_wrap=True)
    elif given is not None and given.score is not None and given.complete():
        console.print(f"best {best.score:.4g}, the settings you started from {given.score:.4g}", soft_wrap=True)
    console.print(
        f"sampler/best.yaml, trials.csv and history.png are in {output}; use it by --config-dir={output} with "
        "sampler=best (reconstruct) or samplers=[best] (benchmark)",
        soft_wrap=True,
    )


def _of(node: Any, name: str) -> Any:
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)
