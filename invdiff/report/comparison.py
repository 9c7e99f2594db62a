"""One figure of a reconstruction: truth, measurement, first guess, samples, mean, standard deviation, error.

The layout is computed in inches, so that panels of any size line up; matplotlib only draws.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from invdiff.benchmark.pictures import is_picture, plane, rms
from invdiff.io.atomic import written_atomically
from invdiff.posterior import Posterior

# matplotlib is imported where something is drawn: it is slow to import, and `thumbnails` works without it.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8  # of more images the panels would be too small

# Inches.
_SIDE_ALONE, _SIDE = 2.9, 1.9  # longer side of an image: of the only one, of one of several
_NARROWEST = 1.55  # width of the words above a panel
_GAP, _HEADING, _NAME = 0.12, 0.44, 0.3
_TITLE, _BADGE, _FOOTER = 0.5, 0.28, 0.3
_BAR, _BAR_SPACE = 0.12, 0.75  # width of the colour bar, without and with its numbers

Draw = Callable[["Axes"], None]


@dataclass(frozen=True)
class Panel:
    """One cell: a heading, a second line (such as a score), and how to draw it; `is_map`: in the colours of the bar."""

    heading: str
    line: str
    draw: Draw
    is_map: bool = False


@dataclass(frozen=True)
class _Scales:
    """The scales of all panels of one image: the value range of pictures, and the top of its error maps."""

    low: float
    high: float
    top: float


def comparison(
    posterior: Posterior,
    metrics: dict[str, Any],
    truth: Tensor | None,
    *,
    title: str,
    value_range: tuple[float, float] = (0.0, 1.0),
    badge: tuple[str, bool] | None = None,
) -> "Figure":
    """A labelled figure: a row for each image, at most `MOST_ROWS`; a single image gets two rows of larger panels.

    The standard deviation and the error of the mean share one colour scale. Where the truth is known, all images face
    it (`Posterior.facing`).

    metrics  as of `invdiff.scores.evaluate`
    badge    a line under the title, red where it is severe; see `invdiff.scores.verdict.badge`
    """
    posterior = posterior.aligned if truth is None else posterior.facing(truth)
    shown = min(len(metrics["images"]), MOST_ROWS)
    drawn = posterior.problem.select(torch.arange(shown))
    observed = drawn.observed
    y = drawn.y if observed is None else torch.where(observed, drawn.y, 0)  # elsewhere it may be NaN
    # With a truth all first guesses have been computed, for their scores.
    baseline = drawn.first_guess if truth is None else posterior.problem.first_guess
    if baseline is not None and baseline.shape[-2:] != posterior.samples.shape[-2:]:
        baseline = drawn.operator.frame(baseline)
    images = [
        _panels(y[i], None if baseline is None else baseline[i], posterior, metrics, truth, i, value_range)
        for i in range(shown)
    ]
    if shown == 1:
        panels, top = images[0]
        columns = len(panels) if len(panels) < 4 else math.ceil(len(panels) / 2)
        rows = [(row, top) for row in (panels[:columns], panels[columns:]) if row]
        names = [""] * len(rows)
    else:
        columns = max(len(panels) for panels, _ in images)
        rows = images
        names = [row["name"] for row in metrics["images"][:shown]]
    footers = []
    diverged = sum(row["diverged"] for row in metrics["images"])
    if diverged:
        footers.append(f"{diverged} of {posterior.diverged.numel()} samples diverged and are left out")
    if len(metrics["images"]) > shown:
        footers.append(f"{len(metrics['images']) - shown} more image(s) in samples.npz and metrics.json")
    height, width = posterior.samples.shape[-2:]
    return _lay_out(rows, names, columns, height / width, title, "; ".join(footers), badge)


def _lay_out(
    rows: Sequence[tuple[Sequence[Panel], float]],
    names: Sequence[str],
    columns: int,
    aspect: float,
    title: str,
    footer: str,
    badge: tuple[str, bool] | None,
) -> "Figure":
    from matplotlib.figure import Figure

    side = _SIDE if any(names) else _SIDE_ALONE
    width, height = side * min(1, 1 / aspect), side * min(1, aspect)
    slot = max(width, _NARROWEST)
    left = _GAP + (_NAME if any(names) else 0)
    total_width = left + columns * (slot + _GAP) + _BAR_SPACE
    head = _TITLE + (0 if badge is None else _BADGE)
    total_height = head + len(rows) * (_HEADING + height + _GAP) + (_FOOTER if footer else 0)
    figure = Figure(figsize=(total_width, total_height))

    def axes(x: float, y: float, w: float, h: float) -> "Axes":
        """A box given in inches from the left upper corner."""
        return figure.add_axes((x / total_width, 1 - (y + h) / total_height, w / total_width, h / total_height))

    y = head
    for (panels, top), name in zip(rows, names, strict=True):
        y += _HEADING
        if name:
            figure.text(
                (_GAP + 0.1) / total_width,
                1 - (y + height / 2) / total_height,
                _plain(_shortened(name, int(height * 13))),
                rotation=90,
                ha="center",
                va="center",
                fontsize=9,
            )
        for column, panel in enumerate(panels):
            x = left + column * (slot + _GAP)
            axis = axes(x + (slot - width) / 2, y, width, height)
            axis.axis("off")
            panel.draw(axis)
            # Two lines of a fixed height: headings stay level where only some panels have a score.
            axis.annotate(panel.heading, (0.5, 1), (0, 16), textcoords="offset points", **_ABOVE, fontsize=10)
            axis.annotate(panel.line, (0.5, 1), (0, 3), textcoords="offset points", **_ABOVE, fontsize=9, color="0.35")
        last = len(panels) - 1
        if panels and panels[last].is_map:
            beside = left + last * (slot + _GAP) + (slot + width) / 2 + 0.08
            bar = axes(beside, y, _BAR, height)
            bar.imshow(
                np.linspace(1, 0, 256)[:, None], cmap="magma", aspect="auto", extent=(0, 1, 0, top), vmin=0, vmax=1
            )
            bar.set_xticks([])
            bar.yaxis.tick_right()
            bar.tick_params(labelsize=8)
        y += height + _GAP
    words, severe = badge or ("", False)
    plain: dict[str, Any] = {}
    for text, inches, size, style in (
        (title, total_height - 0.22, 11.0, plain),
        (words, total_height - 0.22 - _BADGE, 11.0, {"color": "#c00000" if severe else "#b06000", "weight": "bold"}),
        (footer, 0.15, 9.0, plain),
    ):
        fitting = min(size, 130 * total_width / max(len(text), 1))  # a letter is about half as wide as high
        figure.text(0.5, inches / total_height, _plain(text), ha="center", va="center", fontsize=fitting, **style)
    return figure


_ABOVE: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center", "va": "bottom", "annotation_clip": False}


def _plain(text: str) -> str:
    """The text with its dollar signs escaped: matplotlib sets text between them as a formula."""
    return text.replace("$", r"\$")


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _panels(
    y: Tensor,
    baseline: Tensor | None,
    posterior: Posterior,
    metrics: dict[str, Any],
    truth: Tensor | None,
    i: int,
    value_range: tuple[float, float],
) -> tuple[list[Panel], float]:
    """The panels of one image, maps last, and the top of their colour scale."""
    scores = metrics["images"][i]
    samples = posterior.samples[i]
    kept = [s for s in range(len(samples)) if not posterior.diverged[i, s]]
    averaged = "samples" if posterior.mean is posterior.mean_of_samples else "conditional means"
    mean = samples[kept[0]] if len(kept) == 1 else posterior.mean[i]  # the error is that of the image beside it
    maps = {}
    if len(kept) > 1:
        maps["Standard deviation"] = rms(posterior.std[i])
    if kept and truth is not None:
        maps["Error of the mean" if len(kept) > 1 else "Error"] = rms(mean - truth[i])
    top = max([brightest(values) for values in maps.values()], default=1.0)
    scales = _Scales(*value_range, top)

    panels = [] if truth is None else [Panel("Truth", "", _picture(truth[i], scales))]
    same = baseline is not None and torch.equal(baseline, y)
    baseline_psnr = _decibels(scores["baseline_psnr"])
    panels.append(_measurement(y, baseline_psnr if same else "", scales))
    if baseline is not None and not same:
        panels.append(Panel("First guess", baseline_psnr, _picture(baseline, scales)))
    if not kept:
        panels.append(Panel("", "", _words("every sample\ndiverged")))
        return panels, top
    average = _decibels(scores["psnr"])
    if len(kept) == 1:
        panels.append(Panel("Posterior sample", average, _picture(samples[kept[0]], scales)))
    else:
        # A second sample where the two rows of a single image would end with a hole.
        fixed = len(panels) + 1 + len(maps)
        count = 1 if len(metrics["images"]) > 1 or fixed % 2 else 2
        for n, s in enumerate(kept[:count]):
            heading = "Posterior sample" if count == 1 else f"Posterior sample {n + 1}"
            panels.append(Panel(heading, average and f"{average} on average", _picture(samples[s], scales)))
        panels.append(Panel(f"Mean of {len(kept)} {averaged}", _decibels(scores["psnr_mean"]), _picture(mean, scales)))
    panels += [Panel(name, "image units", _map(values, scales), is_map=True) for name, values in maps.items()]
    return panels, top


def brightest(values: Tensor) -> float:
    """The value of the brightest colour: the 99.5 % quantile, so that a few outliers do not darken the rest."""
    return max(float(np.quantile(values.numpy(), 0.995)), 1e-6)


def _decibels(psnr: float | None) -> str:
    return "" if psnr is None else f"{psnr:.1f} dB"


def _picture(image: Tensor, scales: _Scales) -> Draw:
    def draw(axis: "Axes") -> None:
        pixels = ((image - scales.low) / (scales.high - scales.low)).nan_to_num().clamp(0, 1).permute(1, 2, 0).numpy()
        axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)

    return draw


def _map(values: Tensor, scales: _Scales) -> Draw:
    def draw(axis: "Axes") -> None:
        axis.imshow(values.numpy(), cmap="magma", vmin=0, vmax=scales.top)

    return draw


def _measurement(y: Tensor, line: str, scales: _Scales) -> Panel:
    """A measurement (...) as a picture if it is one, else as a grey plane; complex numbers by their magnitude."""
    if is_picture(y, (scales.low, scales.high)):
        return Panel("Measurement", line and f"first guess: {line}", _picture(y, scales))
    values = plane(y)
    shape = "x".join(map(str, y.shape))

    def draw(axis: "Axes") -> None:
        axis.imshow(values.numpy(), cmap="gray", aspect="auto")

    return Panel("Measurement", f"{shape}, log magnitude" if y.is_complex() else shape, draw)


def _words(text: str) -> Draw:
    def draw(axis: "Axes") -> None:
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)

    return draw


def save_figure(figure: "Figure", path: Path | BinaryIO) -> None:
    with written_atomically(path, durable=False) if isinstance(path, Path) else nullcontext(path) as file:
        figure.savefig(file, dpi=150, facecolor="white", format="png")


def save_map(values: Tensor, path: Path | BinaryIO) -> float:
    """A map (H, W) in false colours, black is 0; returns the value of the brightest colour."""
    from matplotlib.image import imsave

    top = brightest(values)
    imsave(path, values.numpy(), cmap="magma", vmin=0, vmax=top, format="png")
    return top


def thumbnails(images: Tensor, path: Path | BinaryIO, columns: int) -> None:
    """A plain grid of (N, C, H, W) images in [0, 1], without labels; black where the last row ends early."""
    from invdiff.io import write_image

    count, channels, height, width = images.shape
    blank = images.new_zeros(-count % columns, channels, height, width)
    grid = torch.cat([images, blank]).unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)
    write_image(path, grid.reshape(channels, -1, columns * width))
