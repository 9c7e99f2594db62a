"""Heun's method on the flow, with or without churn.

Paper   Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
        arXiv:2206.00364, Algorithms 1 and 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt

from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.ranges import NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Heun(Integrator):
    """Second order, two calls a step and one for the last.

    churn       noise that is added before a step, S_churn of the paper: its level grows by the factor
                1 + min(churn / steps, sqrt(2) - 1); 0 follows the flow
    churn_low   lowest level at which it is added, in units of pictures in [0, 1]
    churn_high  highest one; None: every level
    swell       standard deviation of the added noise, S_noise of the paper
    """

    churn: NotNegative = 0.0
    churn_low: NotNegative = 0.0
    churn_high: Positive | None = None
    swell: Positive = 1.0

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        gamma = min(self.churn / (len(sigmas) - 1), sqrt(2) - 1)
        for sigma, after in pairwise(sigmas):
            if gamma > 0 and self.churn_low <= sigma <= (self.churn_high or inf):
                raised = (1 + gamma) * sigma
                x, sigma = x + sqrt(raised**2 - sigma**2) * self.swell * noise(), raised
            x0 = denoise(x, sigma)
            slope = (x - x0) / sigma
            euler = x + (after - sigma) * slope
            if after > 0:
                x0 = denoise(euler, after)
                euler = x + (after - sigma) * (slope + (euler - x0) / after) / 2
            x = euler
            yield x, x0, after

    def calls(self, steps: int, *, to_zero: bool = True) -> int:
        return 2 * steps - to_zero
