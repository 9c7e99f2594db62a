"""IIA: weights of the last noise estimates, fitted to a finer walk of the prior.

Paper       Zhang, Niwa and Kleijn, On Accelerating Diffusion-Based Sampling Process via Improved Integration
            Approximation, ICLR 2024, arXiv:2304.11328, IIA-DDIM.
Form        x' = x + (sigma' - sigma) n_0 + sum over k of c_k (n_k - n_(k+1)), n_k = (x - D) / sigma of k steps ago;
            each step has its own c, by least squares over images and pixels against Heun's steps on a finer grid.
Departures  the paper fits the first weight too where an integrator has the structure of EDM's; with differences alone
            a constant noise estimate is integrated exactly, whatever the fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.integrators.heun import Heun
from invdiff.schedules import karras


@dataclass(frozen=True, kw_only=True)
class IIA(Integrator):
    """Multistep, one call a step; made by `IIA.fitted`, for the levels of its fit alone.

    levels   falling, of pictures in [0, 1], the last one may be 0
    weights  c of each step, of the newest difference first
    """

    levels: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def fitted(cls, denoise: Denoiser, x: Tensor, levels: Sequence[float], *, order: int = 3, finer: int = 4) -> Self:
        """The weights of a denoiser about 0, `centred`.

        x       images at levels[0], (B, C, H, W)
        order   noise estimates in a step at the most
        finer   Heun's steps for each step
        """
        found: list[Tensor] = []
        weights: list[tuple[float, ...]] = []
        for sigma, after in pairwise(levels):
            x0 = denoise(x, sigma)
            found = [(x - x0) / sigma, *found][:order]
            euler = x + (after - sigma) * found[0]
            if after == 0:
                break
            finely = karras(sigma, after, finer + 1).tolist()
            wanted = Heun().end(denoise, x, finely, partial(torch.zeros_like, x), 1.0) - euler
            changes = torch.stack([(a - b).flatten() for a, b in pairwise(found)] or [0 * x.flatten()]).double()
            solved = torch.linalg.lstsq(changes.mT, wanted.flatten().double()[:, None], driver="gelsd").solution
            weights.append(tuple(solved.flatten().tolist()[: len(found) - 1]))
            x = euler + sum(c * (a - b) for c, (a, b) in zip(weights[-1], pairwise(found), strict=True))
        return cls(levels=tuple(levels), weights=tuple(weights))

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        if len(sigmas) > len(self.levels) or not np.allclose(sigmas, self.levels[: len(sigmas)]):
            raise ValueError(f"iia: it was fitted at the levels {self.levels}, got {tuple(sigmas)}; fit it at these")
        found: list[Tensor] = []
        kept = max(map(len, self.weights), default=0)
        for k, (sigma, after) in enumerate(pairwise(sigmas)):
            x0 = denoise(x, sigma)
            found = [(x - x0) / sigma, *found]
            x = x + (after - sigma) * found[0]
            if after > 0:
                x = x + sum(c * (a - b) for c, (a, b) in zip(self.weights[k], pairwise(found), strict=False))
            found = found[:kept]
            yield x, x0, after
