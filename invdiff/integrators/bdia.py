"""BDIA: Euler's steps that can be reversed exactly.

Paper       Zhang, Lewis and Kleijn, Exact Diffusion Inversion via Bi-directional Integration Approximation, ECCV 2024,
            arXiv:2307.10829, BDIA-DDIM, in variance-exploding coordinates.
Form        with n = (x - D) / sigma at level i, x_(i-1) = x_i + (sigma_(i-1) - sigma_i) n + gamma (x_(i+1) - x_i
            - (sigma_(i+1) - sigma_i) n): what Euler's step back from level i misses of x_(i+1) is added.
            gamma = 1 is the midpoint rule, of order 2 on equal steps.
Departures  the paper's coordinates are variance-preserving: gamma is weighted by a ratio of two of its factors alpha.
            The step to level 0 ends at D, as that of every other integrator, and `back` starts above it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.ranges import Range


@dataclass(frozen=True, kw_only=True)
class BDIA(Integrator):
    """Two-step method, one call a step, with an exact inverse.

    gamma  weight of the correction, 0.5 in the paper for few steps, 1 for 100 and more. An error once made shrinks by
           this factor from step to step, with changing sign; the inverse enlarges it again
    """

    gamma: Annotated[float, Range(0, 1, open_low=True)] = 0.5

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        before: tuple[Tensor, float] | None = None
        for sigma, after in pairwise(sigmas):
            x0 = denoise(x, sigma)
            slope = (x - x0) / sigma
            moved = x + (after - sigma) * slope
            if before is not None:
                moved = moved + self.gamma * (before[0] - x - (before[1] - sigma) * slope)
            before, x = (x, sigma), x0 if after == 0 else moved
            yield x, x0, after

    def back(self, denoise: Denoiser, x: Tensor, above: Tensor, sigmas: Sequence[float]) -> Tensor:
        """The x at sigmas[0] from which `steps` leads to these, up to rounding; len(sigmas) - 2 calls.

        x       at the last level, which is above 0
        above   at the one before
        sigmas  falling levels, those of `steps`
        """
        for below, sigma, higher in reversed(list(zip(sigmas, sigmas[1:], sigmas[2:], strict=False))):
            below, higher = higher, below  # falling levels, walked from the last to the first
            slope = (above - denoise(above, sigma)) / sigma
            missed = (x - above - (below - sigma) * slope) / self.gamma
            x, above = above, above + (higher - sigma) * slope + missed
        return above
