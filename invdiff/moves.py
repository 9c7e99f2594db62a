"""Moves that posterior samplers share."""

import torch
from torch import Tensor


def ancestral_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> Tensor:
    """DDPM's ancestral step in variance-exploding coordinates, from sigma to sigma_next < sigma.

    The posterior q(x_next | x, x0): mean x0 + (sigma_next / sigma)^2 (x - x0), variance
    sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 ("fixed-small"); at sigma_next = 0 it returns x0.
    """
    shrink = (sigma_next / sigma) ** 2
    return x0 + shrink * (x - x0) + sigma_next * (1 - shrink) ** 0.5 * noise


def row_norm(r: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, ...) -> (B,): rows never mix, and the gradient at r = 0 is 0."""
    return torch.linalg.vector_norm(r.flatten(1), dim=1)
