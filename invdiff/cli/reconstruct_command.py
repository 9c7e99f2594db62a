"""`invdiff reconstruct`: from images or measurements to posterior samples, pictures and scores."""

import errno
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff.cli.app import command
from invdiff.cli.config_file import write_config
from invdiff.cli.inputs import check_device, make_prior, true_images
from invdiff.cli.values import check_kinds
from invdiff.engine.driver import Compute, Interrupted
from invdiff.io import BadInput, Measurement, Slicing, load_measurement
from invdiff.io.measurement import PARAMETERS
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import simulate
from invdiff.reconstruction import Reconstruction, reconstruct
from invdiff.samplers import Sampler


@command("reconstruct")
def main(config: DictConfig, output: Path) -> None:
    """Reconstruct as configured and write the results to `output`; see `configs/reconstruct.yaml`."""
    _check_values(config)
    compute: Compute = instantiate(config.compute)
    check_device(compute)
    prior = make_prior(config)
    given = None if config.measurement is None else _load_measurement(config)
    operator: Operator = instantiate(config.operator, **({} if given is None else given.parameters))
    noise: Noise = instantiate(config.noise)
    sampler: Sampler = instantiate(config.sampler)

    names: str | list[str]
    truth: Tensor | None
    if given is None:
        truth, names, files = true_images(config, prior, say=_say)
        y = simulate(truth, operator, noise, config.seed)
    else:
        y, truth, files = given.y, None, given.notes
        names = given.names or Path(str(config.measurement)).stem
        _check_size(config, given, operator, prior)

    _check_writable(output)
    stopped = None
    try:
        with _printed_log():
            result = reconstruct(
                y,
                operator,
                noise=noise,
                prior=prior,
                sampler=sampler,
                num_samples=config.num_samples,
                seed=config.seed,
                truth=truth,
                names=names,
                compute=compute,
            )
    except Interrupted as stop:
        if stop.posterior is None:
            raise
        stopped, result = stop, cast(Reconstruction, stop.posterior)
    if files:
        result.notes["files"] = files
    if given is not None and given.scale is not None:
        result.notes["scale"] = dict(zip(result.names, given.scale.tolist(), strict=False))  # of the finished images
    write_config(config, output)
    title, best_of = _title(config, result), config.evaluation.best_of
    result.save(output, best_of=best_of, title=title)
    _print_summary(result.metrics(best_of=best_of), output, title)
    if stopped is not None:
        raise stopped
    if result.diverged.all():
        raise FloatingPointError(
            f"every sample diverged, first at step {int(result.diverged_at.min())}; a smaller guidance weight or step "
            f"size may help; measurement and scores were written to {output}"
        )


# -- input -------------------------------------------------------------------------------------------------------------


def _check_values(config: DictConfig) -> None:
    check_kinds(config, "operator", "noise", "prior", "sampler", "data", "compute", "volume")
    if config.input is not None and config.measurement is not None:
        raise BadInput("give input= (images, measured by the operator first) or measurement= (real data), not both")
    for key in ("input", "measurement"):
        if isinstance(config[key], (DictConfig, ListConfig)):
            raise BadInput(f"{key} must be one file{' or a folder' if key == 'input' else ''}, got {config[key]}")
    for key, least in (("num_samples", 1), ("seed", 0), ("size", 8)):
        value = config[key]
        if key == "size" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key} must be an integer >= {least}, got {value}")
    best_of = OmegaConf.select(config, "evaluation.best_of")
    if not isinstance(best_of, bool):
        raise BadInput(f"evaluation.best_of must be true or false, got {best_of}")


def _load_measurement(config: DictConfig) -> Measurement:
    """Real data, with the parameters of the operator that the file holds and the configuration leaves null."""
    slicing: Slicing = instantiate(config.volume)
    open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
    path = Path(str(config.measurement))
    given = load_measurement(path, parameters=open_, slicing=slicing, size=config.size, allow_nan=True)
    _say(given.notes)
    return given


def _say(notes: Sequence[str]) -> None:
    """Print choices that were made when files were read, before the work; metrics.json has all of them."""
    console = Console(highlight=False, markup=False)
    for note in notes[:6]:
        console.print(note, soft_wrap=True)
    if len(notes) > 6:
        console.print(f"and {len(notes) - 6} lines more, see metrics.json")


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say([record.getMessage()])


@contextmanager
def _printed_log() -> Iterator[None]:
    """Print messages of `invdiff` at level INFO while this is open."""
    log, printer = logging.getLogger("invdiff"), _Printer()
    level = log.level
    log.addHandler(printer)
    log.setLevel(logging.INFO)
    log.disabled = False  # hydra disables the loggers that exist when it starts
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.setLevel(level)


def _check_size(config: DictConfig, given: Measurement, operator: Operator, prior: Prior) -> None:
    """Where k-space belongs to images of another size than the prior's, name the option that crops it."""
    if prior.shape is None or given.scale is None or config.size is not None:
        return
    reason = operator.mismatch(prior.shape)
    if reason is not None:
        raise BadInput(f"{reason}; size={prior.shape[-1]} keeps as much of k-space")


# -- output ------------------------------------------------------------------------------------------------------------


def _check_writable(output: Path) -> None:
    """Make the folder, or fail before the work and not after it."""
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))


def _title(config: DictConfig, result: Reconstruction) -> str:
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}

    def name(group: str) -> str:
        # A saved configuration has no choices of groups, only their values.
        return str(choices.get(group) or config[group].get("name") or config[group]["_target_"].rpartition(".")[2])

    calls = f"{result.sampler.name()}: {result.cost.forwards} network calls, {result.cost.seconds:.0f} s"
    return f"{name('operator')} · {name('prior')} prior · {calls}"


def _print_summary(metrics: dict[str, Any], output: Path, title: str) -> None:
    console = Console(highlight=False, markup=False)
    columns = {
        "image": "name",
        "baseline": "baseline_psnr",
        "sample": "psnr",
        "mean": "psnr_mean",
        "SSIM": "ssim",
        "misfit": "misfit",
        "diverged": "diverged",
    }
    more = {
        "not aligned": "psnr_raw",
        "best by truth (oracle)": "psnr_best_oracle",
        "best by misfit": "psnr_best_misfit",
    }
    console.print(_table(metrics, columns, title))
    more = {heading: key for heading, key in more.items() if key in metrics["mean"]}
    if more:  # in a table of their own: one of all columns is wider than 80 characters
        console.print(_table(metrics, {"image": "name", **more}, "samples, PSNR in dB"))
    cost = metrics["cost"]
    console.print(
        f"{cost['forwards']} network calls, {cost['vjps']} VJPs, {cost['operator_calls']} operator calls, "
        f"{cost['seconds']:.1f} s, {cost['peak_memory_mb']:.0f} MB"
    )
    console.print(
        "baseline (first guess, without a prior), sample and mean: PSNR in dB · misfit: 1 fits to the noise",
        soft_wrap=True,
    )
    if "alignment" in metrics["notes"]:
        console.print(metrics["notes"]["alignment"], soft_wrap=True)
    console.print(f"pictures, samples and scores are in {output}", soft_wrap=True)


def _table(metrics: dict[str, Any], columns: dict[str, str], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for row in metrics["images"]:
        table.add_row(*(Text(_cell(row[key])) for key in columns.values()))
    return table


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"  # noqa: RUF001, an en dash marks an empty cell
    return f"{value:.2f}" if isinstance(value, float) else str(value)
