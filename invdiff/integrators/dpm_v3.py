"""DPM-Solver-v3: exponential steps about an affine model of the denoiser, measured on images.

Paper       Zheng et al., DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, NeurIPS 2023,
            arXiv:2310.13268, in data prediction and variance-exploding coordinates, time t = -log sigma.
Form        dx/dt = D - x = -(1 - l) x + r with r = D - l x. l is taken out exactly, and so is what is known of
            the rest along the flow, dr/dt = s r + b; a polynomial of the remainder comes on top. l = s = b = 0 is
            DPM-Solver++.
Departures  l, s and b are numbers, theirs one for each pixel. l, the mean of the diagonal of the Jacobian of D, comes
            from E|x0 - D|^2 = sigma^2 tr(dD/dx), which is exact for exact denoisers, theirs from products with the
            Jacobian. s is shrunk where the rest is small. No corrector and no pseudo-order. The step to level 0 ends
            at D.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked

POINTS = 33  # of the integrals over a step
AHEAD = 0.02  # in time, of the differences that give dr/dt
LEAST = 0.01  # share of the variance of D below which the rest is the chance of few images, and its drift is not used


@dataclass(frozen=True, kw_only=True)
class DPMSolverV3(Integrator):
    """Multistep, one call a step; made by `DPMSolverV3.fitted` from images, for any levels.

    levels   where the statistics are given, falling, above 0; between them they are linear in log sigma
    linear   l at each
    drift    s
    offset   b
    order    1 or 2; the first step, and the last one to 0, are of the first
    """

    levels: tuple[float, ...]
    linear: tuple[float, ...]
    drift: tuple[float, ...]
    offset: tuple[float, ...]
    order: Literal[1, 2] = 2

    @classmethod
    def fitted(
        cls, denoise: Denoiser, images: Tensor, noise: Tensor, levels: Sequence[float], *, order: Literal[1, 2] = 2
    ) -> Self:
        """The statistics of a denoiser about 0, `centred`; 3 calls for each level and image.

        images  clean ones about 0, (B, C, H, W)
        noise   standard normal numbers of their shape
        """
        times = [-log(sigma) for sigma in levels]
        linear = [
            float((images - denoise(images + sigma * noise, sigma)).square().mean()) / sigma**2 for sigma in levels
        ]

        def rest(x: Tensor, sigma: float) -> Tensor:
            return denoise(x, sigma) - float(np.interp(-log(sigma), times, linear)) * x

        drift: list[float] = []
        offset: list[float] = []
        for sigma, t in zip(levels, times, strict=True):
            x, after = images + sigma * noise, exp(-t - AHEAD)
            r = rest(x, sigma)
            x0 = r + float(np.interp(t, times, linear)) * x
            change = (rest(x + (after / sigma - 1) * (x - x0), after) - r) / AHEAD
            away = r - r.mean()
            size = away.square().mean() + LEAST * x0.var()
            drift.append(float((away * change).mean() / size))
            offset.append(float(change.mean()) - drift[-1] * float(r.mean()))
        return cls(levels=tuple(levels), linear=tuple(linear), drift=tuple(drift), offset=tuple(offset), order=order)

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        before: tuple[Tensor, float] | None = None
        for sigma, after in pairwise(sigmas):
            x0, t = denoise(x, sigma), -log(sigma)
            r = x0 - float(self._at(np.array([t]), self.linear)[0]) * x
            if after == 0:
                x = x0
            else:
                kept, known, bend, added = self._weights(t, -log(after))
                x = kept * x + known * r + added
                if before is not None and self.order == 2:
                    back, offset = self._path(t, before[1])
                    x = x + bend * (r - (before[0] / back[-1] - offset[-1])) / (t - before[1])
                before = r, t
            yield x, x0, after

    def _at(self, times: NDArray[np.float64], values: Sequence[float]) -> NDArray[np.float64]:
        return np.interp(times, [-log(sigma) for sigma in self.levels], values)

    def _path(self, start: float, stop: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """exp(S), S the integral of s, and the integral of exp(-S) b from `start` to times up to `stop`."""
        times = np.linspace(start, stop, POINTS)
        grown = np.exp(cumulative(self._at(times, self.drift), times))
        return grown, cumulative(self._at(times, self.offset) / grown, times)

    def _weights(self, start: float, stop: float) -> tuple[float, float, float, float]:
        """Of x, of r, of the slope of the remainder, and what b adds, over one step."""
        times = np.linspace(start, stop, POINTS)
        grown, offset = self._path(start, stop)
        shrunk = cumulative(1 - self._at(times, self.linear), times)
        factor = np.exp(shrunk - shrunk[-1]) * grown
        known, bend, added = (
            float(cumulative(factor * f, times)[-1]) for f in (np.ones_like(times), times - start, offset)
        )
        return exp(-shrunk[-1]), known, bend, added


def cumulative(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The integral up to each time, by the trapezoidal rule."""
    return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(times))])
