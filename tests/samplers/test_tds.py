"""TDS and SMC: a run particle by particle in the variance-preserving coordinates of the paper, and its limits."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Remembering, Scripted, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import CallableOperator, Denoising, GaussianNoise
from invdiff.samplers import MMPS, SMC, TDS
from invdiff.samplers.moves import largest_curvature
from invdiff.samplers.particles.weights import Weights
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)
MANY: dict[str, Any] = {"ensemble": 400, "particles_at_once": 10_000}


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + (2 * sigma) ** 2)  # levels are halved for images in [0, 1]


class Keyed(Scripted):
    """Scripted streams of one row from which streams of particles can be made, for proposals that draw nothing."""

    keys, shape, device, dtype = (0,), SHAPE, torch.device("cpu"), torch.float64


@pytest.mark.parametrize("cls", [TDS, SMC])
def test_a_run_equals_the_algorithm_of_the_paper(cls: type[TDS]) -> None:
    """Images in [-1, 1], z = sqrt(alpha_bar) (2 x - 1) + sqrt(1 - alpha_bar) n; Algorithm 1 without its resampling.

    The proposal follows the twist, or the posterior mean of Bayes' rule.
    """
    count, sigmas, spread, prior_std = 3, (3.0, 1.2, 0.4, 0.0), 0.3, 0.25
    matrix, mean, covariance = normal(3, 4, seed=1), 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y = normal(1, 3, seed=3)
    numbers = [normal(1, count, *SHAPE, seed=10 + k) for k in range(3)]

    sampler = cls(schedule=Levels(values=sigmas), ensemble=count, resample_below=0.0, prior_std=prior_std)
    if isinstance(sampler, SMC):
        sampler = replace(sampler, proposal=MMPS(iterations=4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(spread), y)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
    weights, zero = Weights(1, count, 0.0), torch.zeros(1, 1).double()
    rng = Keyed([numbers[0], zero, numbers[1], zero, numbers[2]])
    with torch.no_grad():
        found = [(x, weights.log_weights) for x, _, _ in sampler.evolve(problem, prior, rng, weights)]

    z_mean, z_covariance = 2 * mean - 1, 4 * covariance
    noise = float(GaussianNoise(spread).sigma) ** 2
    largest = float(largest_curvature(problem, prior)) * noise  # |A|^2

    def clean(z: Tensor, a: float) -> Tensor:
        marginal = a * z_covariance + (1 - a) * torch.eye(4, dtype=torch.float64)
        return (z - (1 - a) * torch.linalg.solve(marginal, z - a**0.5 * z_mean)) / a**0.5

    def posterior_mean(z: Tensor, a: float) -> Tensor:
        precision = torch.linalg.inv(z_covariance) + a / (1 - a) * torch.eye(4) + matrix.T @ matrix / (4 * noise)
        away = y[0] - matrix @ torch.full((4,), 0.5, dtype=torch.float64)
        seen = torch.linalg.solve(z_covariance, z_mean) + a**0.5 / (1 - a) * z + matrix.T @ away / (2 * noise)
        return torch.linalg.solve(precision, seen)

    def log_twist(z: Tensor, a: float) -> Tensor:
        level = (1 - a) / a / 4  # the variance of the noise, for images in [0, 1]
        soft = noise + largest * level * prior_std**2 / (level + prior_std**2)
        # A constant that cancels between the twists is left out: softened, the likelihood is not normalised anew.
        return -(y[0] - matrix @ (clean(z, a) + 1) / 2).square().sum() / (2 * soft)

    for n in range(count):
        a = alpha_bar(sigmas[0])
        z = 2 * sigmas[0] * numbers[0][0, n].flatten() * a**0.5
        log_weight = float(log_twist(z, a))
        for k, (s, after) in enumerate(pairwise(sigmas[:-1])):
            a, b = alpha_bar(s), alpha_bar(after)
            beta = 1 - a / b
            variance = (1 - b) / (1 - a) * beta
            estimate = clean(z, a)
            plain = b**0.5 * beta / (1 - a) * estimate + (a / b) ** 0.5 * (1 - b) / (1 - a) * z
            # The twisted score stands where the score stands: the clean estimate moves by (1 - a) / sqrt(a) times it.
            with torch.enable_grad():
                leaf = z.clone().requires_grad_(True)
                (gradient,) = torch.autograd.grad(log_twist(leaf, a), leaf)
            shift = (1 - a) / a**0.5 * gradient if cls is TDS else posterior_mean(z, a) - estimate
            twisted = plain + b**0.5 * beta / (1 - a) * shift
            following = twisted + variance**0.5 * numbers[k + 1][0, n].flatten()
            ratio = ((following - twisted).square() - (following - plain).square()).sum() / (2 * variance)
            untwisted = log_weight + float(ratio - log_twist(z, a))
            z, log_weight = following, untwisted + float(log_twist(following, b))
            assert torch.allclose((z / b**0.5 + 1) / 2, found[k][0][0, n].flatten(), atol=1e-6)
            assert found[k][1][0, n].item() == pytest.approx(untwisted, rel=1e-5, abs=1e-5)
        last = alpha_bar(sigmas[-2])
        x = (clean(z, last) + 1) / 2
        log_weight += float(-(y[0] - matrix @ x).square().sum() / (2 * noise) - log_twist(z, last))
        assert torch.allclose(x, found[-1][0][0, n].flatten(), atol=1e-6)
        assert found[-1][1][0, n].item() == pytest.approx(log_weight, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("prior_std", "ensemble"), [(0.1, 1600), (0.25, 400), (1.0, 400)])
def test_the_posterior_of_a_gaussian_at_any_twist(prior_std: float, ensemble: int) -> None:
    """N(0.4, 0.25^2) and one measurement 0.8 with noise 0.1."""
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.full((1, 1, 1, 2), 0.8))
    sampler = TDS(
        schedule=EDM(steps=200, sigma_max=10, sigma_min=0.005),
        ensemble=ensemble,
        particles_at_once=100_000,
        prior_std=prior_std,
    )
    cloud = sampler.cloud(problem, WhitePrior(), chains=20, compute=QUIET)
    gain = 0.25**2 / (0.25**2 + 0.1**2)
    assert cloud.mean.mean().item() == pytest.approx(0.4 + gain * 0.4, abs=0.02)
    assert cloud.var.mean().item() == pytest.approx((1 - gain) * 0.25**2, rel=0.2)
    exact = 2 * (math.log(1 - gain) / 2 - 0.4**2 / (2 * (0.25**2 + 0.1**2)))
    assert float(cloud.log_evidence.exp().mean().log()) == pytest.approx(exact, abs=0.15)


def test_a_nonlinear_operator_against_quadrature() -> None:
    problem = InverseProblem(
        CallableOperator(lambda x: x**3, image_shape=(1, 1, 1)), GaussianNoise(0.1), torch.full((1, 1, 1, 1), 0.3)
    )
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    nll = problem.select(torch.zeros(3001, dtype=torch.long)).nll(grid.reshape(-1, 1, 1, 1))
    share = (-((grid - 0.4) ** 2) / (2 * 0.25**2) - nll).softmax(0)
    sampler = TDS(schedule=EDM(steps=100, sigma_max=5, sigma_min=0.005), **MANY)
    cloud = sampler.cloud(problem, WhitePrior(), chains=10, compute=QUIET)
    assert cloud.mean.mean().item() == pytest.approx(float(share @ grid), abs=0.02)
