"""What the flow of a prior gives: unconditional images, and the probability of an image."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log

import torch
from torch import Tensor

from invdiff.integrators import Heun
from invdiff.schedules import karras
from invdiff.shapes import row_dot

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


def flow_log_prob(prior: Prior, x: Tensor, levels: Sequence[float], probe: Tensor) -> Tensor:
    """log p of images (B, C, H, W) at the lowest level, by the flow up to the highest one, (B,); autograd can follow.

    Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021, arXiv:2011.13456, section 4.3: the density at
    the highest level, N(centre, sigma^2 I) without its factor (2 pi)^(-n / 2), times the change of volume on the way,
    by Heun's method. The trace of the Jacobian of the denoiser is that along one random probe (Hutchinson), by
    differences over a tenth of the noise level: 4 calls between two levels, no derivative of second order.

    levels  rising, image units, the lowest above 0
    probe   random signs, (B, C, H, W)
    """
    size = x[0].numel()

    def slope(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """d x / d sigma and its divergence along the probe."""
        shift = 0.1 * sigma * probe
        above, below = prior.denoise(x + shift, sigma), prior.denoise(x - shift, sigma)
        return (x - (above + below) / 2) / sigma, (size - row_dot(probe, above - below) / (0.2 * sigma)) / sigma

    volume = x.new_zeros(len(x))
    for sigma, after in pairwise(levels):
        first, spread = slope(x, sigma)
        second, spread_after = slope(x + (after - sigma) * first, after)
        x = x + (after - sigma) * (first + second) / 2
        volume = volume + (after - sigma) * (spread + spread_after) / 2
    away = x - prior.start(0.0, torch.zeros_like(x))
    return volume - size * log(levels[-1]) - row_dot(away, away) / (2 * levels[-1] ** 2)
