"""DPM-Solver++: exponential steps of a denoiser that is a polynomial in the logarithm of the level.

Paper   Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, arXiv:2211.01095,
        Algorithm 2 (2M), its stochastic form (SDE-DPM-Solver++), and 3M of its reference code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log, sqrt
from typing import Literal

from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Integrator):
    """Multistep, one call a step: earlier estimates give the higher orders.

    order  1, 2 or 3; the first steps, and the last one to 0, are of a lower one
    eta    noise: 0 follows the flow, 1 is that of the reverse diffusion
    """

    order: Literal[1, 2, 3] = 2
    eta: NotNegative = 0.0

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        times: list[float] = []  # -log sigma, the newest first, as the estimates
        found: list[Tensor] = []
        for sigma, after in pairwise(sigmas):
            times, found = [-log(sigma), *times][: self.order], [denoise(x, sigma), *found][: self.order]
            if after == 0:
                x = found[0]
            else:
                h = log(sigma / after)
                rate = 1 + self.eta
                x = (after / sigma) ** rate * x - expm1(-rate * h) * found[0] + self._bend(times, found, h)
                if self.eta > 0:
                    x = x + after * sqrt(-expm1(-2 * self.eta * h)) * noise()
            yield x, found[0], after

    def _bend(self, times: list[float], found: list[Tensor], h: float) -> Tensor | float:
        """What the first and second derivative of the estimate by time add over a step of length h."""
        if len(found) == 1:
            return 0.0
        rate = 1 + self.eta
        # Integrals of rate exp(-rate (h - t)) t^k over the step, k = 1, 2.
        first = h + expm1(-rate * h) / rate
        slope = (found[0] - found[1]) / (times[0] - times[1])
        if len(found) == 2:
            return first * slope
        before = (found[1] - found[2]) / (times[1] - times[2])
        curve = (slope - before) / (times[0] - times[2])  # half the second derivative
        second = h**2 - 2 * first / rate
        return first * (slope + (times[0] - times[1]) * curve) + second * curve
