"""The noise of y against the one that was stated, where y shows it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence, rms
from invdiff.contracts.compare import NotApplicable
from invdiff.findings import Finding
from invdiff.operators import GaussianNoise, NoNoise
from invdiff.operators.mri.kspace import CartesianSampling

ENOUGH = 200  # numbers to judge by
MUCH_LESS, MUCH_MORE = 2.5, 4.0  # stated noise over that of y, and the reverse, that are said
FAR = 10.0  # stated noise over that of y with which a result is likely wrong
MAD = 0.6745  # of a standard normal number
FLAT = 0.06  # differences of deviations that count as none
HEAVY = 0.5  # excess of the fourth moment over that of noise
PER_PART = 300  # complex numbers that tell a factor of sqrt(2)


def check_level(e: Evidence) -> Iterator[Finding]:
    """The standard deviation of Gaussian noise is near what the finest structure of y shows."""
    noise = e.problem.noise
    if not isinstance(noise, GaussianNoise) or isinstance(noise, NoNoise):
        raise NotApplicable("the noise is not Gaussian")
    stated, whole = float(noise.sigma.flatten()[0]), rms(e.y)
    numbers = e.y.numel() * (2 if e.y.is_complex() else 1)
    if numbers >= ENOUGH and stated > 1.3 * whole > 0:
        words = f"noise.sigma={stated:.3g} is larger than y itself, whose rms is {whole:.2g}; is it in the units of y?"
        yield Finding("sigma", words, True)
        return
    if isinstance(e.operator, CartesianSampling) and not e.operator.convention.kspace_centred:
        raise NotApplicable("k-space has its centre in the first entry")
    finest = _finest(e.given, e.observed)
    if finest is None:
        raise NotApplicable("the measurement does not show its noise")
    found = deviation(finest)
    others = [*e.clean, *([] if e.extremes is None else [e.extremes[2]])]
    usual = max(deviation(other) for row in others if (other := _finest(row, e.observed)) is not None)
    if found > 0 and stated > MUCH_LESS * found:
        far = stated > FAR * found
        yield Finding("sigma", f"noise.sigma={stated:.3g} but the noise of y is at most about {found:.2g}", far)
    elif found > MUCH_MORE * math.hypot(stated, usual):
        yield Finding("sigma", f"noise.sigma={stated:.3g} but the noise of y is about {found:.2g}", True)
    elif e.y.is_complex() and usual < 0.5 * stated and _per_part(e, stated):
        whole = math.sqrt(2) * stated
        words = (
            f"the noise of y is about {whole:.3g} = sqrt(2) x noise.sigma: here sigma^2 is the variance of the complex "
            f"number, not of each of its parts; set noise.sigma={whole:.3g}"
        )
        yield Finding("sigma per part", words, False)


def _per_part(e: Evidence, stated: float) -> bool:
    """Whether the outer part of k-space is flat and Gaussian, like noise, and sqrt(2) times as strong as stated."""
    rings = [outermost(e.given, e.observed, *edges) for edges in ((0.6, 0.8), (0.8, 1.1))]
    if min(ring.numel() for ring in rings) < PER_PART:
        return False
    levels = [rms(ring) / (math.sqrt(2) * stated) for ring in rings]
    # E|n|^4 = 2 (E|n|^2)^2 of complex Gaussian numbers; structure of an image has more.
    tails = [rms(ring.abs().square()) ** 2 / rms(ring) ** 4 for ring in rings]
    return all(abs(level - 1) < FLAT for level in levels) and all(abs(tail - 2) < HEAVY for tail in tails)


def deviation(values: Tensor) -> float:
    """Robust standard deviation of numbers of mean 0; of complex ones that of both parts together."""
    if values.is_complex():
        return math.sqrt(float(values.abs().square().median()) / math.log(2))
    return float(values.abs().median()) / MAD


def _finest(y: Tensor, observed: Tensor) -> Tensor | None:
    """Numbers of y in which its noise shows most, (n,), each with the variance of the noise; None where none do."""
    if y.dim() < 2 or min(y.shape[-2:]) < 8:
        return None
    found = outermost(y, observed) if y.is_complex() else _diagonal(y, observed)
    return found if found.numel() >= ENOUGH else None


def _diagonal(y: Tensor, observed: Tensor) -> Tensor:
    """Haar's finest diagonal coefficients of blocks of 2 x 2 measured numbers."""

    def quarters(values: Tensor) -> list[Tensor]:
        rows, columns = (n // 2 * 2 for n in values.shape[-2:])
        values = values[..., :rows, :columns]
        return [values[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]

    a, b, c, d = quarters(y)
    there = torch.stack(quarters(observed)).all(0)
    return ((a - b - c + d) / 2)[there]


def outermost(y: Tensor, observed: Tensor, low: float = 0.8, high: float = 1.1) -> Tensor:
    """Measured entries of k-space far to the sides, and between two shares of the half height from the middle row."""
    height, width = y.shape[-2:]
    ky, kx = ((torch.arange(n) - n // 2).abs() / (n / 2) for n in (height, width))
    return y[observed & (ky[:, None] > low) & (ky[:, None] <= high) & (kx > 0.6)]
