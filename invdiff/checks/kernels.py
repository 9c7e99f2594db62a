"""Kernels of blurs: their sum, origin, size and sign."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence, rms
from invdiff.contracts.compare import NotApplicable
from invdiff.findings import Finding
from invdiff.operators import Blur, CircularBlur

NEAR_ONE = 0.02
FAR = 1 / 20  # a factor that no image of the prior makes good
TIGHTER = 0.5  # spread of a kernel about its corner, relative to that about its middle


def check_kernel(e: Evidence) -> Iterator[Finding]:
    """A kernel sums to 1, has its origin in its middle and an odd size, and no negative taps."""
    if not isinstance(e.operator, (Blur, CircularBlur)):
        raise NotApplicable("there is no kernel")
    kernel = e.operator.kernel[0].reshape(e.operator.kernel.shape[-2:]).cpu().double()
    yield from _of_the_sum(e, float(kernel.sum()))
    yield from _of_the_origin(kernel)
    negative, positive = float(-kernel.clamp(max=0).sum()), float(kernel.clamp(min=0).sum())
    if 0.01 * positive < negative < 0.2 * positive:
        words = f"the kernel has negative taps, {negative / positive:.0%} of the positive ones; a point spread has none"
        yield Finding("kernel sign", words, False)


def _of_the_sum(e: Evidence, total: float) -> Iterator[Finding]:
    if abs(total - 1) <= NEAR_ONE or abs(total) < NEAR_ONE:  # a kernel of sum 0 takes differences
        return
    usual = rms(e.clean)
    ratio = rms(e.y) / usual if usual > 0 else 1.0
    wrong = ratio > 0 and abs(total) > 0 and abs(math.log(ratio * abs(total))) < 0.5 * abs(math.log(abs(total)))
    words = f"the kernel sums to {total:.4g}, so that this blur multiplies the brightness by it"
    far = wrong and not FAR < abs(total) < 1 / FAR
    yield Finding(
        "kernel units" if far else "kernel sum",
        f"{words}; operator.normalise=true divides the kernel by its sum",
        wrong,
    )


def _of_the_origin(kernel: Tensor) -> Iterator[Finding]:
    height, width = kernel.shape
    middle, corner = _spread(kernel), _spread(torch.fft.fftshift(kernel))
    if corner < TIGHTER * middle and middle > 1:
        words = "the kernel has its origin in its corner, and here it is in the middle; give np.fft.fftshift(kernel)"
        yield Finding("kernel origin", words, True)
    elif height % 2 == 0 or width % 2 == 0:
        mirrored = torch.allclose(kernel, kernel.flip(0, 1), atol=1e-3 * float(kernel.abs().amax()))
        if mirrored:
            words = (
                f"the kernel is {height}x{width} and symmetric about a point between its taps; its origin is tap "
                f"[{height // 2}, {width // 2}], so that images shift by half a pixel: give it an odd size"
            )
            yield Finding("kernel size", words, False)


def _spread(kernel: Tensor) -> float:
    """Root mean square distance of a kernel from its middle, in taps."""
    weights = kernel.abs()
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in kernel.shape)
    total = float(weights.sum())
    return math.sqrt(float((weights * (y[:, None] ** 2 + x**2)).sum()) / total) if total > 0 else 0.0
