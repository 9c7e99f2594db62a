"""ER-SDE: the reverse diffusion with its noise scaled between that of the flow and that of the ancestral step.

Paper   Cui et al., Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models,
        arXiv:2309.06169, VE ER-SDE-Solver-1 and 2, with its fourth noise scale phi(s) = s (exp(s^0.3) + 10) for s of
        images in [-1, 1].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, sqrt
from typing import Literal

import torch
from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked

POINTS = 100  # of the integral of 1 / phi, as in the paper


@dataclass(frozen=True, kw_only=True)
class ERSDE(Integrator):
    """Stochastic multistep, one call a step; little noise at the last levels.

    order  1 or 2; the first step, and the last one to 0, are of the first
    """

    order: Literal[1, 2] = 2

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        before: tuple[Tensor, float] | None = None
        for sigma, after in pairwise(sigmas):
            x0 = denoise(x, sigma)
            if after == 0:
                x = x0
            else:
                kept = self.phi(after) / self.phi(sigma)
                fresh = sqrt(max(after**2 - (kept * sigma) ** 2, 0.0))
                bend: Tensor | float = 0.0
                if before is not None and self.order == 2:
                    slope = (x0 - before[0]) / (sigma - before[1])
                    bend = (after - sigma + self.phi(after) * self._integral(after, sigma)) * slope
                x = kept * x + (1 - kept) * x0 + bend + fresh * noise()
            before = x0, sigma
            yield x, x0, after

    def phi(self, sigma: float) -> float:
        s = 2 * sigma
        return s * (exp(s**0.3) + 10)

    def _integral(self, low: float, high: float) -> float:
        """Of 1 / phi between two levels, by the trapezoidal rule in the logarithm of the level."""
        logs = torch.linspace(log(low), log(high), POINTS + 1, dtype=torch.float64)
        values = [exp(t) / self.phi(exp(t)) for t in logs.tolist()]
        return float(torch.trapezoid(torch.tensor(values, dtype=torch.float64), logs))
