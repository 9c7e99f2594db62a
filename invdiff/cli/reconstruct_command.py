"""`invdiff reconstruct`: from images or measurements to posterior samples, pictures and scores."""

import errno
import glob
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff.cli.app import command, write_config
from invdiff.cli.inputs import make_prior, make_sampler, true_images_of
from invdiff.engine.driver import Compute, Interrupted
from invdiff.io import BadInput, Measurement, Slicing, load_measurement, write_image
from invdiff.io.measurement import PARAMETERS
from invdiff.operators import Noise, Operator
from invdiff.posterior import Posterior
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, measure
from invdiff.scores import aligned, evaluate
from invdiff.shapes import describe_shape


@command("reconstruct")
def main(config: DictConfig, output: Path) -> None:
    """Do what the configuration says and write everything under `output`; see `configs/reconstruct.yaml`."""
    if config.input is not None and config.measurement is not None:
        raise BadInput("give input= (images, measured by the operator first) or measurement= (real data), not both")
    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    given = None if config.measurement is None else _load_measurement(config)
    operator: Operator = instantiate(config.operator, **({} if given is None else given.parameters))
    noise: Noise = instantiate(config.noise)
    settled = make_sampler(config, operator, noise, prior)
    _say([str(settled)] if settled.changed else [])

    if given is not None:
        told_by_files = given.notes
        y, names, truth = _given_measurement(config, given, operator, prior)
        told = operator.image_shape(tuple(y.shape[1:]))
        shape = prior.shape if told is None else None
    else:
        truth, names, told_by_files = true_images_of(config, prior)
        _say(told_by_files)
        y = measure(operator, noise, truth, config.seed)
        shape = tuple(truth.shape[1:])
    problem = InverseProblem(operator, noise, y, image_shape=shape)
    sampler, reason = settled.sampler.resolve(problem, prior)
    if reason is not None:
        _say([f"sampler {reason}"])
    sampler.check(problem, prior)

    _open(output)
    stopped = None
    try:
        posterior = sampler.sample(problem, prior, num_samples=config.num_samples, seed=config.seed, compute=compute)
    except Interrupted as stop:
        if stop.posterior is None:
            raise
        stopped, posterior = stop, stop.posterior
        problem = problem.select(torch.arange(stop.images))
        names, truth = names[: stop.images], None if truth is None else truth[: stop.images]
    result = Result(problem, posterior, names, truth)
    write_arrays(output, config, result)  # first of all: nothing that comes after may lose them
    metrics = evaluate(problem, posterior, names, truth, prior.value_range, best_of=config.evaluation.best_of)
    if reason is not None:
        metrics["notes"]["sampler"] = reason
    if told_by_files:
        metrics["notes"]["files"] = told_by_files
    if given is not None and given.scale is not None:
        metrics["notes"]["scale"] = dict(zip(names, given.scale.tolist(), strict=False))  # of those that were finished
    write_pictures(output, config, result, metrics, prior.value_range)
    _print_summary(metrics, output, config)
    if stopped is not None:
        raise stopped
    if posterior.diverged.all():
        raise FloatingPointError(
            f"every sample diverged, first at step {int(posterior.diverged_at.min())}; a smaller guidance weight or "
            f"step size may help; what there is was written to {output}"
        )


@dataclass(frozen=True)
class Result:
    """What a run produced, image by image in the order of `names`."""

    problem: InverseProblem
    posterior: Posterior
    names: Sequence[str]
    truth: Tensor | None


# -- what goes in ------------------------------------------------------------------------------------------------------


def _load_measurement(config: DictConfig) -> Measurement:
    """Real data, and those parameters of the operator that its file holds and the configuration leaves null."""
    slicing: Slicing = instantiate(config.volume)
    open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
    path = Path(str(config.measurement))
    given = load_measurement(path, parameters=open_, slicing=slicing, size=config.size, allow_nan=True)
    _say(given.notes)
    return given


def _say(notes: Sequence[str]) -> None:
    """What was chosen when files were read, before it is worked on; all of it is in metrics.json."""
    console = Console(highlight=False, markup=False)
    for note in notes[:6]:
        console.print(note, soft_wrap=True)
    if len(notes) > 6:
        console.print(f"and {len(notes) - 6} lines more, see metrics.json")


def _given_measurement(
    config: DictConfig, measured: Measurement, operator: Operator, prior: Prior
) -> tuple[Tensor, list[str], None]:
    """Real data: (B, ...), with the batch axis, and the channel axis of a grey image, added where the file has none."""
    path, y = Path(str(config.measurement)), measured.y
    given = describe_shape(tuple(y.shape))
    if prior.shape is not None:
        reason = operator.mismatch(prior.shape)
        if reason is not None:
            kspace = measured.scale is not None and config.size is None
            raise BadInput(reason + (f"; size={prior.shape[-1]} keeps as much of k-space" if kspace else ""))
        with torch.no_grad():
            expected = tuple(operator(torch.zeros(1, *prior.shape)).shape[1:])
        readings = [y, y[None], y[:, None], y[None, None]] if y.dim() else []
        fitting = [reading for reading in readings if tuple(reading.shape[1:]) == expected]
        if not fitting:
            raise BadInput(
                f"the measurement is {given}: {path}; this operator measures {describe_shape(expected)} of the prior's "
                f"{describe_shape(prior.shape)} images, with or without an axis for several in front"
            )
        y = fitting[0]
    else:  # a prior of any size goes with image-like measurements
        if y.dim() not in (2, 3, 4):
            raise BadInput(
                f"the measurement is {given}: {path}; with this prior it is an image, (C, H, W) or (B, C, H, W)"
            )
        y = y.reshape(*[1] * (4 - y.dim()), *y.shape)
    if measured.names is not None:
        return y, measured.names, None
    name = path.stem
    return y, [name] if len(y) == 1 else [f"{name}_{i:03d}" for i in range(len(y))], None


# -- what comes out ----------------------------------------------------------------------------------------------------


def _open(output: Path) -> None:
    """Make the folder, or fail before the work and not after it; pictures of an earlier run in it go."""
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))
    try:
        earlier = [row["name"] for row in json.loads((output / "metrics.json").read_text())["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no run of ours was here
    for name in earlier:
        # With fewer samples or other images now, they would be taken for results of this run.
        pictures = [output / f"{name}_mean.png", output / f"{name}_std.png", output / "mean.png", output / "std.png"]
        for path in [*pictures, *(output / "samples").glob(f"{glob.escape(name)}_[0-9][0-9][0-9].png")]:
            path.unlink(missing_ok=True)


def write_arrays(output: Path, config: DictConfig, result: Result) -> None:
    """`config.yaml` and `samples.npz`."""
    write_config(config, output)
    posterior = result.posterior
    together = aligned(result.problem, posterior)
    arrays = {"samples": posterior.samples, "mean": together.mean, "std": together.std, "y": result.problem.y}
    if result.truth is not None:
        arrays["x"] = result.truth
    saved: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    np.savez_compressed(output / "samples.npz", names=np.array(result.names), **saved)


def write_pictures(
    output: Path, config: DictConfig, result: Result, metrics: dict[str, Any], value_range: tuple[float, float]
) -> None:
    """`metrics.json` and all pictures; with several images, `mean.png` and `std.png` are one for each."""
    from invdiff.report.comparison import comparison, save_figure, save_map  # matplotlib is slow to import

    posterior, names = result.posterior, result.names
    together = aligned(result.problem, posterior)
    mean, std = together.mean, together.std
    low, high = value_range
    (output / "samples").mkdir(exist_ok=True)
    scales = {}
    for i, name in enumerate(names):
        prefix = "" if len(names) == 1 else f"{name}_"
        if mean[i].isfinite().all():
            write_image(output / f"{prefix}mean.png", (mean[i] - low) / (high - low))
        if std[i].isfinite().all():
            scales[name] = save_map(std[i].square().mean(0).sqrt(), output / f"{prefix}std.png")
        for s in range(posterior.samples.shape[1]):
            if not posterior.diverged[i, s]:
                write_image(output / "samples" / f"{name}_{s:03d}.png", (posterior.samples[i, s] - low) / (high - low))
    if scales:
        metrics["notes"]["std.png"] = {"brightest colour": scales}
    elif posterior.samples.shape[1] == 1:
        metrics["notes"]["std.png"] = "needs num_samples of 2 or more; std in samples.npz is NaN"
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    facing = together if result.truth is None else aligned(result.problem, posterior, result.truth)
    figure = comparison(
        result.problem, facing, metrics, result.truth, title=_title(config, metrics), value_range=value_range
    )
    save_figure(figure, output / "comparison.png")


def _title(config: DictConfig, metrics: dict[str, Any]) -> str:
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}

    def name(group: str) -> str:
        # A saved configuration knows no choices any more, only what was chosen.
        return str(choices.get(group) or config[group].get("name") or config[group]["_target_"].rpartition(".")[2])

    cost = metrics["cost"]
    sampler = metrics["notes"].get("sampler", name("sampler")).partition(":")[0]
    calls = f"{sampler}: {cost['forwards']} network calls, {cost['seconds']:.0f} s"
    return f"{name('operator')} · {name('prior')} prior · {calls}"


def _print_summary(metrics: dict[str, Any], output: Path, config: DictConfig) -> None:
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
    console.print(_table(metrics, columns, _title(config, metrics)))
    more = {heading: key for heading, key in more.items() if key in metrics["mean"]}
    if more:  # a table of their own: a terminal of 80 columns has no room for all
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
        return "–"  # noqa: RUF001, an en dash is what a table shows for nothing
    return f"{value:.2f}" if isinstance(value, float) else str(value)
