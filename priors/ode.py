"""The probability-flow ODE of a prior, and unconditional images by it.

Paper   Karras et al. 2022, arXiv:2206.00364, Algorithm 1: dx / dsigma = (x - D(x, sigma)) / sigma.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .base import Prior


def probability_flow(
    prior: Prior,
    x: Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    heun: bool = False,
    on_step: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Follow the ODE from x at sigmas[0] through all levels to the last one, (B, C, H, W) -> (B, C, H, W).

    heun     second order; costs a second denoiser call for every step that does not end at 0
    on_step  called with x after every step

    Calls: one per step, two with `heun` (one for the step to 0).
    """
    for sigma, after in pairwise(float(s) for s in sigmas):
        slope = (x - prior.denoise(x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        if heun and after > 0:
            slope = (slope + (euler - prior.denoise(euler, after)) / after) / 2
            euler = x + (after - sigma) * slope
        x = euler
        if on_step is not None:
            on_step(x)
    return x


@torch.no_grad()
def generate(
    prior: Prior, noise: Tensor, *, steps: int = 18, rho: float = 7.0, on_step: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Images of the prior itself from standard normal noise (B, C, H, W), by Heun's method: 2 * steps - 1 calls.

    They start at the prior's centre plus noise of its highest level, `Prior.start`.
    """
    low, high = prior.sigma_range
    levels = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho
    return probability_flow(prior, prior.start(high, noise), [*levels.tolist(), 0.0], heun=True, on_step=on_step)
