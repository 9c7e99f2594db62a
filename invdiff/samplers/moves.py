"""Moves that posterior samplers share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.operators.noise.base import masked
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.shapes import nonzero, per_row, row_norm


def ancestral_step(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> Tensor:
    """DDPM's ancestral step in variance-exploding coordinates, from sigma to sigma_next < sigma.

    The posterior q(x_next | x, x0): mean x0 + (sigma_next / sigma)^2 (x - x0), variance
    sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 ("fixed-small"); at sigma_next = 0 it returns x0.
    """
    shrink = (sigma_next / sigma) ** 2
    return x0 + shrink * (x - x0) + sigma_next * (1 - shrink) ** 0.5 * noise


def ddim_step(
    x: Tensor, x0: Tensor, sigma: float | Tensor, sigma_next: float | Tensor, eta: float, noise: Tensor
) -> Tensor:
    """DDIM's step in variance-exploding coordinates: eta times the noise of the ancestral step, the rest kept from x.

    eta = 1 is `ancestral_step`, eta = 0 follows the probability flow; at sigma_next = 0 it returns x0. Both levels may
    be one for every pixel, broadcastable to x.
    """
    fresh = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    return x0 + (sigma_next**2 - fresh**2) ** 0.5 / sigma * (x - x0) + fresh * noise


def mean_variance(problem: InverseProblem) -> Tensor:
    """Variance of the noise of one real number, averaged over what was measured of each image, (B,)."""
    y = masked(problem.y, problem.observed)
    variance = problem.noise.variance(y).expand(y.shape)
    count = masked(torch.ones_like(variance), problem.observed).flatten(1).sum(1)
    total = masked(variance, problem.observed).flatten(1).sum(1)
    return total / count / (2 if y.is_complex() else 1)


def half_squares(problem: InverseProblem, x: Tensor) -> Tensor:
    """|y - A(x)|^2 / 2 over the measured entries, of each row, (R,)."""
    return problem.residual(x).abs().square().flatten(1).sum(1) / 2


def clean_estimate(prior: Prior, sigma: float, *, clip: bool) -> Callable[[Tensor], Tensor]:
    """x -> E[x0 | x_sigma = x], clamped to the value range with `clip`."""

    def estimate(x: Tensor) -> Tensor:
        x0 = prior.denoise(x, sigma)
        return x0.clamp(*prior.value_range) if clip else x0

    return estimate


def weighted_norm(problem: InverseProblem, x0: Tensor) -> Tensor:
    """|y - A(x0)| of each row, its entries weighted by how noisy they are: (R,).

    The weights are sqrt(mean variance / variance), estimated from y: 1 for Gaussian noise, and for photon counts the
    paper's norm with Lambda = diag(1 / 2y), in the unit of the measurement.
    """
    residual = problem.residual(x0)
    if problem.noise.gaussian:
        return row_norm(residual)
    y = masked(problem.y, problem.observed)
    weight = (per_row(mean_variance(problem), y) / problem.noise.variance(y)).sqrt()
    return row_norm(weight * residual)


def largest_curvature(problem: InverseProblem, prior: Prior, iterations: int = 20) -> Tensor:
    """Largest curvature of the negative log-likelihood of each image about the centre of the prior, (B,) float64.

    Power iteration with differences of gradients over a tenth of the range of images, which are exact where the
    likelihood is Gaussian and the operator linear.
    """
    shape = (1, *problem.image_shape)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(problem.y.device, problem.y.real.dtype)
    direction = start.expand(problem.images, *problem.image_shape)
    centre = prior.centre.to(direction)
    reach = 0.1 * prior.scale * math.sqrt(start.numel())
    size = direction.new_zeros(problem.images)
    for _ in range(iterations):
        direction = reach * direction / per_row(nonzero(row_norm(direction)), direction)
        direction = problem.nll_gradient(centre + direction) - problem.nll_gradient(centre - direction)
        size = row_norm(direction) / (2 * reach)
    return size.double()


def operator_norm(problem: InverseProblem, prior: Prior) -> Tensor:
    """Largest factor by which the operator magnifies a change of each image, (B,): the unit of guidance weights.

    Of a nonlinear operator that about the centre of the prior; 1 where nothing changes there.
    """
    norm = (largest_curvature(problem, prior) * mean_variance(problem)).sqrt()
    return nonzero(norm).to(problem.y.real.dtype)
