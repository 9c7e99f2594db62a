"""`invdiff reconstruct`: from images or measurements to posterior samples, pictures and scores."""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff._version import __version__
from invdiff.axes import with_axes
from invdiff.checks import check_callable
from invdiff.cli.app import VerdictFailed, chosen_name, command, config_as_yaml, report, saved_config, typed
from invdiff.cli.inputs import make_prior, make_sampler, of_one_size, true_images_of, volume_of
from invdiff.cli.measured import load_measured, settle_sigma
from invdiff.cli.paths import without_folders
from invdiff.cli.reporter import Reporter
from invdiff.cli.targets import make
from invdiff.engine.driver import Compute, Interrupted
from invdiff.fingerprint import fingerprint, of_image, with_contents
from invdiff.io import BadInput, Measurement
from invdiff.io.output import Output, opened
from invdiff.io.placement import Volume
from invdiff.job import Job, prepare
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import simulate
from invdiff.reconstruction import Reconstruction
from invdiff.report.leaderboard import prior_label
from invdiff.report.tables import scores_in_words, verdict_in_words
from invdiff.results import PREVIEW, Format, files_of, named_pictures, write_named_pictures

SIMULATES = "input= SIMULATES: the picture is taken as the truth and measured first; to restore it use measurement="


FILES = str | list[str] | None


@command("reconstruct", options={"input": FILES, "measurement": FILES, "truth": FILES})
def main(config: DictConfig, output: Path) -> None:
    """Reconstruct as configured and write the results to `output`; see `configs/reconstruct.yaml`."""
    if config.input is not None and config.measurement is not None:
        raise BadInput("give input= (images, measured by the operator first) or measurement= (real data), not both")
    if config.truth is not None and config.measurement is None:
        raise BadInput("truth= scores a real measurement=; an image of input= is its own truth")
    compute: Compute = make(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    for part, folder in of_one_size(config, output, prior):
        reconstruct_one_size(part, folder, prior, compute)


def reconstruct_one_size(
    config: DictConfig, output: Path, prior: Prior, compute: Compute, *, named: str | None = None
) -> None:
    """Reconstruct images of one size as configured; see `main`.

    named  also write pictures of the only image under this name, `named_pictures`
    """
    given: Measurement | None = None
    if config.measurement is None:
        operator: Operator = make(config.operator)
    else:
        given, operator = load_measured(config, prior)
        given.notes.extend(settle_sigma(config, with_axes(given.y, operator, prior), operator))
    noise: Noise = make(config.noise)
    settled = make_sampler(config, operator, noise, prior)

    names: str | Sequence[str]
    truth: Tensor | None
    if given is None:
        truth, names, files, units = true_images_of(config, prior, config.input)
        files = files if config.input is None else [SIMULATES, *files]
        check_callable(operator, prior, tuple(truth.shape[1:]))
        y = simulate(truth, operator, noise, config.seed)
    else:
        y, files, units = with_axes(given.y, operator, prior), given.notes, given.units
        truth = None if config.truth is None else true_images_of(config, prior, config.truth).images
        names = given.names or Path(str(config.measurement)).stem
    notes = [str(settled)] if settled.changed else []
    cut = [*files[:6], f"and {len(files) - 6} lines more, see metrics.json"] if len(files) > 6 else files
    _say([*cut, *notes])

    with _printed_log():
        job = prepare(
            y,
            operator,
            noise=noise,
            prior=prior,
            sampler=settled.sampler,
            num_samples=config.num_samples,
            seed=config.seed,
            truth=truth,
            names=names,
            checks=config.checks,
            clouds=config.clouds,
            calibration=config.calibration,
            compute=replace(compute, progress=False),  # the reporter has the bar
        )
    more: dict[str, Any] = {"files": files, "settings": "; ".join(notes)}
    if units and None not in units:  # image * scale + offset has the unit of the file
        scales, offsets = zip(*units, strict=True)
        more |= {
            "scale": dict(zip(job.names, scales, strict=True)),
            "offset": dict(zip(job.names, offsets, strict=True)),
        }
    job.notes.update({what: note for what, note in more.items() if note})

    formats = cast(list[Format], [config.save.format] if isinstance(config.save.format, str) else config.save.format)
    volume = volume_of(config, units, job.problem) if "nii" in formats else Volume()
    passing = [PREVIEW] if config.preview else []
    own = ["config.yaml", *passing, *files_of(job.names, job.num_samples, formats)]
    own += [] if named is None else named_pictures(named)
    saved = config_as_yaml(config)
    best_of = config.evaluation.best_of
    with opened(output, _run_of(config, job), own, overwrite=config.overwrite, config=saved, say=report) as folder:
        if folder.finished:
            _say([f"{output} holds the results of this configuration; overwrite=true computes them again"])
            stored = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["verdict"]
            _check_verdict(config, output, [finding["words"] for finding in stored if finding["severe"]])
            return
        result, stopped = _sampled(job, folder, formats, config.preview, compute.progress)
        title = _title(config, result)
        result.write(folder, formats, volume, alone=len(job.names) == 1, best_of=best_of, title=title)
        if named is not None:
            write_named_pictures(folder, result, named, result.value_range)
        if stopped is None:
            folder.finish()
    tables, lines = scores_in_words(result.metrics(best_of=best_of), title)
    intervals = result.notes["intervals"] + _how_to_measure(config, given, prior, result)
    verdict = verdict_in_words(result.verdict)
    _say([*tables, *lines, intervals, *verdict, f"pictures, samples and scores are in {output}"])
    if stopped is not None:
        raise stopped
    if result.diverged.all():
        raise FloatingPointError(
            f"every sample diverged, first at step {int(result.diverged_at.min())}; a smaller guidance weight or step "
            f"size may help; measurement and scores were written to {output}"
        )
    _check_verdict(config, output, [finding.words for finding in result.verdict if finding.severe])


def _check_verdict(config: DictConfig, output: Path, severe: Sequence[str]) -> None:
    if config.strict and severe:
        raise VerdictFailed(f"strict=true: {severe[0]}; results are in {output}")


def _sampled(
    job: Job, folder: Output, formats: Sequence[Format], preview: bool, progress: bool
) -> tuple[Reconstruction, Interrupted | None]:
    """The images that this run and earlier ones in the folder have finished; all of them, unless Ctrl-C stopped it."""
    reporter = Reporter(job, folder, preview=preview, show=progress, say=lambda line: _say([line]))
    try:
        return job.run_into(folder, formats, reporter), None
    except Interrupted as stop:
        if stop.images:
            _say([f"the same command with output={folder.path} goes on from there"])
        if stop.posterior is None or folder.replaces:  # the results of another run stay
            raise
        return cast(Reconstruction, stop.posterior), stop
    finally:
        reporter.close()


def _run_of(config: DictConfig, job: Job) -> str:
    """A fingerprint of all that the results depend on; a run in the same folder goes on where it is equal."""
    truth = None if job.truth is None else of_image(job.truth.numpy())
    images = {"names": list(job.names), "y": of_image(job.problem.y.numpy()), "truth": truth}
    return fingerprint({**that_decide(config), **images})


def that_decide(config: DictConfig) -> dict[str, Any]:
    """For a fingerprint: the version and the settings that results depend on, with the contents of files."""
    apart = ("output", "compute", "overwrite", "preview", "strict")  # these may change
    settings = {key: value for key, value in saved_config(config).items() if key not in apart}
    return {"invdiff": __version__, "config": with_contents(without_folders(settings))}


def _how_to_measure(config: DictConfig, given: Measurement | None, prior: Prior, result: Reconstruction) -> str:
    """The command that measures the coverage of intervals, where it is not known and a command can."""
    groups = ("operator", "noise", "prior", "sampler")
    own = given is not None and given.parameters  # of the operator, in the file of the measurement
    if (
        result.calibration is not None
        or config.num_samples < 2
        or config.clouds
        or own
        or not all(map(chosen_name, groups))
    ):
        return ""
    words = [f"{group}={chosen_name(group)}" for group in groups]
    words += [
        word for word in typed() if word.startswith((*(f"{group}." for group in groups), "recommended=", "trust="))
    ]
    words += [] if prior.shape is not None else [f"size={result.problem.image_shape[-1]}"]
    return f"; run invdiff calibrate {shlex.join(words)} num_samples={config.num_samples}"


def _say(notes: Sequence[str | Text | Table]) -> None:
    console = Console(highlight=False, markup=False)
    for note in notes:
        console.print(note, soft_wrap=not isinstance(note, Table))


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say([record.getMessage()])


@contextmanager
def _printed_log() -> Iterator[None]:
    """Print messages of `invdiff` at level INFO while this is open, but for the verdict, which follows the scores."""
    log, printer = logging.getLogger("invdiff"), _Printer()
    printer.addFilter(lambda record: record.name != "invdiff.verdict")
    level = log.level
    log.addHandler(printer)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.setLevel(level)


def _title(config: DictConfig, result: Reconstruction) -> str:
    def name(group: str) -> str:
        node = config[group]
        return str(chosen_name(group) or node.get("name") or node["_target_"].rpartition(".")[2])

    calls = f"{result.sampler.name()}: {result.cost.forwards} network calls, {result.cost.seconds:.0f} s"
    prior = name("prior") if config.prior.get("weights") is None else prior_label(config.prior)
    return f"{name('operator')} · {prior} prior · {calls}"
