"""`invdiff reconstruct`: from images or measurements to posterior samples, pictures and scores."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from invdiff.cli.app import command
from invdiff.driver import Compute, Interrupted, check
from invdiff.evaluation import evaluate
from invdiff.io import (
    BadInput,
    image_files,
    match_channels,
    read_image,
    read_measurement,
    square,
    to_tensor,
    write_image,
)
from invdiff.operators import Noise, Operator
from invdiff.posterior import Posterior
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.report.comparison import comparison, save_figure, save_map
from invdiff.streams import generator


@command("reconstruct")
def main(config: DictConfig, output: Path) -> None:
    """Do what the configuration says and write everything under `output`; see `configs/reconstruct.yaml`."""
    _check_values(config)
    prior: Prior = instantiate(config.prior)
    operator: Operator = instantiate(config.operator)
    noise: Noise = instantiate(config.noise)
    sampler = instantiate(config.sampler)
    compute: Compute = instantiate(config.compute)

    if config.measurement is not None:
        y, names, truth = _given_measurement(config, operator, prior)
    else:
        truth, names = _true_images(config, operator, prior)
        y = measure(operator, noise, truth, config.seed)
    problem = InverseProblem(operator, noise, y, image_shape=None if truth is None else tuple(truth.shape[1:]))
    check(sampler, problem, prior)

    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, output / "config.yaml", resolve=True)
    stopped = None
    try:
        posterior = sampler.sample(problem, prior, num_samples=config.num_samples, seed=config.seed, compute=compute)
    except Interrupted as stop:
        if stop.posterior is None:
            raise
        stopped, posterior = stop, stop.posterior
        problem = problem.select(torch.arange(stop.images))
        names, truth = names[: stop.images], None if truth is None else truth[: stop.images]
    metrics = evaluate(problem, posterior, names, truth, prior.value_range)
    write(output, config, Result(problem, posterior, names, truth), metrics, prior.value_range)
    _print_summary(metrics, output, config)
    if stopped is not None:
        raise stopped
    if posterior.diverged.all():
        raise FloatingPointError(
            f"every sample diverged, first at step {int(posterior.diverged_at.min())}; a smaller guidance weight or step "
            f"size may help; what there is was written to {output}"
        )


@dataclass(frozen=True)
class Result:
    """What a run produced, image by image in the order of `names`."""

    problem: InverseProblem
    posterior: Posterior
    names: Sequence[str]
    truth: Tensor | None


def measure(operator: Operator, noise: Noise, truth: Tensor, seed: int) -> Tensor:
    """Simulated measurements: image i's depends on (seed, i) and the operator alone, not on the other images."""
    shape = tuple(truth.shape[1:])
    reason = operator.refuses(shape)
    if reason is not None:
        raise BadInput(reason)
    with torch.no_grad():
        clean = operator(truth)
    observed = operator.measured(tuple(clean.shape[1:]))
    return noise.sample(clean, [generator(seed, "measure", i) for i in range(len(truth))], observed)


# -- what goes in ------------------------------------------------------------------------------------------------------


def _check_values(config: DictConfig) -> None:
    if config.input is not None and config.measurement is not None:
        raise BadInput("give input= (images, measured by the operator first) or measurement= (real data), not both")
    if not isinstance(config.num_samples, int) or config.num_samples < 1:
        raise BadInput(f"num_samples must be a whole number from 1 on, got {config.num_samples}")
    if not isinstance(config.seed, int) or config.seed < 0:
        raise BadInput(f"seed must be a whole number from 0 on, got {config.seed}")
    if config.size is not None and (not isinstance(config.size, int) or config.size < 8):
        raise BadInput(f"size must be a whole number of pixels from 8 on, got {config.size}")


def _true_images(config: DictConfig, operator: Operator, prior: Prior) -> tuple[Tensor, list[str]]:
    """The images to measure and reconstruct, (B, C, H, W), and their names."""
    if config.input is not None:
        files = image_files(config.input)
        # A folder may hold a.png and a.jpg: the name must still tell them apart.
        stems = [f.stem for f in files]
        names = [f.stem if stems.count(f.stem) == 1 else f.name for f in files]
        images = [read_image(f) for f in files]
    else:
        names, images = instantiate(config.data, prior=prior, seed=config.seed)
    images = [match_channels(image, prior.channels, name) for image, name in zip(images, names, strict=True)]
    if config.size is not None:
        images = [square(image, config.size) for image in images]
    truth = to_tensor(images, names)
    reason = prior.accepts(tuple(truth.shape[1:]))
    if reason is not None:
        hint = f"; size={prior.shape[-1]} resizes and crops" if prior.shape and truth.shape[1] == prior.shape[0] else ""
        raise BadInput(f"prior and image do not match: {reason}{hint}")
    return truth, names


def _given_measurement(config: DictConfig, operator: Operator, prior: Prior) -> tuple[Tensor, list[str], None]:
    """Real data: (B, ...), with a batch axis added where the file has none."""
    y = read_measurement(config.measurement)
    if prior.shape is not None:
        reason = operator.refuses(prior.shape)
        if reason is not None:
            raise BadInput(reason)
        with torch.no_grad():
            expected = operator(torch.zeros(1, *prior.shape)).dim()
    else:
        expected = 4  # a prior of any size goes with image-like measurements, unless the operator says otherwise
    shape = tuple(y.shape)
    while y.dim() < expected:
        y = y[None]
    if y.dim() != expected:
        raise BadInput(f"the measurement has shape {shape}; with this operator and prior {expected} axes are expected")
    name = Path(config.measurement).stem
    return y, [name] if len(y) == 1 else [f"{name}_{i:03d}" for i in range(len(y))], None


# -- what comes out ----------------------------------------------------------------------------------------------------


def write(
    output: Path, config: DictConfig, result: Result, metrics: dict[str, Any], value_range: tuple[float, float]
) -> None:
    """All files of a run, under `output`; with several images, `mean.png` and `std.png` are one for each."""
    problem, posterior, names, truth = result.problem, result.posterior, result.names, result.truth
    mean, std = posterior.mean, posterior.std
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
    arrays = {"samples": posterior.samples, "mean": mean, "std": std, "y": problem.y}
    if truth is not None:
        arrays["x"] = truth
    np.savez_compressed(
        output / "samples.npz", **{name: tensor.numpy() for name, tensor in arrays.items()}, names=np.array(names)
    )
    if scales:
        metrics["notes"]["std.png"] = {"brightest colour": scales}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    figure = comparison(problem, posterior, metrics, truth, title=_title(config, metrics), value_range=value_range)
    save_figure(figure, output / "comparison.png")


def _title(config: DictConfig, metrics: dict[str, Any]) -> str:
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    words = [f"{choices.get('operator', 'operator')}", f"{choices.get('prior', 'prior')} prior"]
    cost = metrics["cost"]
    words.append(f"{choices.get('sampler', 'sampler')}: {cost['forwards']} network calls, {cost['seconds']:.0f} s")
    return " · ".join(words)


def _print_summary(metrics: dict[str, Any], output: Path, config: DictConfig) -> None:
    console = Console(highlight=False)
    table = Table(title=_title(config, metrics), title_justify="left")
    columns = {
        "image": "name",
        "baseline": "baseline_psnr",
        "sample": "psnr",
        "mean": "psnr_mean",
        "SSIM": "ssim",
        "misfit": "misfit",
        "diverged": "diverged",
    }
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for row in metrics["images"]:
        table.add_row(*(_cell(row[key]) for key in columns.values()))
    console.print(table)
    cost = metrics["cost"]
    console.print(
        f"{cost['forwards']} network calls, {cost['vjps']} VJPs, {cost['operator_calls']} operator calls, "
        f"{cost['seconds']:.1f} s, {cost['peak_memory_mb']:.0f} MB"
    )
    console.print(
        "baseline (pseudo-inverse), sample and mean: PSNR in dB · misfit: 1 fits to the noise", soft_wrap=True
    )
    console.print(f"pictures, samples and scores are in {output}", soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"  # noqa: RUF001, an en dash is what a table shows for nothing
    return f"{value:.2f}" if isinstance(value, float) else str(value)
