"""`invdiff tune`: search a sampler's settings on validation images; the other commands take what it finds."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from invdiff._version import __version__
from invdiff.benchmark.grid import Images
from invdiff.checks import check_callable
from invdiff.cli.app import chosen_name, command, report, write_config
from invdiff.cli.inputs import check_optional, make_prior, make_sampler, plain, source_of
from invdiff.cli.targets import make
from invdiff.engine.driver import Compute
from invdiff.fingerprint import of_module, with_contents
from invdiff.io import BadInput
from invdiff.io.lock import held
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate
from invdiff.ranges import Count, Positive
from invdiff.report.comparison import save_figure
from invdiff.samplers import Auto, Sampler
from invdiff.tuning.space import PUBLISHED, Search, make_search
from invdiff.tuning.validation import Validation, validation_images

SPLIT = 1_000_000  # added to the seed: validation images, their measurements and samples are those of no test


@command(
    "tune", options={"images": Count, "budget.vjp_weight": Positive, "budget.calls": Positive | Literal["open"] | None}
)
def main(config: DictConfig, output: Path) -> None:
    """Resume the search in `output`, or begin one, and print what it has found; see `configs/tune.yaml`."""
    check_optional("optuna", "tune", "tuning")
    from invdiff.report.tuning import found_in_words, tuning_figure
    from invdiff.tuning.tune import Tuning

    compute: Compute = make(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = make(config.operator)
    noise: Noise = make(config.noise)
    settled = make_sampler(config, operator, noise, prior)
    if isinstance(settled.sampler, Auto):
        raise BadInput("sampler=auto has no settings to search; name a sampler, for example sampler=dps")
    search, notes = _search(config, settled.sampler)
    seed = SPLIT + config.seed
    data, slicing = config.data.copy(), make(config.volume)
    if "count" in data:
        data.count = config.images
    source = source_of(config, data)
    images, where = validation_images(source, prior, config.images, slicing=slicing, size=config.size, seed=seed)
    shape = tuple(images.truth.shape[1:])
    check_callable(operator, prior, shape)
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
        for words in filter(None, (str(settled), where, search.price(), *notes)):
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
        table, lines = found_in_words(tuning, best)
        console.print(table)
        lines.append(f"sampler/best.yaml, trials.csv and history.png are in {output}")
        lines.append(f"use it with --config-dir={output} and sampler=best (reconstruct) or samplers=[best] (benchmark)")
        for words in lines:
            console.print(words, soft_wrap=True)


# -- what goes in ------------------------------------------------------------------------------------------------------


def _search(config: DictConfig, sampler: Sampler) -> tuple[Search, list[str]]:
    """Space, first settings and price, with notes on them; published settings are added to the configuration."""
    if not isinstance(config.first, DictConfig):
        raise BadInput(f"first must be settings by a name, {{bold:{{zeta:8}}}}, got {config.first}")
    published = _published(config)
    if published is not None and PUBLISHED not in config.first:
        config.first = {**config.first, PUBLISHED: published}  # a saved configuration has no choices to find them by
    space = plain(config.space) if isinstance(config.get("space"), DictConfig) else config.get("space", {})
    first = {
        str(name): make(node) if isinstance(node, DictConfig) and "_target_" in node else node
        for name, node in config.first.items()
    }
    return make_search(sampler, space, first, calls=config.budget.calls, vjp_weight=config.budget.vjp_weight)


def _published(config: DictConfig) -> Mapping[str, Any] | None:
    """The settings of `experiment=paper/SAMPLER_OPERATOR`, where there is one of the chosen sampler and operator."""
    name = f"{chosen_name('sampler')}_{chosen_name('operator')}.yaml"
    path = files("invdiff.configs") / "experiment" / "paper" / name
    if not path.is_file():
        return None
    experiment: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()))
    return experiment["sampler"]


def _settings(config: DictConfig, search: Search, prior: Prior, images: Images) -> dict[str, Any]:
    """Everything that determines the trials, as JSON."""
    nodes = {key: with_contents(plain(config[key])) for key in ("operator", "noise", "prior")}
    same = ("size", "score", "num_samples", "seed", "batch", "prune_after")
    return {
        **search.as_json(),
        **nodes,
        "prior": nodes["prior"] | {"fingerprint": of_module(prior)},
        "images": list(images.keys),
        "number of images": config.images,
        **{key: config[key] for key in same},
        "precision": config.compute.precision,
        "invdiff": __version__,
    }
