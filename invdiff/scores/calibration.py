"""Tests of whether a sampler draws from the posterior, for any prior and without a closed form.

Where the truth is drawn from the prior and measured, truth and exact posterior samples are exchangeable given y: no
statistic distinguishes the truth. Statistics that do measure the error of a sampler.

Ranks       simulation-based calibration: the rank of the truth among the samples, by several scalar quantities, is
            uniform. Talts et al. 2018, arXiv:1804.06788; the log-likelihood of y as a quantity, which sees samples that
            ignore the data, as the others do not: Modrak et al., Bayesian Analysis 2023, arXiv:2211.02383.
Coverage    central credible intervals of every pixel hold the truth with their nominal probability.
TARP        so do credible balls about a random point, of all pixels at once. Lemos et al.,
            ICML 2023, arXiv:2302.03026, Algorithm 2. The random points are draws from the prior.
Ties, ends  every rank r among L samples becomes a number in (0, 1), uniform exactly if the sampler is right: (r + v) /
            (L + 1), v uniform, ties broken at random. So L may be small and differ between images, and no bin or
            interval is wider than another.
Limits      passing is necessary, not sufficient. The sampler is tested under this prior, not the prior. A prior without
            `sample` is sampled by its own ODE, with the error of the ODE's steps.
Images      of the world, in place of draws, test sampler and prior together: what intervals of a reconstruction hold.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.engine.driver import Compute
from invdiff.operators import Noise, Operator, as_operator
from invdiff.priors import Prior
from invdiff.priors.ode import generate
from invdiff.problem import InverseProblem
from invdiff.scores.conformal import Errors, background_of, errors_of
from invdiff.scores.ranking import Quantities, Score, score
from invdiff.streams import Streams, generator, key

if TYPE_CHECKING:
    from invdiff.samplers.base import Sampler

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
ODE_STEPS = 40  # as data=generated
BOOTSTRAPS = 1000
CENTRES = 16  # of balls whose factors are found; the same for all images
BLOCK = 2**25  # pixels of samples held at once: 128 MB

# Streams of the scoring, apart from those of truths, which have no number behind the image's.
_POINT, _CHANCE, _BOOTSTRAP, _PIXELS, _CENTRES = 1, 2, 4, 5, 7


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Result of `calibrate`; n images, F quantities, L levels.

    names           (F,) the quantities that are ranked: pixels, mean intensity, projections, log-likelihood of y
    ranks           (n, F) how many kept samples lie below the truth, 0 to `kept`
    uniform         (n, F) the ranks as numbers in (0, 1), uniform if the sampler is right; NaN where none was kept
    kept            (n,) samples of each image that did not diverge; the others are left out
    num_samples     samples drawn of each image
    levels          (L,) nominal levels of coverage
    covered         (n, L) fraction of the image's pixels inside their central credible interval
    pixel_coverage  (L, C, H, W) fraction of the images in which this pixel is inside
    balls           (n,) the fraction of the samples that are nearer to a random point than the truth is, as `uniform`
    tarp            (L,) how often the truth is inside the ball of this level
    tarp_band       (2, L) 95% bootstrap band of `tarp`, over images
    drawn           truths are draws from the prior, and not images that were given
    exact_truth     they are exact draws (False: drawn by the prior's ODE, or given)
    errors          of the images with two samples or more that did not diverge: what `conformal.correct` takes
    """

    names: tuple[str, ...]
    ranks: Tensor
    uniform: Tensor
    kept: Tensor
    num_samples: int
    levels: Tensor
    covered: Tensor
    pixel_coverage: Tensor
    balls: Tensor
    tarp: Tensor
    tarp_band: Tensor
    drawn: bool
    exact_truth: bool
    errors: tuple[Errors, ...]

    @property
    def images(self) -> int:
        """Images with a sample to score."""
        return int((self.kept > 0).sum())

    @property
    def diverged(self) -> int:
        """Samples that diverged, over all images."""
        return int((self.num_samples - self.kept).sum())

    @property
    def coverage(self) -> Tensor:
        """(L,) how often the pixels are inside their interval, over images and pixels."""
        return self.covered.nanmean(0)

    @property
    def coverage_error(self) -> Tensor:
        """(L,) its standard error: images are independent, the pixels of one are not."""
        return self.covered[self.kept > 0].std(0) / math.sqrt(self.images)

    @property
    def bins(self) -> int:
        """Bins of rank histograms: ten images or more in each, at most 20."""
        return max(2, min(20, self.images // 10))

    def counts(self, quantity: int) -> Tensor:
        """(bins,) histogram of the ranks by this quantity, counts of images."""
        values = self.uniform[self.kept > 0, quantity]
        return torch.bincount((values * self.bins).long().clamp(max=self.bins - 1), minlength=self.bins)

    def chi_square(self) -> Tensor:
        """(F,) p-values of flat histograms, by the chi-square test."""
        from scipy.stats import chisquare

        values = [float(chisquare(self.counts(f).numpy()).pvalue) for f in range(len(self.names))]
        return torch.tensor(values, dtype=torch.float64)

    def kolmogorov_smirnov(self) -> Tensor:
        """(F,) p-values of uniform ranks, by the Kolmogorov-Smirnov test: sees shifts and widths before bins do."""
        values = [_ks(self.uniform[self.kept > 0, f]) for f in range(len(self.names))]
        return torch.tensor(values, dtype=torch.float64)

    def summary(self) -> dict[str, Any]:
        """Numbers for a JSON file.

        p_value   the smallest p-value of all tests (Kolmogorov-Smirnov and chi-square of every quantity, TARP), times
                  their number, at most 1 (Bonferroni): below 0.05 calibration is rejected
        ranks     of every quantity: p-values; `mean`, above 0.5 where samples lie below the truth; `spread`, the root
                  mean square distance from 0.5 over that of uniform ranks: above 1 over-confident (or biased), below 1
                  under-confident
        coverage  by nominal level: coverage and standard error
        tarp      by nominal level: coverage and the ends of the band; p-value
        """
        values = self.uniform[self.kept > 0]
        chi, ks, tarp = self.chi_square(), self.kolmogorov_smirnov(), _ks(self.balls[self.kept > 0])
        tests = [*chi.tolist(), *ks.tolist(), tarp]
        notes = []
        if self.diverged:
            notes.append(f"{self.diverged} of {self.kept.numel() * self.num_samples} samples diverged and are left out")
        if self.images < len(self.kept):
            notes.append(f"of {len(self.kept) - self.images} image(s) every sample diverged: they are left out")
        if self.drawn and not self.exact_truth:
            notes.append("truths are drawn by the prior's ODE, with the error of its steps")
        keys = [f"{level:.2f}" for level in self.levels.tolist()]
        return {
            "p_value": min(1.0, min(tests) * len(tests)),
            "images": self.images,
            "num_samples": self.num_samples,
            "diverged": self.diverged,
            "ranks": {
                name: {
                    "ks": float(ks[f]),
                    "chi_square": float(chi[f]),
                    "mean": float(values[:, f].mean()),
                    "spread": float((values[:, f] - 0.5).square().mean().mul(12).sqrt()),
                }
                for f, name in enumerate(self.names)
            },
            "coverage": {
                key: [float(a), float(b)] for key, a, b in zip(keys, self.coverage, self.coverage_error, strict=True)
            },
            "tarp": {
                "ks": tarp,
                **{key: [float(a), *b.tolist()] for key, a, b in zip(keys, self.tarp, self.tarp_band.T, strict=True)},
            },
            "notes": notes,
        }


def calibrate(
    sampler: "Sampler",
    prior: Prior,
    operator: Any,
    noise: Noise,
    *,
    images: int | Tensor = 200,
    num_samples: int = 20,
    seed: int = 0,
    compute: Compute | None = None,
    image_shape: tuple[int, ...] | None = None,
    resolution: float = 0.0,
) -> Calibration:
    """Draw truths from the prior, or take images, measure them, sample their posteriors, and compare.

    operator     an `Operator`, or what `as_operator` takes; parameters per image: one for each of `images`
    images       truths to draw; the error of every number falls with their root, 200 see a third too narrow. Or the
                 true images themselves, (n, C, H, W), image units
    num_samples  posterior samples of each, which need not be many
    seed         image i depends on (seed, i) alone, whatever the number of images, batches or device
    image_shape  (C, H, W), needed where the prior takes any size
    resolution   image units: pixels are rounded to its multiples before they are ranked, and ties broken at random.
                 0: no rounding. Networks give a constant background small errors, 0.001, which ranks are sensitive to

    Costs images x num_samples samples. Raises ValueError on bad settings and where a quantity is NaN, and what
    `Sampler.sample` raises.
    """
    compute = compute or Compute()
    operator = as_operator(operator)
    given = images if isinstance(images, Tensor) else None
    if given is not None:
        image_shape = tuple(given.shape[1:])
    images = len(images) if isinstance(images, Tensor) else images
    shape = _check(prior, operator, noise, images, num_samples, resolution, image_shape)
    quantities = Quantities(shape, seed, resolution)
    centres = _draw(prior, shape, seed, torch.arange(CENTRES), (_CENTRES,), compute)
    parts, errors = [], []
    size = max(1, BLOCK // (num_samples * math.prod(shape)))
    for index in torch.arange(images).split(size):
        truth = _draw(prior, shape, seed, index, (), compute) if given is None else given[index].float()
        points = _draw(prior, shape, seed, index, (_POINT,), compute)
        problem = _measured(operator.select(index), noise.select(index), truth, seed, index)
        posterior = sampler.sample(
            problem, prior, num_samples=num_samples, seed=seed, first_image=int(index[0]), compute=compute
        )
        facing = posterior.facing(truth)
        background = background_of(truth, prior.value_range)
        for k, i in enumerate(index.tolist()):
            kept = posterior.samples[k, ~posterior.diverged[k]].float()
            one = problem.select(torch.tensor([k]))
            parts.append(score(one, truth[k], kept, points[k], quantities, generator(seed, "generate", i, _CHANCE)))
            if len(kept) > 1:
                rng, moved = generator(seed, "generate", i, _PIXELS), facing.samples[k, ~posterior.diverged[k]]
                errors.append(errors_of(truth[k], moved, background[k], centres, rng))
    exact = given is None and hasattr(prior, "sample")
    return _collect(parts, tuple(errors), quantities.names, num_samples, given is None, exact, seed)


# -- draws -----------------------------------------------------------------------------------------------------


def _check(
    prior: Prior,
    operator: Operator,
    noise: Noise,
    images: int,
    num_samples: int,
    resolution: float,
    image_shape: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """The shape of the images, after what can be wrong."""
    if not images >= 20:
        raise ValueError(f"calibration: images must be >= 20, to test uniformity, got {images}")
    if not num_samples >= 2:
        raise ValueError(f"calibration: num_samples must be >= 2, got {num_samples}")
    if not 0 <= resolution < math.inf:
        raise ValueError(f"calibration: resolution must be >= 0, in image units, got {resolution}")
    shape = image_shape if image_shape is not None else prior.shape
    if shape is None:
        raise ValueError("calibration: image_shape=(C, H, W) is required, as this prior takes images of any size")
    reason = prior.mismatch(tuple(shape)) or operator.mismatch(tuple(shape))
    if reason is not None:
        raise ValueError(f"calibration: {reason}")
    for name, part in (("operator", operator), ("noise", noise)):
        if part.images not in (1, images):
            raise ValueError(
                f"calibration: the {name} has parameters for {part.images} images; give one set for all, or {images}"
            )
    if prior.shape is None and hasattr(prior, "sample"):
        raise ValueError(f"calibration: {type(prior).__name__} has `sample`, so it must have a shape")
    return tuple(shape)


def _draw(
    prior: Prior, shape: tuple[int, ...], seed: int, index: Tensor, purpose: tuple[int, ...], compute: Compute
) -> Tensor:
    """Images of the prior, (b, C, H, W) float32 on the CPU, each from its own stream."""
    with torch.no_grad():
        if hasattr(prior, "sample"):
            sample: Callable[[int, torch.Generator], Tensor] = prior.sample  # type: ignore[assignment]
            draws = [sample(1, generator(seed, "generate", int(i), *purpose)) for i in index]
            return torch.cat(draws).cpu().float()
        device = compute.resolve_device()
        rows = len(index) if compute.max_rows is None else compute.max_rows
        keys = [key(seed, "generate", int(i), *purpose) for i in index]
        streams = Streams(keys, prior.diffusion_shape(shape), device)
        noise = streams.normal().split(min(rows, 64))
        # Not clamped to the value range, as pictures are: the law of the prior is what is compared with.
        return torch.cat([generate(prior.to(device), z, steps=ODE_STEPS).cpu() for z in noise])


def _measured(operator: Operator, noise: Noise, truth: Tensor, seed: int, index: Tensor) -> InverseProblem:
    with torch.no_grad():
        clean = operator(truth)
    observed = operator.measured(tuple(clean.shape[1:]))
    y = noise.sample(clean, [generator(seed, "measure", int(i)) for i in index], observed)
    return InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:]))


# -- results ----------------------------------------------------------------------------------------------------------


def _collect(
    parts: list[Score],
    errors: tuple[Errors, ...],
    names: tuple[str, ...],
    num_samples: int,
    drawn: bool,
    exact: bool,
    seed: int,
) -> Calibration:
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    kept = torch.tensor([part.kept for part in parts])
    if not kept.any():
        raise ValueError(f"calibration: all {len(parts) * num_samples} samples diverged")
    balls = torch.tensor([part.ball for part in parts], dtype=torch.float64)
    found = [part.pixels for part in parts if part.kept]
    # One level at a time: masks of all levels of all images would be the largest thing here.
    pixel_coverage = torch.stack([_mean(_inside(u, level) for u in found) for level in LEVELS])
    covered = torch.full((len(parts), len(LEVELS)), torch.nan, dtype=torch.float64)
    covered[kept > 0] = torch.tensor(
        [[float(_inside(u, level).mean()) for level in LEVELS] for u in found], dtype=torch.float64
    )
    inside = (balls[kept > 0, None] <= levels).double()
    rng = generator(seed, "generate", 0, _BOOTSTRAP)
    again = torch.randint(len(inside), (BOOTSTRAPS, len(inside)), generator=rng)
    resampled = torch.stack([inside[rows].mean(0) for rows in again])
    return Calibration(
        names=names,
        ranks=torch.stack([part.ranks for part in parts]),
        uniform=torch.stack([part.uniform for part in parts]),
        kept=kept,
        num_samples=num_samples,
        levels=levels,
        covered=covered,
        pixel_coverage=pixel_coverage,
        balls=balls,
        tarp=inside.mean(0),
        tarp_band=resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0),
        drawn=drawn,
        exact_truth=exact,
        errors=errors,
    )


def _mean(masks: Iterable[Tensor]) -> Tensor:
    total, count = torch.zeros(()), 0
    for mask in masks:
        total, count = total + mask, count + 1
    return total / count


def _inside(uniform: Tensor, level: float) -> Tensor:
    """1 where the truth lies in the central interval of this level, else 0."""
    return ((uniform - 0.5).abs() <= level / 2).double()


def _ks(values: Tensor) -> float:
    from scipy.stats import kstest

    return float(kstest(values.numpy(), "uniform").pvalue)
