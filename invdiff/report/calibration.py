"""One picture of a calibration: rank histograms, coverage of intervals, and TARP."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from invdiff.correction import Correction
from invdiff.report.comparison import _plain
from invdiff.scores.calibration import Calibration

# matplotlib and scipy are imported where something is drawn: they are slow to import.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = ("pixel", "mean intensity", "projection", "log-likelihood")
_DATA, _BAND = "#3b6ea5", "0.88"


def calibration_figure(calibration: Calibration, *, title: str) -> "Figure":
    """Rank histograms, coverage of the pixels' intervals, and TARP.

    For a right sampler, 95% of the bars lie in the grey bands, and the diagonal in the blue ones. Of the pixels and of
    the projections the one with the least uniform ranks is shown, with p-value and band corrected for that choice.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.6))
    grid = figure.add_gridspec(
        2, 4, width_ratios=(1, 1, 1.4, 1.4), left=0.035, right=0.985, bottom=0.13, top=0.8, wspace=0.28, hspace=0.62
    )
    p_values = calibration.kolmogorov_smirnov()
    for place, kind in enumerate(_KINDS):
        group = [f for f, name in enumerate(calibration.names) if name.startswith(kind)]
        worst = min(group, key=lambda f: float(p_values[f]))
        _histogram(
            figure.add_subplot(grid[place // 2, place % 2]),
            calibration,
            worst,
            len(group),
            min(1.0, len(group) * float(p_values[worst])),
        )
    _coverage(figure.add_subplot(grid[:, 2]), calibration)
    _tarp(figure.add_subplot(grid[:, 3]), calibration)
    drawn = f"{calibration.images} truths, {calibration.num_samples} samples each"
    if calibration.diverged:
        drawn += f"; {calibration.diverged} samples diverged and are left out"
    for text, height, size in ((title, 0.955, 11.0), (drawn, 0.9, 9.0)):
        fitting = min(size, 130 * 12.0 / max(len(text), 1))  # a letter is about half as wide as high
        figure.text(0.5, height, _plain(text), ha="center", va="center", fontsize=fitting)
    return figure


def largest_effect(calibration: Calibration, correction: Correction | None) -> str:
    """The largest departure from calibration in words, with its error: of all that exceed three standard errors."""
    found = [effect for effect in _effects(calibration, correction) if effect[0] > 3 * effect[1]]
    return max(found)[2] if found else "no effect exceeds three times its error"


def _effects(calibration: Calibration, correction: Correction | None) -> Iterator[tuple[float, float, str]]:
    """Departures as differences of probabilities, each with its standard error and in words."""
    levels = [] if correction is None else [(correction.pixels, "intervals", "of the pixels")]
    levels += [] if correction is None else [(correction.balls, "balls about random points", "of the truths")]
    for known, what, whose in levels:
        assert correction is not None  # else there are no levels
        covered, error = known[0.9].before
        size, own = max((abs(found.before[0] - level), found.before[1]) for level, found in known.items())
        factor = correction.spread if known is correction.pixels else (known[0.9].factor, known[0.9].error)
        narrow = "narrow" if sum(found.before[0] - level for level, found in known.items()) < 0 else "wide"
        words = f"{what} are too {narrow}: 90 % ones hold {100 * covered:.1f} ± {100 * error:.1f} % {whose}; "
        yield size, own, f"{words}multiply the spread by {factor[0]:.2f} ± {factor[1]:.2f}"
    values = calibration.uniform[calibration.kept > 0]
    error = math.sqrt(1 / 12 / len(values))
    for name, rank in zip(calibration.names, values.mean(0).tolist(), strict=True):
        words = f"mean rank {rank:.2f} ± {error:.2f}, 0.5 is right"
        if name == "log-likelihood":
            closely = "less" if rank > 0.5 else "more"
            words = f"samples fit the measurement {closely} closely than the truth, whose likelihood has {words}"
        else:
            words = f"samples are shifted {'down' if rank > 0.5 else 'up'}: the truth's {name} has {words}"
        yield abs(rank - 0.5), error, words


def _histogram(axis: "Axes", calibration: Calibration, quantity: int, candidates: int, p_value: float) -> None:
    from scipy.stats import binom

    bins, images = calibration.bins, calibration.images
    tail = 0.025 / candidates
    low, high = (float(binom.ppf(q, images, 1 / bins)) for q in (tail, 1 - tail))
    axis.axhspan(low, high, color=_BAND, lw=0)
    axis.bar(
        [(k + 0.5) / bins for k in range(bins)],
        calibration.counts(quantity).tolist(),
        width=0.92 / bins,
        color=_DATA,
    )
    axis.axhline(images / bins, color="0.6", lw=0.8)
    worst = f", worst of {candidates}" if candidates > 1 else ""
    axis.set_title(f"{calibration.names[quantity]}{worst}\n{_p(p_value)}", fontsize=9, color="0.2")
    axis.set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(0, None))
    axis.tick_params(labelsize=8)
    axis.set_xlabel("rank of the truth", fontsize=8, labelpad=1)


def _coverage(axis: "Axes", calibration: Calibration) -> None:
    levels = calibration.levels.tolist()
    coverage, error = calibration.coverage, 1.96 * calibration.coverage_error
    _diagonal(axis)
    axis.fill_between(levels, (coverage - error).tolist(), (coverage + error).tolist(), color=_DATA, alpha=0.25, lw=0)
    axis.plot(levels, coverage.tolist(), color=_DATA, marker="o", ms=3, lw=1.2)
    at = min(range(len(levels)), key=lambda k: abs(levels[k] - 0.9))
    axis.set_title(
        f"Coverage of the pixels' intervals\n{levels[at]:.0%} hold {float(coverage[at]):.0%}", fontsize=9, color="0.2"
    )
    axis.set_xlabel("nominal level", fontsize=8)


def _tarp(axis: "Axes", calibration: Calibration) -> None:
    levels = calibration.levels.tolist()
    low, high = calibration.tarp_band.tolist()
    _diagonal(axis)
    axis.fill_between(levels, low, high, color=_DATA, alpha=0.25, lw=0)
    axis.plot(levels, calibration.tarp.tolist(), color=_DATA, marker="o", ms=3, lw=1.2)
    axis.set_title(
        f"Balls about random points (TARP)\n{_p(calibration.summary()['tarp']['ks'])}", fontsize=9, color="0.2"
    )
    axis.set_xlabel("nominal level", fontsize=8)


def _diagonal(axis: "Axes") -> None:
    axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.tick_params(labelsize=8)


def _p(value: float) -> str:
    """A p-value for a heading."""
    if not value >= 0.001:
        return "p < 0.001" if math.isfinite(value) else "no p-value"
    return f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"
