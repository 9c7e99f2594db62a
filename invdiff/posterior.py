"""The result of a sampler: samples, their statistics, and their cost."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from invdiff.correction import Correction
from invdiff.problem import InverseProblem


@dataclass
class Cost:
    """Counts are per image: one call on a batch of 8 counts 8.

    forwards        evaluations of the prior's denoiser
    vjps            vector-Jacobian products through it
    operator_calls  forward, adjoint, pseudo-inverse, solve, and products with the operator's Jacobian
    seconds         wall time of the sampler, callbacks and progress left out
    peak_memory_mb  of the device, or on the CPU of the process so far (`engine.device.peak_memory_mb`)
    precision       in which the network ran, `float32` or `bfloat16`
    decodes         of a latent prior: codes to images; decoding the samples at the end counts
    decode_vjps     vector-Jacobian products through the decoder
    encodes         images to codes
    """

    forwards: int = 0
    vjps: int = 0
    operator_calls: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    precision: str = "float32"
    decodes: int = 0
    decode_vjps: int = 0
    encodes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """By name, for files; calls of a codec only where there were any."""
        found = asdict(self)
        of_codec = ("decodes", "decode_vjps", "encodes")
        return {name: value for name, value in found.items() if name not in of_codec or any(found[n] for n in of_codec)}

    def __add__(self, other: "Cost") -> "Cost":
        """Of both, one after the other."""
        return Cost(
            self.forwards + other.forwards,
            self.vjps + other.vjps,
            self.operator_calls + other.operator_calls,
            self.seconds + other.seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
            other.precision,
            self.decodes + other.decodes,
            self.decode_vjps + other.decode_vjps,
            self.encodes + other.encodes,
        )


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior samples of a batch of images, on the CPU.

    samples           (B, S, C, H, W), image units, as the sampler left them
    diverged_at       (B, S) step at which a sample became non-finite or left every reasonable range; -1: it did not
    cost              what was computed
    problem           of these B images
    calibration       what was measured of intervals of such samples; None where nothing was, and from `Sampler.sample`
    conditional_mean  (B, C, H, W), average of `Step.mean` over the samples that did not diverge; None where the sampler
                      gave none

    `mean`, `std` and `interval` leave diverged samples out, and are those of `aligned` samples.
    """

    samples: Tensor
    diverged_at: Tensor
    cost: Cost
    problem: InverseProblem
    calibration: Correction | None = None
    conditional_mean: Tensor | None = None

    @property
    def diverged(self) -> Tensor:
        """(B, S) bool: samples that diverged."""
        return self.diverged_at >= 0

    @cached_property
    def misfit(self) -> Tensor:
        """Misfit of each sample, (B, S), see `Noise.misfit`: 1 where it fits to the noise."""
        place = self.problem.y.device
        with torch.no_grad():
            return torch.stack([self.problem.misfit(x.to(place)).cpu() for x in self.samples.unbind(1)], 1)

    @cached_property
    def aligned(self) -> "Posterior":
        """Samples that can be averaged: each moved by `Operator.align` onto the sample of its image that fits y best.

        They fit y as before, but may all be upside down. Without ambiguities of the operator nothing moves.
        """
        if not self.problem.operator.ambiguous:
            return self
        best = self.misfit.where(~self.diverged, torch.inf).argmin(1)
        return self._as_one(self.samples[torch.arange(len(best)), best])

    def facing(self, truth: Tensor) -> "Posterior":
        """Aligned samples, moved once more as one, so that their mean faces the true images (B, C, H, W).

        For comparisons with the truth only.
        """
        if not self.problem.operator.ambiguous:
            return self
        known = self.__dict__.get("_facing")  # the last one; callers ask again for the same truth
        if known is None or known[0] is not truth:
            known = self.__dict__["_facing"] = truth, self.aligned._as_one(self._align(self.mean, truth))
        return known[1]

    def onto(self, reference: Tensor) -> Tensor:
        """Samples (B, S, C, H, W), each moved by `Operator.align` onto the reference of its image, (B, C, H, W)."""
        return torch.stack([self._align(x, reference) for x in self.samples.unbind(1)], 1)

    @cached_property
    def mean(self) -> Tensor:
        """Posterior mean (B, C, H, W): `conditional_mean`, or without it the mean of the samples.

        The latter as well where the operator is ambiguous, as only samples are aligned. NaN where all samples diverged.
        """
        if self.conditional_mean is None or self.problem.operator.ambiguous:
            return self.mean_of_samples
        return self.conditional_mean

    @cached_property
    def mean_of_samples(self) -> Tensor:
        """Mean of the samples (B, C, H, W), about which `std` and `interval` are; NaN where all samples diverged."""
        return self.average(self.aligned.samples)

    @cached_property
    def std(self) -> Tensor:
        """Posterior standard deviation (B, C, H, W), unbiased; NaN where fewer than two samples are left."""
        kept = self._kept(self.aligned.samples)
        count = (~self.diverged).sum(1).reshape(-1, *[1] * (self.samples.dim() - 2))
        squares = (kept - kept.nanmean(1, keepdim=True)).square().nansum(1)
        return torch.where(count > 1, squares / (count - 1).clamp(min=1), torch.nan).sqrt()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Interval of every pixel that holds the truth with this probability: its ends, (B, C, H, W) each.

        With a `calibration`: the mean of the samples -+ the width that held it on other images. Without: the quantiles
        (1 - level) / 2 and (1 + level) / 2 of the samples, interpolated linearly, which of few samples lie too close
        together (the extremes of 4 samples hold 60 %). NaN where fewer than two samples are left. Raises ValueError
        unless 0 < level < 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level must be > 0 and < 1, got {level}")
        if self.calibration is not None:
            half = self.calibration.half_width(self.std, level)
            return self.mean_of_samples - half, self.mean_of_samples + half
        ends = self.samples.new_full((2, len(self.samples), *self.samples.shape[2:]), torch.nan)
        for i, (samples, diverged) in enumerate(zip(self.aligned.samples, self.diverged, strict=True)):
            ordered = samples[~diverged].sort(0).values
            if len(ordered) > 1:
                ends[0, i] = _quantile(ordered, (1 - level) / 2)
                ends[1, i] = _quantile(ordered, (1 + level) / 2)
        return ends[0], ends[1]

    def _align(self, x: Tensor, reference: Tensor) -> Tensor:
        place = self.problem.y.device  # of the operator
        with torch.no_grad():
            return self.problem.operator.align(x.to(place), reference.to(place)).cpu()

    def _as_one(self, reference: Tensor) -> "Posterior":
        """All samples moved onto one reference per image: `aligned` already."""
        moved = Posterior(self.onto(reference), self.diverged_at, self.cost, self.problem, self.calibration)
        moved.__dict__["aligned"] = moved
        return moved

    def average(self, values: Tensor) -> Tensor:
        """Average over the samples that did not diverge, (B, S, ...) -> (B, ...); NaN where all diverged."""
        return self._kept(values).nanmean(1)

    def _kept(self, values: Tensor) -> Tensor:
        return torch.where(self.diverged.reshape(*self.diverged.shape, *[1] * (values.dim() - 2)), torch.nan, values)


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Linear quantile along the first axis, which is sorted; `torch.quantile` refuses more than 16 million numbers."""
    place = q * (len(ordered) - 1)
    below = int(place)
    return ordered[below].lerp(ordered[min(below + 1, len(ordered) - 1)], place - below)
