"""Moves that posterior samplers share."""

import torch
from torch import Tensor

from invdiff.operators.noise import masked
from invdiff.problem import InverseProblem


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


def nonzero(norm: Tensor) -> Tensor:
    """A norm to divide by: 1 where it is 0, so that a zero direction stays zero."""
    return norm.where(norm != 0, 1)


def misfit_gradient(problem: InverseProblem, x: Tensor) -> Tensor:
    """Gradient of |y - A(x)|^2 / 2 over what was measured, of each row; shaped like x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        misfit = problem.residual(x).abs().square().sum() / 2  # rows are independent: no mixing
        (gradient,) = torch.autograd.grad(misfit, x)
    return gradient


def mean_variance(problem: InverseProblem) -> Tensor:
    """Variance of the noise of one real number, averaged over what was measured of each image, (B,)."""
    y = masked(problem.y, problem.observed)
    variance = problem.noise.variance(y).expand(y.shape)
    count = masked(torch.ones_like(variance), problem.observed).flatten(1).sum(1)
    total = masked(variance, problem.observed).flatten(1).sum(1)
    return total / count / (2 if y.is_complex() else 1)
