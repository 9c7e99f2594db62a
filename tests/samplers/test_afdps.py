"""AFDPS: its step particle by particle, its Gaussian start, and the limit of the published form."""

import math
from itertools import pairwise

import pytest
import torch

from helpers import Dense, Levels, Remembering, Scripted, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import Denoising, GaussianNoise
from invdiff.samplers import AFDPS
from invdiff.samplers.particles.weights import Weights
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)


def double(value: float) -> float:
    return float(torch.tensor(value))  # noise levels are float32


@pytest.mark.parametrize("annealed", [False, True])
def test_a_run_equals_the_equations(annealed: bool) -> None:
    """Matrices in place of directions: drift S + grad l, and rate d_u l + (lap l + |grad l|^2) / 2 + S . grad l."""
    count, sigmas, spread = 3, (0.9, 0.5, 0.2, 0.0), 0.7
    matrix, mean, covariance = normal(3, 4, seed=1), 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y, eye = normal(1, 3, seed=3), torch.eye(4, dtype=torch.float64)
    numbers = [normal(1, count, *SHAPE, seed=10 + k) for k in range(4)]

    operator = Dense(matrix, SHAPE)
    sampler = AFDPS(schedule=Levels(values=sigmas), ensemble=count, resample_below=0.0, annealed=annealed)
    weights = Weights(1, count, 0.0)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    rng = Scripted([numbers[0], numbers[1], zero, numbers[2], zero, numbers[3]])
    problem = InverseProblem(operator, GaussianNoise(spread), y)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
    with torch.no_grad():
        path = sampler.evolve(problem, prior, rng, weights)
        found = [(x, weights.log_weights) for x, _, _ in path]

    # V: the columns in which the method draws its noise.
    basis = operator.v(eye.reshape(4, *SHAPE)).flatten(1).T

    def noise(s: float) -> torch.Tensor:
        return double(spread) ** 2 * torch.eye(3, dtype=torch.float64) + annealed * s**2 * matrix @ matrix.T

    start = noise(sigmas[0])
    posterior = (eye / sigmas[0] ** 2 + matrix.T @ torch.linalg.solve(start, matrix)).inverse()
    grey = torch.full((4,), 0.5, dtype=torch.float64)
    centre = grey + posterior @ matrix.T @ torch.linalg.solve(start, y[0] - matrix @ grey)
    evidence = torch.distributions.MultivariateNormal(
        matrix @ grey, start + sigmas[0] ** 2 * matrix @ matrix.T
    ).log_prob(y[0])
    constant = 3 / 2 * math.log(2 * math.pi) + start.logdet() / 2  # of the likelihood, which the method leaves out
    for n in range(count):
        deviation = basis @ ((basis.T @ posterior @ basis).diagonal().sqrt() * numbers[0][0, n].flatten())
        x, log_weight = centre + deviation, float(evidence + constant)
        for k, (s, after) in enumerate(pairwise(sigmas)):
            h, residual = s**2 - after**2, y[0] - matrix @ x
            score = -torch.linalg.solve(covariance + s**2 * eye, x - mean)
            gradient = matrix.T @ torch.linalg.solve(noise(s), residual)
            laplacian = -torch.linalg.solve(noise(s), matrix @ matrix.T).trace()
            change = residual @ (torch.linalg.inv(noise(s)) - torch.linalg.inv(noise(after))) @ residual / 2
            log_weight += float(h * ((laplacian + gradient @ gradient) / 2 + score @ gradient) + change)
            x = x + h * (score + gradient) + h**0.5 * basis @ numbers[k + 1][0, n].flatten()
            assert torch.allclose(x, found[k][0][0, n].flatten(), atol=1e-6)
            assert found[k][1][0, n].item() == pytest.approx(log_weight, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("annealed", [False, True])
def test_the_posterior_and_evidence_of_a_gaussian(annealed: bool) -> None:
    """N(0.4, 0.25^2) and one measurement 0.8 with noise 0.5, the least at which full strength is stable here.

    The evidence of full strength is a mean over weights too uneven to be compared.
    """
    problem = InverseProblem(Denoising(), GaussianNoise(0.5), torch.full((1, 1, 1, 2), 0.8))
    schedule = EDM(steps=240, sigma_max=4.0 if annealed else 2.0, sigma_min=0.005)
    cloud = AFDPS(schedule=schedule, ensemble=400, annealed=annealed, particles_at_once=10_000).cloud(
        problem, WhitePrior(), chains=40, compute=QUIET
    )
    gain = 0.25**2 / (0.25**2 + 0.5**2)
    assert cloud.mean.mean().item() == pytest.approx(0.4 + gain * 0.4, abs=0.04)
    assert cloud.var.mean().item() == pytest.approx((1 - gain) * 0.25**2, rel=0.15)
    if not annealed:
        return
    exact = 2 * (math.log(1 - gain) / 2 - 0.4**2 / (2 * (0.25**2 + 0.5**2)))
    assert float(cloud.log_evidence.exp().mean().log()) == pytest.approx(exact, abs=0.2)


def test_full_strength_on_sharp_data_is_reported_as_divergence() -> None:
    problem = InverseProblem(Denoising(), GaussianNoise(0.02), torch.full((1, 1, 4, 4), 0.8))
    schedule = EDM(steps=60, sigma_max=20.0, sigma_min=0.01)
    for annealed in (False, True):
        sampler = AFDPS(schedule=schedule, ensemble=8, annealed=annealed)
        posterior = sampler.sample(problem, WhitePrior(), num_samples=2, compute=QUIET)
        assert bool(posterior.diverged.all()) == (not annealed)
        assert bool(posterior.diverged.any()) == (not annealed)
