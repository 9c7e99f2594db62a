"""`invdiff benchmark`: compare samplers on the same measurements, resumable, with a leaderboard at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from invdiff.benchmark import sets as image_sets
from invdiff.benchmark.budget import KINDS, budgets_of
from invdiff.benchmark.grid import Entry, Grid, Images, Task
from invdiff.benchmark.images import load_images
from invdiff.benchmark.loggers import check_loggers, loggers
from invdiff.benchmark.ranks import joined
from invdiff.benchmark.run import run_benchmark
from invdiff.benchmark.summary import Comparison
from invdiff.cli.app import command, job_number, report, write_config
from invdiff.cli.entries import Choice, chosen, load, overrule, with_settings_of_experiment
from invdiff.cli.inputs import is_generated, made_sampler, make_prior, plain, settle, source_of
from invdiff.cli.targets import make
from invdiff.cli.values import check_node
from invdiff.engine.driver import Compute
from invdiff.fingerprint import Settings, of_module, with_contents
from invdiff.io import BadInput
from invdiff.io.lock import held
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.report.pages import log_scores, write_pages
from invdiff.report.tables import standings_table
from invdiff.samplers import all_samplers
from invdiff.samplers.settings import Settled


@command("benchmark", values=("data",), one_folder=True)
def main(config: DictConfig, output: Path) -> None:
    """Compute what is missing under `output` and write its leaderboard; see `configs/benchmark.yaml`."""
    with joined() as ranks:
        output = ranks.from_first(output)  # the name may hold the time
        check_loggers(config.log)
        if config.fid and not config.save.reconstructions:
            raise BadInput("fid=true needs the samples that save.reconstructions=true keeps; set both")
        compute: Compute = make(config.compute)
        compute.resolve_device()  # raises, before any work, where there is no such device
        reason = image_sets.unavailable() if config.fid and ranks.first else None
        if reason is not None:  # before the run, when it can still be installed
            report(f"fid=true: {reason}; the leaderboard will be without FID and KID")
        grid = make_grid(config, Console(highlight=False, markup=False, quiet=not ranks.first))
        output.mkdir(parents=True, exist_ok=True)
        job = job_number()
        with (
            held(output, report, alone=job is None) if ranks.first else nullcontext() as lock,
            loggers(config.log if ranks.first else [], output, config) as logger,
        ):
            if ranks.first:
                write_config(config, output, name="config.yaml" if job is None else f"config_{job}.yaml")
            try:
                outcome = run_benchmark(
                    grid,
                    output,
                    compute=compute,
                    save=make(config.save),
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
                    f"interrupted; all finished batches are in {output}, the same command resumes"
                ) from stop
            if ranks.first:
                sets_on = compute.resolve_device() if config.fid else None
                comparisons = write_pages(output, outcome.reasons, lock, sets_on=sets_on)
                log_scores(comparisons, logger, outcome.rows)
                _print(comparisons if job is None else [], outcome.rows, output)
                if job is None and not outcome.errors:
                    _check_that_some_ran(comparisons)
        if outcome.errors:
            raise outcome.errors[0] if len(outcome.errors) == 1 else ExceptionGroup("runs failed", outcome.errors)


def _check_that_some_ran(comparisons: Sequence[Comparison]) -> None:
    standings = [standing for comparison in comparisons for standing in comparison.standings]
    if not any(standing.images for standing in standings):
        reasons = dict.fromkeys(f"{s.label}: {s.reason}" for s in standings if s.reason)
        raise BadInput("no sampler can run here; " + "; ".join(reasons))


# -- what goes in ------------------------------------------------------------------------------------------------------


def make_grid(config: DictConfig, console: Console) -> Grid:
    """The grid of a configuration; recommended settings are printed. Raises BadInput, naming the entry that fails."""
    if config.samplers == "all":
        config.samplers = [*all_samplers()]
    for key in ("samplers", "operators"):
        config[key] = with_settings_of_experiment(config, key)
    samplers = chosen(config.samplers, "samplers", "sampler")
    operators = chosen(config.operators, "operators", "operator", beside="noise")
    budgets = [budget for kind in KINDS for budget in budgets_of(kind, config.budget[kind])]
    if not budgets and not config.budget.own:
        raise BadInput("budget.own=false leaves nothing to run; give budget.calls= or budget.seconds=")
    if budgets and config.clouds:
        raise BadInput("budgets cannot be combined with clouds=true")
    tasks = [_task(config, label, choice) for label, choice in operators.items()]
    with _naming("prior"):
        prior = make_prior(config)
    prior_settings = _settings(config.prior) | {"fingerprint": of_module(prior)}
    entries = [_entry(label, choice, tasks, prior, config.recommended) for label, choice in samplers.items()]
    for words in dict.fromkeys(str(settled) for _, all_settled in entries for settled in all_settled):
        console.print(words, soft_wrap=True)
    return Grid(
        entries=[entry for entry, _ in entries],
        tasks=tasks,
        images=_images(config, prior, prior_settings),
        prior=prior,
        prior_settings=prior_settings,
        num_samples=config.num_samples,
        seed=config.seed,
        budgets=budgets,
        own=config.budget.own,
        clouds=config.clouds,
        config=plain(config),
    )


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the entry that could not be made."""
    try:
        yield
    except Exception as error:
        error.add_note(path)
        raise


def _entry(
    label: str, choice: Choice, tasks: Sequence[Task], prior: Prior, recommended: bool
) -> tuple[Entry, list[Settled]]:
    """A sampler, and its recommended settings for the operators that have some."""
    path = f"samplers.{label}"
    check_node(choice.node, path)
    with _naming(path):
        made = made_sampler(choice.node, path)
        wanted = recommended and is_generated(choice.name)
        found = {t.label: settle(made, t.operator, t.noise, prior, choice.named, recommended=wanted) for t in tasks}
    changed = {task: settled for task, settled in found.items() if settled.changed}
    return Entry(label, made, {task: s.sampler for task, s in changed.items()}), list(changed.values())


def _task(config: DictConfig, label: str, choice: Choice) -> Task:
    """An operator with the noise of all, another one by name, or either with settings of its own."""
    path = f"operators.{label}"
    own = {"noise": choice.beside} if isinstance(choice.beside, str) else dict(choice.beside or {})
    noise = load("noise", own.pop("noise"), f"{path}.noise") if "noise" in own else config.noise.copy()
    overrule(noise, own, f"{path}.noise")
    check_node(noise, f"{path}.noise")
    check_node(choice.node, path)
    with _naming(path):
        operator = make(choice.node, path)
        if not isinstance(operator, Operator):
            raise BadInput(f"it must make an operator, got {type(operator).__name__}")
        settings = {"operator": _settings(choice.node), "noise": _settings(noise)}
        nodes = {"operator": plain(choice.node), "noise": plain(noise)}
        return Task(label, operator, make(noise, f"{path}.noise"), settings, nodes)


def _settings(node: DictConfig) -> Settings:
    found: Settings = with_contents(plain(node))
    return found


def _images(config: DictConfig, prior: Prior, prior_settings: Settings) -> Images:
    """The first `images` true images, of one source after another."""
    count, nodes = config.images, [config.data]
    if config.input is None:
        nodes = [choice.node for choice in chosen(config.data, "data", "data").values()]
        if len(nodes) == 1 and count is not None and "count" in nodes[0]:
            nodes[0].count = count
    sources = [source_of(config, node) for node in nodes]
    slicing = make(config.volume)
    found = load_images(sources, prior, prior_settings, slicing=slicing, size=config.size, seed=config.seed)
    if count is not None and count > len(found):
        raise BadInput(f"images={count}, but there are {len(found)}")
    return replace(found, truth=found.truth[:count], names=found.names[:count], keys=found.keys[:count])


# -- what comes out ----------------------------------------------------------------------------------------------------


def _print(comparisons: Sequence[Comparison], rows: int, output: Path) -> None:
    console = Console(highlight=False, markup=False)
    for comparison in comparisons:
        console.print(standings_table(comparison))
        for standing in comparison.standings:
            if standing.reason:
                console.print(f"{standing.label}: {standing.reason}", soft_wrap=True)
    if comparisons:
        console.print("cost (network calls, VJPs included) and seconds: of one sample", soft_wrap=True)
    files = "report.html, leaderboard.md and results.parquet"
    console.print(f"{rows} rows computed; {files} are in {output}", soft_wrap=True)
