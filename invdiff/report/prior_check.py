"""The check of a prior as JSON, as a table, and as a picture with its denoising curve and its samples."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff.contracts.prior_figures import CallCost, Level
from invdiff.contracts.prior_report import PriorReport
from invdiff.report.comparison import save_figure
from invdiff.scores.metrics import for_json
from invdiff.shapes import describe_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["picture", "save_figure"]

MOST_COLUMNS = 8


def as_json(found: PriorReport) -> dict[str, Any]:
    prior = found.prior
    return {
        "prior": type(prior).__name__,
        "shape": prior.shape,
        "channels": prior.channels,
        "sigma_range": [for_json(s) for s in prior.sigma_range],
        "value_range": list(prior.value_range),
        "differentiable": prior.differentiable,
        "images": list(found.names),
        "levels": [{key: for_json(value) for key, value in asdict(level).items()} for level in found.levels],
        "readings": {words: for_json(psnr) for words, psnr in found.readings.items()},
        "cost": None if found.cost is None else asdict(found.cost),
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
    }


def levels_table(found: PriorReport, shape: tuple[int, ...]) -> Table:
    """PSNR before and after one call, at each noise level."""
    names = ", ".join(found.names[:4])
    title = f"{type(found.prior).__name__} on {len(found.names)} image(s) of {describe_shape(shape)}: {names}"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("sigma", "noisy", "denoised", "gain", "error", "outside"):
        table.add_column(heading, justify="right")
    for level in found.levels:
        gain = level.denoised - level.noisy
        cells = (f"{level.sigma:.3g}", _db(level.noisy), _db(level.denoised), _db(gain, "+"), f"{level.kept:.2f}")
        style = "" if gain > 0 else "bold red"
        table.add_row(*(Text(cell, style) for cell in (*cells, f"{100 * level.outside:.1f} %")))
    return table


def _db(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f} dB" if math.isfinite(value) else str(value)


def cost_in_words(cost: CallCost, device: torch.device) -> str:
    vjp = "no VJP" if cost.vjp is None else f"a VJP {1000 * cost.vjp:.1f} ms"
    return (
        f"one image takes {1000 * cost.forward:.1f} ms a call, {vjp}, on {device}; {cost.parameters / 1e6:.2f} million "
        f"parameters, peak memory {cost.peak_memory_mb:.0f} MB"
    )


def picture(
    levels: Sequence[Level],
    clean: Tensor,
    pictures: Sequence[tuple[float, Tensor, Tensor]],
    samples: Tensor | None,
    value_range: tuple[float, float],
    title: str,
) -> "Figure":
    """A labelled figure.

    clean     (C, H, W)
    pictures  sigma, the noisy image and the estimate, each (C, H, W)
    samples   (N, C, H, W) or None
    """
    from matplotlib.figure import Figure

    shown = pictures[:MOST_COLUMNS]
    drawn = None if samples is None else samples[:MOST_COLUMNS]
    columns = max(len(shown) + 1, 0 if drawn is None else len(drawn), 4)
    rows = 2 + (drawn is not None)
    figure = Figure(figsize=(1.5 * columns + 0.4, 3.2 + 1.7 * rows), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.8, *[1] * rows])
    _curve(figure.add_subplot(grid[0, :]), levels)
    cells = [figure.add_subplot(grid[1 + row, column]) for row in range(rows) for column in range(columns)]
    for cell in cells:
        cell.set_axis_off()
    _show(cells[0], clean, value_range, "clean")
    for i, (sigma, noisy, estimate) in enumerate(shown, start=1):
        _show(cells[i], noisy, value_range, f"sigma {sigma:.3g}")
        _show(cells[columns + i], estimate, value_range, "denoised" if i == 1 else "")
    if drawn is not None:
        for i, sample in enumerate(drawn):
            _show(cells[2 * columns + i], sample, value_range, "its own samples" if i == 0 else "")
    return figure


def _curve(axis: "Axes", levels: Sequence[Level]) -> None:
    sigmas = [level.sigma for level in levels]
    axis.plot(sigmas, [level.noisy for level in levels], "o--", color="0.6", label="noisy")
    axis.plot(sigmas, [level.denoised for level in levels], "o-", label="denoised, one call")
    axis.set(xscale="log", xlabel="sigma (image units)", ylabel="PSNR (dB)")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _show(axis: "Axes", image: Tensor, value_range: tuple[float, float], heading: str) -> None:
    low, high = value_range
    unit = torch.where(image.isfinite(), (image - low) / (high - low), 0).clamp(0, 1).permute(1, 2, 0).numpy()
    # Two channels, or more than three, have no colours: the first one stands for all.
    axis.imshow(unit if unit.shape[-1] == 3 else unit[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_title(heading, fontsize=8)
