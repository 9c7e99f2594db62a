"""DEIS: the exponential Adams-Bashforth method on the flow.

Paper   Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, ICLR 2023, arXiv:2204.13902,
        tAB-DEIS; in variance-exploding coordinates the exponential factor is 1 and the noise estimate
        (x - D) / sigma is a polynomial in sigma.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked


@dataclass(frozen=True, kw_only=True)
class DEIS(Integrator):
    """Multistep, one call a step: a polynomial through the last noise estimates is integrated exactly.

    order  1 to 4; the first steps, and the last one to 0, are of a lower one
    """

    order: Literal[1, 2, 3, 4] = 3

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        levels: list[float] = []  # the newest first, as the estimates
        found: list[Tensor] = []
        for sigma, after in pairwise(sigmas):
            x0 = denoise(x, sigma)
            levels, found = [sigma, *levels][: self.order], [(x - x0) / sigma, *found][: self.order]
            kept = 1 if after == 0 else len(levels)
            weights = adams_bashforth(levels[:kept], after)
            x = x + sum(w * n for w, n in zip(weights, found[:kept], strict=True))
            yield x, x0, after


def adams_bashforth(levels: Sequence[float], after: float) -> list[float]:
    """Weights of values at these levels in the integral from levels[0] to `after` of the polynomial through them."""
    sigma, step = levels[0], after - levels[0]
    points = (np.array(levels) - sigma) / step  # in units of the step: well conditioned
    powers = np.arange(len(levels))
    moments = 1 / (powers + 1.0)
    return list(step * np.linalg.solve(points[None, :] ** powers[:, None], moments))
