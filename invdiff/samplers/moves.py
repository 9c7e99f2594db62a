"""Moves that posterior samplers share."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.operators import GaussianNoise, LinearOperator
from invdiff.operators.noise.base import masked
from invdiff.problem import InverseProblem
from invdiff.shapes import nonzero, per_row, row_norm
from invdiff.streams import Streams


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


def conjugate(problem: InverseProblem) -> bool:
    """Whether `gaussian_draw` can be had: a linear operator and Gaussian noise."""
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, GaussianNoise)


def gaussian_draw(
    problem: InverseProblem, mean: Tensor, width: float, rng: Streams, *, spread: float | None = None
) -> Tensor:
    """An exact draw from N(x; mean, width^2 I) N(y; A x, sigma_y^2 I), for a linear operator and Gaussian noise.

    Perturb and solve: with x' and y' drawn about `mean` and y,
    x = x' + (A^T A + (sigma_y / width)^2 I)^-1 A^T (y' - A x') has the right mean and covariance (real y).

    spread  standard deviation of x' instead of `width`: the mean stays, the covariance shrinks with it
    """
    operator, noise = problem.operator, problem.noise
    assert isinstance(operator, LinearOperator)  # `needs` made sure of both
    assert isinstance(noise, GaussianNoise)
    y = problem.y
    perturbed = mean + (width if spread is None else spread) * rng.normal()
    y_perturbed = y + per_row(noise.sigma, y) * rng.normal(tuple(y.shape[1:]), dtype=y.dtype)
    residual = masked(y_perturbed - operator(perturbed), problem.observed)
    return perturbed + operator.solve(operator.adjoint(residual), noise_variance(problem) / width**2)


def noise_variance(problem: InverseProblem) -> Tensor:
    """Variance of Gaussian noise in each real number of y, () or (B,): half of sigma_y^2 where y is complex."""
    assert isinstance(problem.noise, GaussianNoise)  # `needs` made sure
    return problem.noise.sigma**2 / (2 if problem.y.is_complex() else 1)


def stiffness(slope: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Largest curvature at x of what has this gradient, of each row, (R,): two power iterations by differences.

    probe  (R, C, H, W) where they start, a random direction

    Returns the direction found too, from which the next call does better.
    """
    curvature = torch.zeros(len(probe))
    for _ in range(2):
        shift = probe * per_row(0.01 / nonzero(probe.abs().flatten(1).amax(1)), probe)  # 0.01 of the range at most
        change = slope(x + shift) - slope(x - shift)
        curvature = row_norm(change) / (2 * nonzero(row_norm(shift)))
        # Where nothing changes, as in an image that saturates everywhere, the direction waits for the next call.
        probe = torch.where(per_row(curvature, probe) == 0, probe, change)
    return curvature, probe


def langevin(slope: Callable[[Tensor], Tensor], x: Tensor, eta: float | Tensor, steps: int, rng: Streams) -> Tensor:
    """Unadjusted Langevin dynamics on what has this gradient of minus its log-density, started at x.

    eta  step size, squared units of x, one for all or broadcastable to x
    """
    for _ in range(steps):
        x = x - eta * slope(x) + (2 * eta) ** 0.5 * rng.normal()
    return x


def bounded(slope: Tensor, eta: float | Tensor) -> Tensor:
    """A gradient cut off where it is far steeper than where the step size was measured, as at photon counts below 0.

    On a Gaussian, where it was measured right as half of what the stiffest direction allows, this is 14 standard
    deviations out.
    """
    limit = 10 / torch.as_tensor(eta) ** 0.5
    return slope.clamp(-limit, limit)
