"""Unconditional images of a prior."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.integrators import Heun
from invdiff.schedules import karras

from .base import Prior


@torch.no_grad()
def generate(
    prior: Prior, noise: Tensor, *, steps: int = 18, rho: float = 7.0, on_step: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Images of the prior itself from standard normal noise (B, C, H, W), by Heun's method: 2 * steps - 1 calls.

    They start at the prior's centre plus noise of its highest level, `Prior.start`.

    noise    of a latent prior shaped like codes, see `Prior.diffusion_shape`
    on_step  called with x after every step
    """
    codec, prior = prior.codec, prior.diffusion
    low, high = (level / prior.scale for level in prior.sigma_range)
    levels = [*karras(high, low, steps, rho).tolist(), 0.0]
    x = prior.start(prior.scale * high, noise)
    for moved, _, _ in Heun().walk(prior.denoise, x, levels, lambda: noise, prior.scale, prior.centre):
        x = moved
        if on_step is not None:
            on_step(x)
    return x if codec is None else codec.decode(x)
