"""`invdiff tune`: search a sampler's settings on validation images; the other commands take what it finds."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from invdiff._version import __version__
from invdiff.benchmark.fingerprint import of_module, with_contents
from invdiff.benchmark.grid import Images
from invdiff.benchmark.images import load_images
from invdiff.benchmark.lock import held
from invdiff.cli.app import chosen_name, command, report, write_config
from invdiff.cli.inputs import check_optional, make_prior, make_sampler, plain, source_of
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate
from invdiff.ranges import Count, Positive
from invdiff.report.comparison import save_figure
from invdiff.report.tables import trials_table
from invdiff.samplers import Auto, Sampler
from invdiff.samplers.settings import as_config, dotted, with_settings
from invdiff.tuning.space import Search, read_space
from invdiff.tuning.validation import SCORES, Validation

if TYPE_CHECKING:  # with them comes optuna, an extra
    from invdiff.tuning.tune import Tried, Tuning

SPLIT = 1_000_000  # added to the seed: validation images, their measurements and samples are those of no test
PUBLISHED = "published"  # the name of such settings among the first trials
SHOWN = 5  # of the best trials


@command(
    "tune", options={"images": Count, "budget.vjp_weight": Positive, "budget.calls": Positive | Literal["open"] | None}
)
def main(config: DictConfig, output: Path) -> None:
    """Resume the search in `output`, or begin one, and print what it has found; see `configs/tune.yaml`."""
    check_optional("optuna", "tune", "tuning")
    from invdiff.report.tuning import tuning_figure
    from invdiff.tuning.tune import Tuning

    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = instantiate(config.operator)
    noise: Noise = instantiate(config.noise)
    settled = make_sampler(config, operator, noise, prior)
    if isinstance(settled.sampler, Auto):
        raise BadInput("sampler=auto has no settings to search; name a sampler, for example sampler=dps")
    search, notes = _search(config, settled.sampler)
    seed = SPLIT + config.seed
    images, where = _validation_images(config, prior, seed)
    shape = tuple(images.truth.shape[1:])
    y = simulate(images.truth, operator, noise, seed)
    problem = InverseProblem(operator, noise, y, image_shape=shape)
    search.sampler.check(problem, prior)
    validation = Validation(
        problem=problem,
        truth=images.truth,
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
        for words in filter(None, (str(settled), where, _price(search), *notes)):
            console.print(words, soft_wrap=True)
        try:
            tuning.run(config.trials)
        except KeyboardInterrupt as stop:
            done = len(tuning.trials())
            raise KeyboardInterrupt(
                f"interrupted; {done} finished trials are in {output}, the same command resumes"
            ) from stop
        best = tuning.best()
        if best is None:
            reasons = dict.fromkeys(t.reason for t in tuning.trials() if t.reason)
            raise BadInput("no trial was completed: " + "; ".join(list(reasons)[:3]))
        save_figure(tuning_figure(tuning), output / "history.png")
        _print(tuning, best, output, console)


# -- what goes in ------------------------------------------------------------------------------------------------------


def _search(config: DictConfig, sampler: Sampler) -> tuple[Search, list[str]]:
    """Space, first settings and price, with notes on them; published settings are added to the configuration."""
    budget = config.budget
    search = Search(
        sampler=sampler,
        parameters=read_space(OmegaConf.to_container(config.space) if "space" in config else {}, sampler),
        first={},
        calls=None if budget.calls in (None, "open") else float(budget.calls),
        vjp_weight=budget.vjp_weight,
    )
    if budget.calls is None:
        search = replace(search, calls=search.cost(sampler))
    search.check()
    search = replace(search, sampler=search.at_budget(sampler))
    if not isinstance(config.first, DictConfig):
        raise BadInput(f"first must be settings by a name, {{bold:{{zeta:8}}}}, got {config.first}")
    published = _published(config)
    if published is not None and PUBLISHED not in config.first:
        config.first = {**config.first, PUBLISHED: published}  # a saved configuration has no choices to find them by
    first: dict[str, Sampler] = {}
    notes = []
    for key, settings in config.first.items():
        name = str(key)
        try:
            first[name] = search.at_budget(_first(settings, type(sampler)() if name == PUBLISHED else sampler))
        except ValueError as error:
            reason = " ".join(str(error).split())
            if name != PUBLISHED:
                raise BadInput(f"first.{name}: {reason}") from error
            notes.append(f"the published settings are not among the first trials: {reason}")
    return replace(search, first=first), notes


def _first(settings: Any, sampler: Sampler) -> Sampler:
    """A sampler with other settings, or of a node with a `_target_`."""
    if not isinstance(settings, DictConfig):
        raise BadInput(f"it must be settings, {{setting:value}}, got {settings}")
    if "_target_" in settings:
        made: Sampler = instantiate(settings)
        return made
    changed: Sampler = with_settings(sampler, dotted(plain(settings)))
    return changed


def _published(config: DictConfig) -> Mapping[str, Any] | None:
    """The settings of `experiment=paper/SAMPLER_OPERATOR`, where there is one of the chosen sampler and operator."""
    name = f"{chosen_name('sampler')}_{chosen_name('operator')}.yaml"
    path = files("invdiff.configs") / "experiment" / "paper" / name
    return plain(OmegaConf.create(path.read_text())["sampler"]) if path.is_file() else None


def _validation_images(config: DictConfig, prior: Prior, seed: int) -> tuple[Images, str]:
    """The images, and the split in words."""
    count, data = config.images, config.data.copy()
    source = source_of(config, data)
    if source.drawn:
        data.count = count
    found = load_images([source], prior, {}, slicing=instantiate(config.volume), size=config.size, seed=seed)
    if source.drawn:
        return found, f"validation: {count} images drawn from the prior with seed {seed}; no other seed draws them"
    there, names = len(found), list(found.names)
    if config.input is None:
        return found, f"validation: {' and '.join(names)}, all images of data=; test on other images"
    if there < count:
        raise BadInput(f"images={count}, but there are {there} in {config.input}")
    last = slice(there - count, None)
    found = replace(found, truth=found.truth[last], names=names[last], keys=found.keys[last])
    words = f"validation: the last {count} of {there} images in {config.input}, {found.names[0]} to {names[-1]}"
    others = f"the others: images={there - count} of benchmark takes them" if there > count else "others"
    return found, f"{words}; test on {others}"


def _settings(config: DictConfig, search: Search, prior: Prior, images: Images) -> dict[str, Any]:
    """Everything that determines the trials, as JSON."""
    nodes = {key: with_contents(plain(config[key])) for key in ("operator", "noise", "prior")}
    same = ("size", "score", "num_samples", "seed", "batch", "prune_after")
    return {
        "sampler": as_config(search.sampler),
        "space": {p.name: {k: v for k, v in asdict(p).items() if k != "name"} for p in search.parameters},
        "first": {name: as_config(sampler) for name, sampler in search.first.items()},
        "budget": {"calls": search.calls, "vjp_weight": search.vjp_weight},
        **nodes,
        "prior": nodes["prior"] | {"fingerprint": of_module(prior)},
        "images": list(images.keys),
        "number of images": config.images,
        **{key: config[key] for key in same},
        "precision": config.compute.precision,
        "invdiff": __version__,
    }


# -- what comes out ----------------------------------------------------------------------------------------------------


def _price(search: Search) -> str:
    if search.calls is None:
        return "budget: open; trials differ in network calls, see the column calls"
    return (
        f"budget: at most {search.calls:g} network calls a sample in every trial, a VJP counting {search.vjp_weight:g}"
    )


def _print(tuning: "Tuning", best: "Tried", output: Path, console: Console) -> None:
    from invdiff.tuning.tune import SEARCHED

    trials, validation = tuning.trials(), tuning.validation
    ranked = tuning.ranked()
    shown = ranked[:SHOWN] + [t for t in ranked[SHOWN:] if t.origin != SEARCHED]
    kind = type(tuning.search.sampler).__name__
    title = f"{kind} · {SCORES[validation.score]} on {len(validation.truth)} images"
    console.print(trials_table(shown, list(tuning.search.parameters), validation.score, title))
    counts = {state: sum(t.state == state for t in trials) for state in dict.fromkeys(t.state for t in trials)}
    lines = [f"{len(trials)} trials: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
    importance = tuning.importance()
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        lines.append(f"importance of the settings, over the complete trials: {shares}")
    given = next((t for t in trials if t.origin == "given"), None)
    if best.origin != SEARCHED:
        lines.append(f"no trial was better than the settings {best.origin!r}")
    elif given is not None and given.score is not None and given.complete():
        lines.append(f"best {best.score:.4g}, your settings {given.score:.4g}")
    lines.append(f"sampler/best.yaml, trials.csv and history.png are in {output}")
    lines.append(f"use it with --config-dir={output} and sampler=best (reconstruct) or samplers=[best] (benchmark)")
    for line in lines:
        console.print(line, soft_wrap=True)
