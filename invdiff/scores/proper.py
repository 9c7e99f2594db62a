"""Proper scores of the samples of one image: energy score, CRPS, and the ratio of spread to error.

Energy score   E|X - t| - E|X - X'| / 2, of whole images: Gneiting & Raftery, JASA 2007. Its expectation over truths t
               is least where X has the law of t, so neither collapse nor inflation pays.
CRPS           the same of every pixel, averaged: it sees the law of single pixels alone.
Fair           E|X - X'| is estimated from pairs of different samples: Ferro, QJRMS 2014. The expectation of both scores
               does not depend on the number of samples S, so that runs of different S may be compared; their scatter
               falls with S. With the mean over all pairs, i = j included, few samples would score worse than many.
Spread, error  the mean of S exact samples has the squared error (1 + 1/S) times the posterior variance: the spread is
               multiplied by the root of that, so that the ratio of an exact sampler is 1 at every S.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.scores.points import Estimate, jackknife

PROPER = ("energy", "crps", "spread_error")  # as `metrics.json` and the benchmark name them
FEWEST = 4  # samples: with 2 or 3 the scores are unbiased, but scatter too much to rank by


def missing_proper(num_samples: int) -> str | None:
    """What is wrong with proper scores of so many samples; None for `FEWEST` and more."""
    if num_samples < 2:
        return "needs num_samples >= 2"
    return None if num_samples >= FEWEST else f"noisy: of {num_samples} samples, num_samples >= {FEWEST} is advised"


def energy_score(samples: Tensor, truth: Tensor) -> float | None:
    """Fair energy score of samples (S, ...) for the truth (...), over the root of the number of entries: image units.

    None for fewer than two samples; it may be negative.
    """
    if len(samples) < 2:
        return None
    x, t = _flat(samples, truth)
    value = (x - t).norm(dim=1).mean() - torch.pdist(x).mean() / 2
    return float(value) / math.sqrt(t.numel())


def crps(samples: Tensor, truth: Tensor) -> float | None:
    """Fair CRPS of every entry, averaged, image units; arguments and None as of `energy_score`."""
    count = len(samples)
    if count < 2:
        return None
    x, t = _flat(samples, truth)
    rank = torch.arange(count).to(x)[:, None]
    # Sorted, sum over pairs |x_i - x_j| is a sum of the values times how many lie below minus how many above.
    pairs = ((2 * rank - count + 1) * x.sort(0).values).sum(0) / (count * (count - 1) / 2)
    return float(((x - t).abs().mean(0) - pairs / 2).mean())


def spread_and_error(samples: Tensor, truth: Tensor) -> tuple[float, float] | None:
    """Root mean squares over the entries, image units: of the std times sqrt(1 + 1/S), and of mean - truth.

    None for fewer than two samples. Their ratio is 1 in expectation for exact samples; of several images, `pooled`.
    """
    count = len(samples)
    if count < 2:
        return None
    x, t = _flat(samples, truth)
    spread = (x.var(0).mean() * (1 + 1 / count)).sqrt()
    return float(spread), float((x.mean(0) - t).square().mean().sqrt())


def pooled(ratios: Sequence[float | None], errors: Sequence[float | None]) -> Estimate | None:
    """Spread / error of several images from the ratio and the error of each: root mean squares over all images.

    The standard error is the jackknife's over images, NaN for one. None where no image has a ratio: a mean of ratios
    would be biased, and one easy image could rule it.
    """
    pairs = [
        ((r * e) ** 2, e**2)
        for r, e in zip(ratios, errors, strict=True)
        if r is not None and e is not None and math.isfinite(r) and math.isfinite(e)
    ]
    known = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
    total = known.sum(0)
    if not len(known) or not total[1] > 0:
        return None
    value = float((total[0] / total[1]).sqrt())
    if len(known) == 1:
        return Estimate(value, math.nan)
    left = (total - known).unbind(1)
    return Estimate(value, jackknife((left[0] / left[1]).sqrt().tolist()))


def _flat(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(S, n) and (n,) in float64: differences of nearly equal distances."""
    if samples.shape[1:] != truth.shape:
        raise ValueError(
            f"proper scores: samples must be (S, ...) of a truth (...), got {tuple(samples.shape)} "
            f"and {tuple(truth.shape)}"
        )
    return samples.flatten(1).double(), truth.flatten().double()
