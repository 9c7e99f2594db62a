"""Reconstructions of signals, images (C, 1, N), as curves with bands, beside measurements with predictive bands."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.posterior import Posterior
from invdiff.streams import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8
LEVELS = (0.05, 0.25, 0.75, 0.95)  # of the bands of 90 and 50 %
SEED = 0  # of the noise in predictions


def are_signals(images: Tensor) -> bool:
    """True for images (..., 1, N)."""
    return images.shape[-2] == 1 and images.shape[-1] > 1


def curves(
    posterior: Posterior, names: list[str], truth: Tensor | None, *, title: str, badge: tuple[str, bool] | None = None
) -> "Figure":
    """A row for each of at most `MOST_ROWS` signals: it with its bands, the measurement with predictive ones.

    A predictive band holds new measurements of the posterior, noise included: y inside it is explained.

    truth  (B, C, 1, N) where it is known
    badge  a line under the title, red where it is severe
    """
    from matplotlib.figure import Figure

    shown = min(len(names), MOST_ROWS)
    figure = Figure(figsize=(11, 0.9 + 2.4 * shown), layout="constrained")
    rows: Any = figure.subplots(shown, 2, squeeze=False)
    for i, (left, right) in enumerate(rows):
        kept = posterior.samples[i][~posterior.diverged[i]]
        _draw(left, kept.flatten(1), None if truth is None else truth[i].flatten(), "truth", "-")
        left.set_title(f"{names[i]}: mean of {len(kept)} samples, bands of 50 and 90 %", fontsize=9)
        _draw(right, predicted(posterior, i, kept), _real(posterior.problem.y[i].cpu()), "measured", ".")
        right.set_title("measurement, bands of what would be measured", fontsize=9)
    figure.suptitle(title if badge is None else f"{title}\n{badge[0]}", color=_colour(badge), fontsize=10)
    return figure


def predicted(posterior: Posterior, i: int, samples: Tensor) -> Tensor:
    """New measurements of image i if it were each of these samples (S, C, H, W), with noise, as real numbers (S, M)."""
    problem = posterior.problem
    rows = problem.select(torch.full((len(samples),), i))
    with torch.no_grad():
        clean = rows.operator(samples.to(problem.y.device))
        streams = [generator(SEED, "measure", s) for s in range(len(samples))]
        return _real(rows.noise.sample(clean, streams).cpu(), rows=True)


def _real(y: Tensor, *, rows: bool = False) -> Tensor:
    real = torch.view_as_real(y) if y.is_complex() else y
    return real.flatten(1) if rows else real.flatten()


def _draw(axes: "Axes", samples: Tensor, given: Tensor | None, label: str, mark: str) -> None:
    x = range(samples.shape[1])
    if len(samples) > 1:
        bands = samples.double().quantile(torch.tensor(LEVELS, dtype=torch.float64), 0)
        axes.fill_between(x, bands[0], bands[3], color="#3b6ea8", alpha=0.2, linewidth=0)
        axes.fill_between(x, bands[1], bands[2], color="#3b6ea8", alpha=0.35, linewidth=0)
    if len(samples):
        axes.plot(x, samples.mean(0), color="#1f4e79", linewidth=1, label="mean")
    if given is not None:
        axes.plot(range(len(given)), given, mark, color="#c04000", linewidth=1, markersize=3, label=label)
    axes.legend(fontsize=7, loc="upper right")
    axes.tick_params(labelsize=7)


def _colour(badge: tuple[str, bool] | None) -> str:
    return "#b00020" if badge is not None and badge[1] else "black"
