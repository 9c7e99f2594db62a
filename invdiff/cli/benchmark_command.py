"""`invdiff benchmark`: samplers side by side on the same measurements, resumable, with a leaderboard at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invdiff.benchmark import sets as image_sets
from invdiff.benchmark.budget import Budget
from invdiff.benchmark.fingerprint import Settings, fingerprint, of_image, of_module, with_contents
from invdiff.benchmark.grid import Entry, Grid, Images, Task
from invdiff.benchmark.lock import Lock, held
from invdiff.benchmark.loggers import Logger, check_loggers, loggers
from invdiff.benchmark.ranks import joined
from invdiff.benchmark.run import run_benchmark
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import Comparison, rows_by_image, summarise
from invdiff.cli.app import command, job_number, report
from invdiff.cli.config_file import write_config
from invdiff.cli.entries import Choice, chosen, load, overrule, recommended
from invdiff.cli.inputs import make_prior, true_images
from invdiff.cli.output import to_stdout
from invdiff.cli.values import check_kinds, check_node
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.io.atomic import write_atomically
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.report.leaderboard import columns, markdown
from invdiff.report.page import page
from invdiff.samplers import Sampler

# What a terminal has room for; the file has all of them.
SHOWN = (
    *("PSNR", "PSNR of mean", "SSIM", "misfit", "sliced W / floor", "modes off / floor"),
    *("diverged", "steps", "cost", "seconds"),
)


@command("benchmark", values=("data",), one_folder=True)
def main(config: DictConfig, output: Path) -> None:
    """Compute what is missing under `output` and write its leaderboard; see `configs/benchmark.yaml`."""
    with joined() as ranks:
        output = ranks.from_first(output)  # the name may hold the time
        _check_values(config)
        compute: Compute = instantiate(config.compute)
        compute.resolve_device()  # raises, before any work, where there is no such device
        if config.fid and ranks.first:
            _say_without_fid()
        grid = make_grid(config)
        output.mkdir(parents=True, exist_ok=True)
        job = job_number()
        with (
            held(output, report, alone=job is None) if ranks.first else nullcontext() as lock,
            loggers(config.log if ranks.first else [], output, config) as logger,
        ):
            if ranks.first:
                name = "config.yaml" if job is None else f"config_{job}.yaml"
                write_config(config, output, name=name)
            try:
                outcome = run_benchmark(
                    grid,
                    output,
                    compute=compute,
                    save=instantiate(config.save),
                    vjp_weight=config.budget.vjp_weight,
                    ranks=ranks,
                    say=report,
                    logger=logger,
                    lock=lock,
                )
            except KeyboardInterrupt as stop:
                if ranks.first:
                    write_pages(output, {}, lock)
                raise KeyboardInterrupt(
                    f"interrupted; all batches that were finished are in {output}, the same command goes on from there"
                ) from stop
            if ranks.first:
                sets_on = compute.resolve_device() if config.fid else None
                comparisons = write_pages(output, outcome.reasons, lock, sets_on=sets_on)
                _log(comparisons, logger, outcome.rows)
                with to_stdout():
                    _print(comparisons if job is None else [], outcome.rows, output)
                if job is None:
                    _nothing_at_all(comparisons, outcome.errors)
        if outcome.errors:
            raise outcome.errors[0] if len(outcome.errors) == 1 else ExceptionGroup("runs failed", outcome.errors)


def write_pages(
    output: Path, failures: Mapping[str, str], lock: Lock | None, *, sets_on: torch.device | None = None
) -> list[Comparison]:
    """Both pages of all that is stored under a folder; of the jobs of a sweep, the last one alone writes them.

    sets_on  device for FID and KID; None: without them
    """
    with nullcontext() if lock is None else lock.turn():
        if lock is not None and not lock.last():
            return []
        store = Store(output)
        rows = rows_by_image(store)
        of_sets = None if sets_on is None else image_sets.of_runs(store, rows, device=sets_on)
        comparisons = summarise(store, failures, rows=rows, of_sets=of_sets)
        write_atomically(output / "leaderboard.md", markdown(comparisons, len(failures)).encode())
        write_atomically(output / "report.html", page(store, comparisons, rows, len(failures)).encode())
    return comparisons


def _nothing_at_all(comparisons: Sequence[Comparison], errors: Sequence[Exception]) -> None:
    standings = [standing for comparison in comparisons for standing in comparison.standings]
    if not errors and not any(standing.images for standing in standings):
        reasons = dict.fromkeys(f"{s.label}: {s.reason}" for s in standings if s.reason)
        raise BadInput("no sampler can run here; " + "; ".join(reasons))


# -- what goes in ------------------------------------------------------------------------------------------------------


def _check_values(config: DictConfig) -> None:
    check_kinds(config, "noise", "prior", "volume", "save", "compute")
    for key, least in (("num_samples", 1), ("seed", 0), ("images", 1), ("size", 8)):
        value = config[key]
        if value is None and key in ("images", "size"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key} must be a whole number from {least} on, got {value}")
    check_loggers(config.log)
    if not isinstance(config.clouds, bool):
        raise BadInput(f"clouds must be true or false, got {config.clouds}")
    if not isinstance(config.fid, bool):
        raise BadInput(f"fid must be true or false, got {config.fid}")
    if config.fid and not config.save.reconstructions:
        raise BadInput("fid=true is computed from what save.reconstructions=true keeps; give both")
    if not isinstance(config.use_recommended, bool):
        raise BadInput(f"use_recommended must be true or false, got {config.use_recommended}")
    if not isinstance(config.input, (str, type(None))):
        raise BadInput(f"input must be one file or a folder, got {config.input}")
    if not isinstance(config.budget, DictConfig) or not isinstance(config.budget.own, bool):
        raise BadInput("budget.own must be true or false")
    if config.budget.vjp_weight is not None and not _positive(config.budget.vjp_weight):
        raise BadInput(f"budget.vjp_weight must be a number above 0, or null, got {config.budget.vjp_weight}")
    if config.save.thumbnails < 0:
        raise BadInput(f"save.thumbnails must be a whole number from 0 on, got {config.save.thumbnails}")


def _say_without_fid() -> None:
    """Before the run and not after it, when what is missing could still be installed."""
    reason = image_sets.unavailable()
    if reason is not None:
        report(f"fid=true: {reason}; going on without them")


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def make_grid(config: DictConfig) -> Grid:
    """Everything that a configuration names, made; raises BadInput, naming the entry, for what cannot be."""
    samplers = chosen(config.samplers, "samplers", "sampler")
    operators = chosen(config.operators, "operators", "operator", beside="noise")
    nodes = _recommended(config, samplers, operators)
    entries = []
    for label, choice in samplers.items():
        path = f"samplers.{label}"
        of_its_own = {o: _made(node, path, (Sampler,)) for (s, o), node in nodes.items() if s == label}
        entries.append(Entry(label, _made(choice.node, path, (Sampler,)), of_its_own))
    tasks = []
    for label, choice in operators.items():
        noise = _noise(config.noise, choice.beside, f"operators.{label}.noise")
        operator = _made(choice.node, f"operators.{label}", (Operator,))
        settings = {"operator": _settings(choice.node), "noise": _settings(noise)}
        plain = {"operator": _plain(choice.node), "noise": _plain(noise)}
        tasks.append(Task(label, operator, instantiate(noise), settings, plain))
    budgets = _budgets(config)
    if not budgets and not config.budget.own:
        raise BadInput("budget.own=false leaves nothing to run; give budget.calls= or budget.seconds=")
    if budgets and config.clouds:
        raise BadInput("budgets cannot be combined with clouds=true")
    prior = make_prior(config)
    prior_settings = _settings(config.prior) | {"fingerprint": of_module(prior)}
    return Grid(
        entries=entries,
        tasks=tasks,
        images=_images(config, prior, prior_settings),
        prior=prior,
        prior_settings=prior_settings,
        num_samples=config.num_samples,
        seed=config.seed,
        budgets=budgets,
        own=config.budget.own,
        clouds=config.clouds,
        config=_plain(config),
    )


def _recommended(
    config: DictConfig, samplers: Mapping[str, Choice], operators: Mapping[str, Choice]
) -> dict[tuple[str, str], DictConfig]:
    """Settings found by measurement, by the labels of sampler and operator, where there are any and they are wanted."""
    if not config.use_recommended:
        return {}
    found = {
        (s, o): recommended(sampler, operator.name, f"samplers.{s}")
        for s, sampler in samplers.items()
        for o, operator in operators.items()
    }
    return {pair: node for pair, node in found.items() if node is not None}


def _plain(node: DictConfig) -> Settings:
    found: Any = OmegaConf.to_container(node, resolve=True)
    return found


def _made(node: DictConfig, path: str, kinds: tuple[type, ...]) -> Any:
    check_node(node, path)
    with _naming(path):
        made = instantiate(node)
    if not isinstance(made, kinds):
        raise BadInput(f"{path} makes {type(made).__name__}, no {kinds[0].__name__.lower()}")
    return made


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say which entry it was that could not be made."""
    try:
        yield
    except Exception as error:
        error.add_note(path)
        raise


def _noise(of_all: DictConfig, own: Any, path: str) -> DictConfig:
    """The noise of one operator: that of all, another one by name, or either with settings of its own."""
    own = {"noise": own} if isinstance(own, str) else dict(own or {})
    node = load("noise", own.pop("noise"), path) if "noise" in own else of_all.copy()
    overrule(node, own, path)
    check_node(node, path)
    return node


def _settings(node: DictConfig) -> Settings:
    return with_contents(OmegaConf.to_container(node, resolve=True))


def _budgets(config: DictConfig) -> list[Budget]:
    found = []
    for kind in ("calls", "seconds"):
        amounts = config.budget[kind]
        for amount in amounts if isinstance(amounts, ListConfig) else [] if amounts is None else [amounts]:
            if not _positive(amount):
                raise BadInput(f"budget.{kind} must be numbers above 0, got {amount}")
            found.append(Budget(kind, float(amount)))
    return found


def _images(config: DictConfig, prior: Prior, prior_settings: Settings) -> Images:
    """The true images, of one source after another."""
    count = config.images
    common = {"size": config.size, "volume": config.volume, "seed": config.seed}
    sources: list[DictConfig | None] = [None]
    if config.input is None:
        given = [choice.node for choice in chosen(config.data, "data", "data").values()]
        if len(given) == 1 and count is not None and "count" in given[0]:
            given[0].count = count
        sources = [*given]
    truths, names, keys, settings = [], [], [], []
    for source in sources:
        view = OmegaConf.create({"input": config.input, "data": source, **common})
        truth, own, _ = true_images(view, prior, say=lambda notes: None)
        truths.append(truth)
        names += own
        described: Settings = {"input": Path(config.input).name} if source is None else _settings(source)
        described.pop("count", None)
        settings.append(described)
        if source is not None and get_object(source["_target_"]) is drawn_from_prior:
            # Where they come from and not what they are: the last digits of a network depend on the machine.
            keys += [fingerprint([described, prior_settings, config.seed, i]) for i in range(len(own))]
        else:
            keys += [of_image(image.numpy()) for image in truth]
    shapes = {tuple(truth.shape[1:]) for truth in truths}
    if len(shapes) > 1:
        raise BadInput(f"images differ in size: {', '.join(map(str, sorted(shapes)))}; size=256 brings them to one")
    if count is not None and count > len(names):
        raise BadInput(f"images={count}, but there are {len(names)}")
    taken = slice(count)
    return Images(torch.cat(truths)[taken], names[taken], keys[taken], {"sources": settings, "size": config.size})


# -- what comes out ----------------------------------------------------------------------------------------------------


def _log(comparisons: Sequence[Comparison], logger: Logger, rows: int) -> None:
    """The scores of the leaderboard, those of all ranks and of earlier runs in them."""
    for comparison in comparisons:
        budget = "own settings" if comparison.budget is None else comparison.budget
        for standing in comparison.standings:
            name = f"leaderboard/{comparison.operator}/{budget}/{standing.label}"
            logger.scalars({f"{name}/{score}": found.mean for score, found in standing.scores.items()}, rows)


def _print(comparisons: Sequence[Comparison], rows: int, output: Path) -> None:
    console = Console(highlight=False, markup=False)
    for comparison in comparisons:
        budget = "own settings" if comparison.budget is None else f"at {comparison.budget} a sample"
        console.print(_table(comparison, f"{comparison.operator} · {budget}"))
        for standing in comparison.standings:
            if standing.reason:
                console.print(f"{standing.label}: {standing.reason}", soft_wrap=True)
    if comparisons:
        console.print("cost in network calls, VJPs included, and seconds: of one sample", soft_wrap=True)
    told = f"{rows} rows computed; report.html, leaderboard.md and results.parquet are in {output}"
    console.print(told, soft_wrap=True)


def _table(comparison: Comparison, title: str) -> Table:
    cells = {heading: write for heading, write in columns(comparison, errors=False).items() if heading in SHOWN}
    table = Table(title=Text(title), title_justify="left")
    table.add_column("sampler")
    for heading in cells:
        table.add_column(heading, justify="right")
    for standing in comparison.standings:
        if standing.images:
            words = [write(standing).replace("**", "") for write in cells.values()]
            table.add_row(Text(standing.label), *(Text(word) for word in words))
    return table
