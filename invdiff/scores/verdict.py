"""What is wrong with a reconstruction, in one line each: the verdict after a run.

The bands of the misfit follow from its law at the truth, for an exact sampler also that of its samples: expectation 1,
and for m measured numbers with Gaussian noise the standard deviation sqrt(2 / m). Samplers are not exact: on images
that fit the prior, those of `sampler=auto` reached 1.64 (docs/verdict.md), so the bands begin at fixed values too.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from invdiff.findings import Finding
from invdiff.operators import NoNoise
from invdiff.posterior import Posterior
from invdiff.samplers import Sampler
from invdiff.samplers.auto import PICTURE

HIGH, SEVERE, LOW = 1.75, 3.0, 0.5  # of the misfit
DEVIATIONS = 6.0  # of the misfit from 1, at least, outside its band
BEYOND = 0.1  # widths of the value range: what noise and ringing put outside it
OUTSIDE, SEVERE_OUTSIDE = 0.05, 0.25  # of the pixels of a sample, further out than that
VERY_UNLIKE = 2.0  # distance from the images of the prior
FEW = 4  # samples
SPREAD = 1.25  # factor of a measured spread worth a line
NOTES = ("few samples", "spread", "goal")  # kinds that judge the statement on errors, and not the image


def judge(
    posterior: Posterior,
    names: Sequence[str],
    value_range: tuple[float, float],
    sampler: Sampler,
    prior_distance: Tensor | None = None,
) -> tuple[Finding, ...]:
    """The findings about samples of the images of these names, the severe ones first.

    value_range     of clean images, image units
    sampler         that ran
    prior_distance  of each image, (B,), from those of the prior; see `invdiff.scores.prior_fit.distance_from`
    """
    found = [
        *_divergence(posterior, names),
        *_misfits(posterior, names),
        *_range(posterior, names, value_range),
        *([] if prior_distance is None else _prior(prior_distance, names)),
        *_statement(posterior, sampler),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.severe))


def badge(findings: Sequence[Finding]) -> tuple[str, bool] | None:
    """The first finding about the images in short, and whether it is severe; None where there is none."""
    first = next((finding for finding in findings if finding.kind not in NOTES), None)
    return None if first is None else (first.words.partition(";")[0], first.severe)


def _divergence(posterior: Posterior, names: Sequence[str]) -> Iterator[Finding]:
    lost = posterior.diverged
    if lost.any():
        where = _of(names, lost.any(1))
        yield Finding(
            "divergence",
            f"{int(lost.sum())} of {lost.numel()} samples diverged{where} and are left out; check the scale of the "
            "measurement and sigma, or take a smaller guidance weight or step size",
            severe=bool(lost.all(1).any()),
        )


def _misfits(posterior: Posterior, names: Sequence[str]) -> Iterator[Finding]:
    misfit = posterior.misfit.where(~posterior.diverged, torch.nan).nanmean(1)
    deviation = (2 / _numbers(posterior)).sqrt() * (1 if posterior.problem.noise.gaussian else 2)  # heavier tails
    band = 1 + DEVIATIONS * deviation
    severe, high = misfit > band.clamp(min=SEVERE), misfit > band.clamp(min=HIGH)
    low = (misfit < (1 - DEVIATIONS * deviation).clamp(max=LOW)) & (not isinstance(posterior.problem.noise, NoNoise))
    if severe.any():
        yield Finding(
            "misfit",
            f"misfit {_largest(misfit[severe])}: the reconstruction does NOT explain the data{_of(names, severe)}; "
            "check scale, FFT convention, mask, sigma, and the parameters of the operator",
            severe=True,
        )
    if (high & ~severe).any():
        yield Finding(
            "misfit",
            f"misfit {_largest(misfit[high & ~severe])}: above the noise{_of(names, high & ~severe)}; sigma is stated "
            "too small, the prior does not fit, or the sampler needs more steps",
            severe=False,
        )
    if low.any():
        yield Finding(
            "misfit",
            f"misfit {float(misfit[low].min()):.2g}: far below 1{_of(names, low)}; sigma is stated too large, or the "
            "samples follow the noise of the measurement",
            severe=False,
        )


def _numbers(posterior: Posterior) -> Tensor:
    """How many real numbers were measured of each image, (B,)."""
    y, observed = posterior.problem.y, posterior.problem.observed
    count = torch.ones(y.shape) if observed is None else observed.cpu().expand(y.shape).float()
    return (count.flatten(1).sum(1) * (2 if y.is_complex() else 1)).clamp(min=1)


def _range(posterior: Posterior, names: Sequence[str], value_range: tuple[float, float]) -> Iterator[Finding]:
    low, high = value_range
    slack = BEYOND * (high - low)
    samples = posterior.samples
    out = ((samples < low - slack) | (samples > high + slack)).float().flatten(2).mean(2)
    share = out.where(~posterior.diverged, torch.nan).nanmean(1)
    left = share > OUTSIDE
    if left.any():
        kept = samples[left][~posterior.diverged[left]]
        yield Finding(
            "range",
            f"{100 * float(share[left].max()):.0f} % of the pixels left the range of the prior's images, {low:g} to "
            f"{high:g}{_of(names, left)}, down to {float(kept.min()):.3g}, up to {float(kept.max()):.3g}; scale the "
            "measurement, and sigma with it, to the units of the prior",
            severe=bool((share > SEVERE_OUTSIDE).any()),
        )


def _prior(distance: Tensor, names: Sequence[str]) -> Iterator[Finding]:
    unlike = distance > 1
    if unlike.any():
        yield Finding(
            "prior",
            f"prior: samples are unlike the images of this prior (distance {float(distance[unlike].max()):.1f}, its "
            f"own stay below 1){_of(names, unlike)}; take a prior of such images, or check whether the measurement is "
            "inverted, upside down or in other units",
            severe=bool((distance > VERY_UNLIKE).any()),
        )


def _statement(posterior: Posterior, sampler: Sampler) -> Iterator[Finding]:
    """What limits the standard deviation and the intervals."""
    count = posterior.samples.shape[1]
    if 1 < count < FEW:
        error = 100 / math.sqrt(2 * (count - 1))
        yield Finding(
            "few samples", f"the std of {count} samples is known to ± {error:.0f} %; take num_samples=8 or more", False
        )
    factor = 1.0 if posterior.calibration is None else posterior.calibration.spread[0]
    if not 1 / SPREAD <= factor <= SPREAD:
        words = f"{factor:.1f} times too small" if factor > 1 else f"{1 / factor:.1f} times too large"
        yield Finding(
            "spread",
            f"the spread of such samples was measured to be {words}; intervals are corrected for it, std is not",
            False,
        )
    shrunk = PICTURE.get(type(sampler), {})
    if shrunk and all(getattr(sampler, name) == value for name, value in shrunk.items()):
        yield Finding(
            "goal", "goal=picture shrinks the spread of the samples; take goal=posterior for std and intervals", False
        )


def _largest(misfit: Tensor) -> str:
    value = float(misfit.max())
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _of(names: Sequence[str], which: Tensor) -> str:
    """Which images are meant, where there are several: at most three of their names."""
    chosen = [name for name, one in zip(names, which.tolist(), strict=True) if one]
    if len(names) == 1:
        return ""
    if len(chosen) == len(names):
        return f" of all {len(names)} images"
    more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
    return f" of {', '.join(chosen[:3])}{more}"
