"""FKC: its step particle by particle, the likelihoods it takes, and the paper's other densities on Gaussians."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Remembering, Scripted, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import CallableOperator, Denoising, GaussianNoise, PoissonNoise
from invdiff.priors import GaussianPrior
from invdiff.samplers import FKC
from invdiff.samplers.particles.cloud import Cloud
from invdiff.samplers.particles.compose import compose
from invdiff.samplers.particles.weights import Weights
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)
MANY: dict[str, Any] = {"ensemble": 400, "particles_at_once": 10_000}


@pytest.mark.parametrize(("power", "prior_std"), [(1.0, None), (1.7, 0.3)])
def test_a_run_equals_the_equations_on_the_scale_of_the_paper(power: float, prior_std: float | None) -> None:
    """In images on [-1, 1], tau = s_max^2 - s^2 upwards, score of a Gaussian from its inverse covariance."""
    count, sigmas, spread, curvature = 3, (2.0, 1.1, 0.4, 0.0), 0.2, 30.0
    matrix, mean, covariance = normal(3, 4, seed=1), 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y = normal(1, 3, seed=3)
    numbers = [normal(1, count, *SHAPE, seed=10 + k) for k in range(4)]
    uniforms = [normal(1, 1, seed=20 + k) for k in range(2)]

    sampler = FKC(
        schedule=Levels(values=sigmas),
        ensemble=count,
        resample_below=0.0,
        inverse_temperature=power,
        prior_std=prior_std,
        curvature=curvature,
    )
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(spread), y)
    weights = Weights(1, count, 0.0)
    rng = Scripted([numbers[0], numbers[1], uniforms[0], numbers[2], uniforms[1], numbers[3]])
    with torch.no_grad():
        prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
        found = [(x, weights.log_weights) for x, _, _ in sampler.evolve(problem, prior, rng, weights)]

    # z = 2 x - 1, levels and covariance scaled with it; the measurement is y = A (z + 1) / 2 + noise.
    z_mean, z_covariance, z_matrix = 2 * mean - 1, 4 * covariance, matrix / 2
    z_y = y[0] - z_matrix @ torch.ones(4, dtype=torch.float64)
    log_kernel = -4 / 2 * math.log(2 * math.pi * sigmas[0] ** 2)
    for n in range(count):
        z = 2 * sigmas[0] / power**0.5 * numbers[0][0, n].flatten()
        log_weight = (power - 1) * log_kernel - 4 / 2 * math.log(power)

        def reward(z: Tensor, s: float) -> Tensor:
            keep = 1 if prior_std is None else prior_std**2 / (prior_std**2 + s**2)
            variance = float(GaussianNoise(spread).sigma) ** 2 * (1 + keep * s**2 * curvature)
            return -(z_y - z_matrix @ (keep * z)).square().sum() / (2 * variance)

        log_weight += float(reward(z, sigmas[0]))
        for k, (s, after) in enumerate(pairwise(sigmas)):
            tau = 4 * (s**2 - after**2)
            marginal = z_covariance + 4 * s**2 * torch.eye(4, dtype=torch.float64)
            score = -torch.linalg.solve(marginal, z - z_mean)
            with torch.enable_grad():
                leaf = z.clone().requires_grad_(True)
                (gradient,) = torch.autograd.grad(reward(leaf, s), leaf)
            rate = power * (power - 1) / 2 * score @ score + power / 2 * score @ gradient
            log_weight += float(tau * rate + reward(z, after) - reward(z, s))
            z = z + tau * (power * score + gradient / 2) + tau**0.5 * numbers[k + 1][0, n].flatten()
            assert torch.allclose((z + 1) / 2, found[k][0][0, n].flatten(), atol=1e-6)
            assert found[k][1][0, n].item() == pytest.approx(log_weight, rel=1e-6, abs=1e-6)


def law(cloud: Cloud) -> tuple[Tensor, Tensor]:
    """Mean and variance of every pixel, averaged over chains."""
    mean = cloud.mean.mean(0).flatten()
    second = (cloud.var + cloud.mean**2).mean(0).flatten()
    return mean, second - mean**2


@pytest.mark.parametrize("curvature", [None, 4.0, 400.0])
def test_the_posterior_of_a_gaussian_whatever_the_annealing(curvature: float | None) -> None:
    """N(0.4, 0.25^2) and one measurement 0.8 with noise 0.1."""
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.full((1, 1, 1, 2), 0.8))
    sampler = FKC(
        schedule=EDM(steps=60, sigma_max=10, sigma_min=0.005),
        ensemble=400,
        particles_at_once=10_000,
        curvature=curvature,
    )
    cloud = sampler.cloud(problem, WhitePrior(), chains=10, compute=QUIET)
    gain = 0.25**2 / (0.25**2 + 0.1**2)
    mean, variance = law(cloud)
    assert torch.allclose(mean, torch.full_like(mean, 0.4 + gain * 0.4), atol=0.015)
    assert torch.allclose(variance, torch.full_like(variance, (1 - gain) * 0.25**2), rtol=0.15)


def test_a_colder_prior_is_narrower() -> None:
    """p(x)^3 times the likelihood: the prior's variance a third."""
    problem = InverseProblem(Denoising(), GaussianNoise(0.2), torch.full((1, 1, 1, 2), 0.8))
    sampler = FKC(schedule=EDM(steps=120, sigma_max=5, sigma_min=0.005), inverse_temperature=3.0, **MANY)
    mean, variance = law(sampler.cloud(problem, WhitePrior(), chains=10, compute=QUIET))
    gain = 0.25**2 / 3 / (0.25**2 / 3 + 0.2**2)
    assert torch.allclose(mean, torch.full_like(mean, 0.4 + gain * 0.4), atol=0.02)
    assert torch.allclose(variance, torch.full_like(variance, (1 - gain) * 0.25**2 / 3), rtol=0.2)


@pytest.mark.parametrize("kind", ["nonlinear", "poisson"])
def test_other_likelihoods_on_a_grid(kind: str) -> None:
    """A cubed pixel, and counts: the mean against quadrature."""
    if kind == "nonlinear":
        operator = CallableOperator(lambda x: x**3, image_shape=(1, 1, 1))
        problem = InverseProblem(operator, GaussianNoise(0.1), torch.full((1, 1, 1, 1), 0.3))
    else:
        problem = InverseProblem(Denoising(), PoissonNoise(0.1), torch.full((1, 1, 1, 1), 0.7))
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    many = problem.select(torch.zeros(3001, dtype=torch.long))
    log_density = -((grid - 0.4) ** 2) / (2 * 0.25**2) - many.nll(grid.reshape(-1, 1, 1, 1))
    share = log_density.softmax(0)
    wanted, width = share @ grid, (share @ grid**2 - (share @ grid) ** 2).sqrt()
    sampler = FKC(schedule=EDM(steps=60, sigma_max=5, sigma_min=0.005), **MANY)
    cloud = sampler.cloud(problem, WhitePrior(), chains=10, compute=QUIET)
    assert cloud.mean.mean().item() == pytest.approx(float(wanted), abs=0.15 * float(width))
    assert law(cloud)[1].sqrt().item() == pytest.approx(float(width), rel=0.15)


# -- the paper's other densities ---------------------------------------------------------------------------------------

BROAD = (torch.tensor([0.2, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))
NARROW = (torch.tensor([-0.1, 0.4]), torch.tensor([[0.2, -0.05], [-0.05, 0.3]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "powers"),
    [
        ([BROAD], [2.0]),
        ([BROAD], [0.5]),
        ([BROAD, NARROW], [1.0, 1.0]),
        ([BROAD, NARROW], [0.3, 0.7]),
        ([BROAD, NARROW], [-0.5, 1.5]),
    ],
    ids=["cold", "hot", "product", "average", "guidance"],
)
def test_powers_and_products_of_gaussians(experts: list, powers: list[float]) -> None:
    """Mean, covariance and integral in closed form; tolerances are what 200 steps leave."""
    priors = [GaussianPrior(mean.reshape(1, 1, 2), covariance) for mean, covariance in experts]
    priors[0].unit = 0.5  # the levels below are in the units of the plane
    precisions = [covariance.double().inverse() for _, covariance in experts]
    covariance = sum(b * p for b, p in zip(powers, precisions, strict=True)).inverse()  # type: ignore[union-attr]
    pull = sum(b * p @ m.double() for b, p, (m, _) in zip(powers, precisions, experts, strict=True))
    mean = covariance @ pull
    at_mean = sum(
        b * float(torch.distributions.MultivariateNormal(m.double(), c.double()).log_prob(mean))
        for b, (m, c) in zip(powers, experts, strict=True)
    )
    integral = at_mean + math.log(2 * math.pi) + float(covariance.logdet()) / 2

    schedule = EDM(steps=200, sigma_max=5.0, sigma_min=0.01)
    cloud = compose(priors, powers, (1, 1, 2), schedule=schedule, ensemble=1500, chains=8, resample_below=0.9)
    # Chains count by their evidence: so their mean is as good as one chain of all particles.
    share = cloud.weights * cloud.log_evidence.softmax(0)[:, None]
    x = cloud.particles.double().flatten(2)
    found = torch.einsum("rn,rni->i", share, x)
    spread = torch.einsum("rn,rni,rnj->ij", share, x - found, x - found)
    scale = float(covariance.diagonal().max().sqrt())
    assert torch.allclose(found, mean, atol=0.1 * scale)
    assert torch.allclose(spread, covariance, atol=0.2 * scale**2)
    assert float(cloud.log_evidence.exp().mean().log()) == pytest.approx(integral, abs=0.3)


def test_powers_and_priors_have_to_match() -> None:
    for priors, powers in (([WhitePrior()], [1.0, 2.0]), ([WhitePrior(), WhitePrior()], [1.0, -1.0])):
        with pytest.raises(ValueError, match="one power for each prior, of positive sum"):
            compose(priors, powers, SHAPE)
    with pytest.raises(ValueError, match="this prior expects images of shape"):
        compose([GaussianPrior(BROAD[0].reshape(1, 1, 2), BROAD[1])], [1.0], SHAPE)
