"""BFFG: a run in the information filter of the paper, and the posterior of Gaussian images."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Remembering, Scripted, assert_law, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianNoise
from invdiff.samplers import BFFG
from invdiff.samplers.particles.weights import Weights
from invdiff.schedules import EDM

SHAPE = (1, 2, 2)
EYE = torch.eye(4, dtype=torch.float64)


def kernel(a: float, b: float) -> tuple[float, float, float]:
    """DDPM's posterior from alpha_bar a to b > a: factors of the clean estimate and of z, and the variance."""
    beta = 1 - a / b
    return b**0.5 * beta / (1 - a), (a / b) ** 0.5 * (1 - b) / (1 - a), (1 - b) / (1 - a) * beta


def expected(h: Tensor, f: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Log of the integral of N(z; mean, variance I) exp(f^T z - z^T h z / 2)."""
    size, away = torch.linalg.slogdet(EYE + variance * h)[1], f - h @ mean
    rest = variance * away @ torch.linalg.solve(EYE + variance * h, away)
    return f @ mean - mean @ h @ mean / 2 + rest / 2 - size / 2


def test_a_run_equals_the_information_filter_of_the_paper() -> None:
    """Images in [-1, 1], z = sqrt(alpha_bar) (2 x - 1) + sqrt(1 - alpha_bar) n; h(z) = exp(c + f^T z - z^T h z / 2)."""
    count, sigmas, t = 3, (3.0, 1.2, 0.4, 0.0), 0.3
    noise = float(GaussianNoise(0.3).sigma) ** 2
    matrix, mean, covariance = normal(3, 4, seed=1), 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y, operator = normal(1, 3, seed=3), Dense(matrix, SHAPE)
    numbers = [normal(1, count, *SHAPE, seed=10 + k) for k in range(4)]
    sampler = BFFG(schedule=Levels(values=sigmas), ensemble=count, resample_below=0.0, prior_std=t)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # grey is its centre
    weights, zero = Weights(1, count, 0.0), torch.zeros(1, 1).double()
    rng = Scripted([numbers[0], zero, numbers[1], zero, numbers[2], numbers[3]])
    with torch.no_grad():
        problem = InverseProblem(operator, GaussianNoise(0.3), y)
        found = [(x, weights.log_weights) for x, _, _ in sampler.evolve(problem, prior, rng, weights)]  # type: ignore[arg-type]

    alphas = [1 / (1 + 4 * s**2) for s in sigmas]
    away = y[0] - matrix @ torch.full((4,), 0.5, dtype=torch.float64)
    h, f, c = matrix.T @ matrix / (4 * noise), matrix.T @ away / (2 * noise), -away @ away / (2 * noise)
    filtered = [(h, f, c)]
    for b, a in pairwise(reversed(alphas)):
        of_clean, of_z, q = kernel(a, b)
        phi = of_z + of_clean * a**0.5 * 4 * t**2 / (a * 4 * t**2 + 1 - a)
        c = c + expected(h, f, torch.zeros(4, dtype=torch.float64), q)
        h, f = phi**2 * torch.linalg.solve(EYE + q * h, h), phi * torch.linalg.solve(EYE + q * h, f)
        filtered.append((h, f, c))
    filtered.reverse()

    def move(mean: Tensor, q: float, h: Tensor, f: Tensor, n: Tensor) -> Tensor:
        """A draw of N(z; mean, q) exp(f^T z - z^T h z / 2), its root taken along the singular vectors of A."""
        covariance = q * torch.linalg.inv(EYE + q * h)
        root = operator.right.T @ (operator.right @ covariance @ operator.right.T).diagonal().sqrt().diag()
        return mean + covariance @ (f - h @ mean) + root @ n

    for n in range(count):
        (h, f, c), a = filtered[0], alphas[0]
        centre = torch.zeros(4, dtype=torch.float64)
        log_weight = c + expected(h, f, centre, 1 - a)
        z = move(centre, 1 - a, h, f, numbers[0][0, n].flatten())
        for k, (a, b) in enumerate(pairwise(alphas)):
            of_clean, of_z, q = kernel(a, b)
            marginal = a * 4 * covariance + (1 - a) * EYE
            clean = (z - (1 - a) * torch.linalg.solve(marginal, z - a**0.5 * (2 * mean - 1))) / a**0.5
            lower, (upper_h, upper_f, upper_c) = filtered[k + 1], filtered[k]
            log_h = upper_c + upper_f @ z - z @ upper_h @ z / 2
            true_mean = of_clean * clean + of_z * z
            log_weight = log_weight + lower[2] + expected(lower[0], lower[1], true_mean, q) - log_h
            z = move(true_mean, q, lower[0], lower[1], numbers[k + 1][0, n].flatten())
            assert torch.allclose((z / b**0.5 + 1) / 2, found[k][0][0, n].flatten(), atol=1e-8)
            assert found[k][1][0, n].item() == pytest.approx(float(log_weight), rel=1e-8, abs=1e-8)


def test_the_posterior_of_gaussian_images() -> None:
    """Where images are as the auxiliary ones all weights are equal; elsewhere they make up for the difference."""
    matrix, y = normal(3, 4, seed=4), normal(1, 3, seed=5)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.2), y)
    prior = WhitePrior(0.5, 0.25)
    precision = 16 * EYE + matrix.T @ matrix / 0.04
    centre = torch.linalg.solve(precision, torch.full((4,), 8.0, dtype=torch.float64) + matrix.T @ y[0] / 0.04)
    for prior_std in (0.25, 0.4):
        sampler = BFFG(
            schedule=EDM(steps=100, sigma_max=20.0, sigma_min=0.01),
            ensemble=1000,
            particles_at_once=100_000,
            prior_std=prior_std,
        )
        cloud = sampler.cloud(problem, prior, compute=Compute(device="cpu", progress=False))
        if prior_std == 0.25:
            assert float(cloud.ess.min()) > 999.9
            assert_law(cloud.particles[0], centre, torch.linalg.inv(precision))
        else:
            assert float(cloud.ess.min()) < 900
            away = (cloud.mean[0].flatten().double() - centre) / torch.linalg.inv(precision).diagonal().sqrt()
            assert float(away.abs().max()) < 0.25
