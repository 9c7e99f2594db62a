"""One picture that tells the whole reconstruction: truth, measurement, samples, mean, uncertainty, error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg", force=False)  # files only: no screen is needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 8  # more images than this make a picture that nobody can read


def comparison(
    problem: InverseProblem,
    posterior: Posterior,
    metrics: dict[str, Any],
    truth: Tensor | None,
    *,
    title: str,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """A labelled figure, one image after the other; a single image is laid out in two rows of larger panels."""
    images = min(len(metrics["images"]), MOST_ROWS)
    panels = [_panels(problem, posterior, metrics, truth, i, value_range) for i in range(images)]
    columns = 3 if images == 1 else len(panels[0])
    rows = images * -(-len(panels[0]) // columns)
    height, width = posterior.samples.shape[-2:]
    cell = 3.4 if images == 1 else 2.4
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(cell * columns * 1.06, cell * rows * height / width * 1.14 + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, draw in zip(axes.flat, [panel for row in panels for panel in row], strict=False):
        draw(axis)
    figure.suptitle(title, fontsize=11)
    hidden = len(metrics["images"]) - images
    if hidden:
        figure.supxlabel(f"and {hidden} more image(s): see samples.npz and metrics.json", fontsize=9)
    return figure


def _panels(
    problem: InverseProblem,
    posterior: Posterior,
    metrics: dict[str, Any],
    truth: Tensor | None,
    i: int,
    value_range: tuple[float, float],
) -> "list[Callable[[Axes], None]]":
    scores = metrics["images"][i]
    samples = posterior.samples[i]
    kept = [s for s in range(len(samples)) if not posterior.diverged[i, s]]
    mean, std = posterior.mean[i], posterior.std[i]
    panels = []
    if truth is not None:
        panels.append(_picture(truth[i], "Truth", value_range))
    panels.append(_measurement(problem, i, scores["baseline_psnr"], value_range))
    if kept:
        panels.append(_picture(samples[kept[0]], _with_psnr("One posterior sample", scores["psnr"]), value_range))
        panels.append(_picture(mean, _with_psnr(f"Mean of {len(kept)} samples", scores["psnr_mean"]), value_range))
    else:
        panels.append(_words("every sample diverged"))
    if len(kept) > 1:
        panels.append(_map(std.square().mean(0).sqrt(), "Standard deviation"))
    elif kept:
        panels.append(_words("standard deviation:\nneeds num_samples of 2 or more"))
    if truth is not None and kept:
        panels.append(_map((mean - truth[i]).square().mean(0).sqrt(), "Error of the mean"))
    return panels


def _with_psnr(words: str, psnr: float | None) -> str:
    return words if psnr is None else f"{words}\n{psnr:.1f} dB"


def _picture(image: Tensor, title: str, value_range: tuple[float, float]) -> "Callable[[Axes], None]":
    low, high = value_range

    def draw(axis: "Axes") -> None:
        pixels = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)

    return draw


def _map(values: Tensor, title: str) -> "Callable[[Axes], None]":
    def draw(axis: "Axes") -> None:
        shown = values.numpy()
        image = axis.imshow(shown, cmap="magma", vmin=0, vmax=max(float(np.quantile(shown, 0.995)), 1e-6))
        axis.figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02).ax.tick_params(labelsize=8)
        axis.set_title(f"{title}\n(image units)", fontsize=10)

    return draw


def _measurement(
    problem: InverseProblem, i: int, baseline: float | None, value_range: tuple[float, float]
) -> "Callable[[Axes], None]":
    y = problem.y[i]
    title = "Measurement" if baseline is None else f"Measurement\npseudo-inverse: {baseline:.1f} dB"
    if not y.is_complex() and y.dim() == 3 and y.shape[0] in (1, 3):
        return _picture(y, title, value_range)
    plane = (y.abs() if y.is_complex() else y).reshape(-1, y.shape[-1])

    def draw(axis: "Axes") -> None:
        axis.imshow(plane.numpy(), cmap="gray", aspect="auto")
        axis.set_title(title, fontsize=10)

    return draw


def _words(text: str) -> "Callable[[Axes], None]":
    return lambda axis: axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=9) and None


def save_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def save_map(values: Tensor, path: Path) -> float:
    """A map (H, W) in false colours, black is 0; returns the value of the brightest colour."""
    top = max(float(np.quantile(values.numpy(), 0.995)), 1e-6)
    plt.imsave(path, values.numpy(), cmap="magma", vmin=0, vmax=top)
    return top


def thumbnails(images: Tensor, path: Path, columns: int) -> None:
    """A plain grid of (N, C, H, W) images in [0, 1], without labels."""
    from invdiff.io import write_image

    count, channels, height, width = images.shape
    rows: Sequence[int] = range(0, count - count % columns, columns)
    grid = [images[r : r + columns].permute(1, 2, 0, 3).reshape(channels, height, columns * width) for r in rows]
    write_image(path, torch.cat(grid, dim=1))
