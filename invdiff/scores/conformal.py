"""Factors that make intervals hold what they state, found on true images and tried on others.

The parts of one image are dependent: images, not pixels, are resampled, and left out where a factor is tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from invdiff.correction import Correction, Level
from invdiff.streams import generator

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
PIXELS = 1024  # of each image; those of one image are much alike
FLOORS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # times the root mean square error
FACTORS = torch.logspace(-1, 1.3, 231, dtype=torch.float64)  # of balls: 0.1 to 20
FEWEST = 20
AS_DRAWN = 100  # the index of 1
FOLDS, BOOTSTRAPS = 5, 500
BLACK = 0.02  # of the value range: five grey levels of 255, noise of scanners and of compressed pictures
_BOOTSTRAP = 6  # stream, apart from those of `invdiff.scores.calibration`


@dataclass(frozen=True, eq=False)
class Errors:
    """What the correction is found from, of one image or, stacked, of n of them; float64, NaN where there is none.

    error, std  (P,) of pixels that are no background, at random: |truth - mean|, and that of the samples
    balls       (R, G) rank of the truth's distance to random points, as numbers in (0, 1), uniform if the sampler is
                right; with samples moved away from their mean by `FACTORS`
    squares     (2,) mean square of error and std over all pixels
    background  share of the pixels
    """

    error: Tensor
    std: Tensor
    balls: Tensor
    squares: Tensor
    background: Tensor


def background_of(truth: Tensor, value_range: tuple[float, float]) -> Tensor:
    """(B, C, H, W) bool: pixels of true images that are black, as are the 3x3 around them: nothing is to be seen there.

    Chosen by the truth and not by the samples: the same pixels for every sampler, one whose samples are noisy included.
    """
    low, high = value_range
    return max_pool2d(truth, 3, 1, 1) < low + BLACK * (high - low)


def errors_of(
    truth: Tensor,
    samples: Tensor,
    background: Tensor,
    points: Tensor,
    rng: torch.Generator,
) -> Errors:
    """Of one image.

    truth       (C, H, W)
    samples     (L, C, H, W), L >= 2
    background  (C, H, W) bool
    points      (R, C, H, W), centres of balls
    rng         which pixels, and where in its step a rank lies
    """
    truth, samples, points = truth.double().flatten(), samples.double().flatten(1), points.double().flatten(1)
    chosen = (~background.flatten()).nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=rng)[:PIXELS]]
    mean, count = samples.mean(0), len(samples)
    every = torch.stack([(truth - mean).abs(), samples.std(0)])
    pixels = torch.full((2, PIXELS), torch.nan, dtype=torch.float64)
    pixels[:, : len(chosen)] = every[:, chosen]
    # |mean + g (x - mean) - point|^2, of all samples (L), points (R) and factors g (G) at once.
    moved, away = samples - mean, mean - points
    cross, own = (moved @ away.mT)[..., None], moved.square().sum(1)[:, None, None]
    squares = away.square().sum(1)[:, None] + 2 * FACTORS * cross + FACTORS**2 * own
    nearer = (squares < (truth - points).square().sum(1)[:, None]).sum(0)
    balls = (nearer + torch.rand(len(points), 1, generator=rng, dtype=torch.float64)) / (count + 1)
    return Errors(pixels[0], pixels[1], balls, every.square().mean(1), background.double().mean())


def correct(found: Sequence[Errors], num_samples: int, seed: int, **about: Any) -> Correction:
    """The correction of a sampler's intervals from its errors on some images, and its coverage with and without it.

    found  of 20 images or more
    about  key, truths, drawn and shape of the `Correction`

    Coverage after the correction is that of each fifth of the images with the factors of the others; the factors that
    are stated are those of all. Raises ValueError for fewer images, and where all samples are equal.
    """
    if len(found) < FEWEST:
        raise ValueError(f"calibration: a correction of intervals needs {FEWEST} images or more, got {len(found)}")
    from scipy.stats import t  # slow to import

    e, n = _stacked(found), len(found)
    if not bool((e.std > 0).any()):
        raise ValueError(
            "calibration: intervals cannot be corrected: every pixel is background, or all samples of it are equal"
        )
    parts = [torch.arange(n) % FOLDS == fold for fold in range(FOLDS)]
    widths = [_widths(e.error[~part], e.std[~part]) for part in parts]
    floor, factors = _widths(e.error, e.std)
    again = torch.randint(n, (BOOTSTRAPS, n), generator=generator(seed, "generate", 0, _BOOTSTRAP))
    pixels, balls = {}, {}
    errors = _bootstrap(_ratio(e.error, e.std, floor), again)
    for k, level in enumerate(LEVELS):
        corrected, held = torch.empty_like(e.error), _held(e.balls, level)
        in_ball = torch.empty(n, dtype=torch.float64)
        for part, (own, found_there) in zip(parts, widths, strict=True):
            corrected[part] = (_ratio(e.error[part], e.std[part], own) <= found_there[k]).double()
            in_ball[part] = held[part, _ball(held[~part], level)]
        exact = float(t.ppf((1 + level) / 2, num_samples - 1)) * math.sqrt(1 + 1 / num_samples)
        before = (_ratio(e.error, e.std, 0.0) <= exact).double()
        pixels[level] = Level(factors[k], errors[k], _covered(before, e.error), _covered(corrected, e.error))
        resampled = FACTORS[[_ball(held[rows], level) for rows in again]]
        balls[level] = Level(
            float(FACTORS[_ball(held, level)]),
            float(resampled.std()),
            _mean(held[:, AS_DRAWN]),
            _mean(in_ball),
        )
    return Correction(
        images=n,
        background=float(e.background.mean()),
        floor=floor,
        spread=_spread(e, again, num_samples),
        pixels=pixels,
        balls=balls,
        **about,
    )


def tried(correction: Correction, found: Sequence[Errors]) -> dict[str, tuple[float, float]]:
    """Coverage of corrected intervals, "pixels 0.90", and balls, "balls 0.90", on other images, each with its error.

    Errors are standard errors over images.
    """
    e = _stacked(found)
    ratio = _ratio(e.error, e.std, correction.floor)
    shares = {
        f"pixels {level:.2f}": _covered((ratio <= known.factor).double(), e.error)
        for level, known in correction.pixels.items()
    }
    for level, known in correction.balls.items():
        shares[f"balls {level:.2f}"] = _mean(_held(e.balls, level)[:, int((FACTORS - known.factor).abs().argmin())])
    return shares


def _stacked(found: Sequence[Errors]) -> Errors:
    return Errors(*(torch.stack([getattr(one, field.name) for one in found]) for field in fields(Errors)))


def _ratio(error: Tensor, std: Tensor, floor: float) -> Tensor:
    """Errors in units of the spread; 0 where both are 0."""
    return torch.where(error == 0, 0.0, error / (std.square() + floor**2).sqrt()).where(~error.isnan(), torch.nan)


def _widths(error: Tensor, std: Tensor) -> tuple[float, list[float]]:
    """The floor with the best intervals, and the factor of each level with it.

    Best by the interval score: width + 2 / (1 - level) times the distance by which the truth is outside, summed over
    the levels; it is proper (Gneiting & Raftery, JASA 2007, section 6.2).
    """
    there = ~error.isnan()
    error, std = error[there], std[there]
    scale = float(error.square().mean().sqrt())
    best: tuple[float, float, list[float]] | None = None
    for floor in FLOORS:
        width = (std.square() + (floor * scale) ** 2).sqrt()
        ratio = _ratio(error, std, floor * scale)
        if not ratio.isfinite().all():
            continue  # samples that agree on what is not true: no factor widens them
        factors, score = _quantiles(ratio), 0.0
        for level, factor in zip(LEVELS, factors, strict=True):
            half = factor * width
            score += float((2 * half + 2 / (1 - level) * (error - half).clamp(min=0)).mean())
        if best is None or score < best[0]:
            best = score, floor * scale, factors
    assert best is not None  # the other floors are > 0 unless all errors are 0, and then every ratio is 0
    return best[1], best[2]


def _quantiles(ratio: Tensor) -> list[float]:
    """Of each level: the number that this share of the ratios (N,) does not exceed."""
    ordered = ratio.sort().values
    return [float(ordered[min(len(ordered), math.ceil(level * (len(ordered) + 1))) - 1]) for level in LEVELS]


def _bootstrap(ratio: Tensor, again: Tensor) -> list[float]:
    """Standard error of each level's quantile of ratios (n, P) over resampled images, (R, n) indices."""
    pooled = ratio[~ratio.isnan()].sort().values
    grid = pooled[torch.linspace(0, len(pooled) - 1, 2001).long()].contiguous()
    below = torch.stack([torch.searchsorted(row[~row.isnan()].sort().values, grid, right=True) for row in ratio])
    total = (~ratio.isnan()).sum(1)
    times = torch.stack([torch.bincount(rows, minlength=len(ratio)) for rows in again]).double()
    shares = (times @ below.double()) / (times @ total.double())[:, None]
    places = [torch.searchsorted(shares, torch.full((len(again), 1), level).double())[:, 0] for level in LEVELS]
    return [float(grid[place.clamp(max=len(grid) - 1)].std()) for place in places]


def _held(balls: Tensor, level: float) -> Tensor:
    """How often balls of this level hold the truth, over the points: (n, R, G) -> (n, G)."""
    return (balls <= level).double().mean(1)


def _ball(held: Tensor, level: float) -> int:
    """Index of the factor with which balls hold the truth as often as stated: (n, G) -> one of G."""
    off = (held.mean(0) - level).abs()
    best = (off == off.min()).nonzero()[:, 0]
    return int(best[len(best) // 2])


def _spread(e: Errors, again: Tensor, num_samples: int) -> tuple[float, float]:
    """By how much the samples' spread is too small, over all pixels, and its standard error.

    Over all: of an exact sampler, pixels whose truth is no background have a larger error than their samples say.

    Square: the error of the posterior mean over the samples' variance. The mean of S samples adds a part 1 / S of that
    variance to the error, whatever their law.
    """
    error, variance = e.squares.T
    ratio = error[again].sum(1) / variance[again].sum(1)
    factors = (torch.cat([(error.sum() / variance.sum())[None], ratio]) - 1 / num_samples).clamp(min=0).sqrt()
    return float(factors[0]), float(factors[1:].std())


def _covered(inside: Tensor, like: Tensor) -> tuple[float, float]:
    """Share of the pixels (n, P) inside, of those that are not NaN in `like`, and its standard error over images."""
    there = ~like.isnan()
    hits, count = inside.where(there, 0.0).sum(1), there.sum(1)
    share = float(hits.sum() / count.sum())
    return share, float((hits - share * count).square().sum().sqrt() / count.sum())


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over images and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
