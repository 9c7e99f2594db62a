"""`invdiff reconstruct`: from images or measurements to posterior samples, pictures and scores."""

import errno
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff.cli.app import VerdictFailed, chosen_name, command, typed, write_config
from invdiff.cli.inputs import make_prior, make_sampler, true_images_of
from invdiff.engine.driver import Compute, Interrupted
from invdiff.io import BadInput, Measurement, load_measurement
from invdiff.io.measurement import PARAMETERS
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import simulate
from invdiff.reconstruction import Reconstruction, reconstruct
from invdiff.report.tables import scores_in_words, verdict_in_words


@command("reconstruct")
def main(config: DictConfig, output: Path) -> None:
    """Reconstruct as configured and write the results to `output`; see `configs/reconstruct.yaml`."""
    if config.input is not None and config.measurement is not None:
        raise BadInput("give input= (images, measured by the operator first) or measurement= (real data), not both")
    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    given = None if config.measurement is None else _load_measurement(config)
    operator: Operator = instantiate(config.operator, **({} if given is None else given.parameters))
    noise: Noise = instantiate(config.noise)
    settled = make_sampler(config, operator, noise, prior)

    names: str | Sequence[str]
    truth: Tensor | None
    if given is None:
        truth, names, files = true_images_of(config, prior)
        y = simulate(truth, operator, noise, config.seed)
    else:
        y, truth, files = given.y, None, given.notes
        names = given.names or Path(str(config.measurement)).stem
        _check_size(config, given, operator, prior)
    notes = [str(settled)] if settled.changed else []
    cut = [*files[:6], f"and {len(files) - 6} lines more, see metrics.json"] if len(files) > 6 else files
    _say([*cut, *notes])

    _check_writable(output)
    stopped = None
    try:
        with _printed_log():
            result = reconstruct(
                y,
                operator,
                noise=noise,
                prior=prior,
                sampler=settled.sampler,
                num_samples=config.num_samples,
                seed=config.seed,
                truth=truth,
                names=names,
                calibration=config.calibration,
                compute=compute,
            )
    except Interrupted as stop:
        if stop.posterior is None:
            raise
        stopped, result = stop, cast(Reconstruction, stop.posterior)
    more: dict[str, Any] = {"files": files, "settings": "; ".join(notes)}
    if given is not None and given.scale is not None:
        more["scale"] = dict(zip(result.names, given.scale.tolist(), strict=False))  # of the finished images
    result.notes.update({what: note for what, note in more.items() if note})
    write_config(config, output)
    title, best_of = _title(config, result), config.evaluation.best_of
    result.save(output, best_of=best_of, title=title)
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
    severe = [finding.words for finding in result.verdict if finding.severe]
    if config.strict and severe:
        raise VerdictFailed(f"strict=true: {severe[0]}; results are in {output}")


def _load_measurement(config: DictConfig) -> Measurement:
    """Real data, with the parameters of the operator that the file holds and the configuration leaves null."""
    open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
    path, slicing = Path(str(config.measurement)), instantiate(config.volume)
    return load_measurement(path, parameters=open_, slicing=slicing, size=config.size, allow_nan=True)


def _how_to_measure(config: DictConfig, given: Measurement | None, prior: Prior, result: Reconstruction) -> str:
    """The command that measures the coverage of intervals, where it is not known and a command can."""
    groups = ("operator", "noise", "prior", "sampler")
    own = given is not None and given.parameters  # of the operator, in the file of the measurement
    if result.calibration is not None or config.num_samples < 2 or own or not all(map(chosen_name, groups)):
        return ""
    words = [f"{group}={chosen_name(group)}" for group in groups]
    words += [word for word in typed() if word.startswith((*(f"{group}." for group in groups), "recommended="))]
    words += [] if prior.shape is not None else [f"size={result.problem.image_shape[-1]}"]
    return f"; run invdiff calibrate {shlex.join(words)} num_samples={config.num_samples}"


def _check_size(config: DictConfig, given: Measurement, operator: Operator, prior: Prior) -> None:
    """Where k-space belongs to images of another size than the prior's, name the option that crops it."""
    if prior.shape is None or given.scale is None or config.size is not None:
        return
    reason = operator.mismatch(prior.shape)
    if reason is not None:
        raise BadInput(f"{reason}; size={prior.shape[-1]} keeps as much of k-space")


def _check_writable(output: Path) -> None:
    """Make the folder, or fail before the work and not after it."""
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))


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
    return f"{name('operator')} · {name('prior')} prior · {calls}"
