"""DSD: the paper's gradient in its own coordinates, and the flow that it follows where there are no data."""

from itertools import pairwise
from math import log

import torch
from torch import Tensor

from helpers import Levels, Remembering, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.samplers import DSD

SHAPE = (1, 4, 4)
SIGMAS = (5.0, 2.0, 0.9, 0.4, 0.15, 0.05, 0.0)


def noise_network(z: Tensor, a: float, mean: Tensor, covariance: Tensor) -> Tensor:
    """Of Gaussian images in [-1, 1], z = a^(1/2) x + (1 - a)^(1/2) eps."""
    marginal = a * covariance + (1 - a) * torch.eye(len(mean), dtype=torch.float64)
    return (1 - a) ** 0.5 * torch.linalg.solve(marginal, z - a**0.5 * mean)


def test_a_run_equals_the_paper() -> None:
    """Noise of the walked path, interpolated images, the difference of two noises; torch's own Adam."""
    mean, covariance = 0.3 * normal(16, seed=1), smooth(4, 4, std=0.6)
    seen = torch.arange(16) % 3 == 0
    y, noise = torch.where(seen, 0.6 * normal(16, seed=2), 0), normal(1, *SHAPE, seed=3)
    prior = Remembering(gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4))
    y_unit = torch.where(seen, (y + 1) / 2, torch.nan).reshape(1, *SHAPE)
    problem = InverseProblem(Inpainting(mask=seen.reshape(1, *SHAPE)), GaussianNoise(0.05), y_unit)
    sampler = DSD(schedule=Levels(values=SIGMAS), learning_rate=0.05, lam=0.25, data_term="published")
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, Scripted([noise]))  # type: ignore[arg-type]

    alphas = [1 / (1 + 4 * s**2) for s in SIGMAS]
    path = (1 - alphas[0]) ** 0.5 * noise.flatten()
    mu = y.clone().requires_grad_(True)
    adam = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99), eps=2e-8)
    for (a, b), (sigma, after) in zip(pairwise(alphas), pairwise(SIGMAS), strict=True):
        gradient = torch.zeros(16, dtype=torch.float64)
        if after > 0:
            e = noise_network(path, a, mean, covariance)
            path = (b / a) ** 0.5 * (path - (1 - a) ** 0.5 * e) + (1 - b) ** 0.5 * e
            here, there = (alpha**0.5 * mu.detach() + (1 - alpha) ** 0.5 * e for alpha in (a, b))
            difference = noise_network(there, b, mean, covariance) - noise_network(here, a, mean, covariance)
            gradient = 0.25 * (1 / b - 1) ** 0.5 * difference / log(sigma / after)
        adam.zero_grad()
        mu.grad = (mu.detach() - y) * seen + gradient
        adam.step()
    assert (2 * last.x.flatten() - 1 - mu.detach()).abs().max() < 1e-8


def test_steps_of_size_1_follow_the_flow() -> None:
    """From the clean estimate of the start to that of every level of Euler's walk."""
    prior = gaussian(0.4 + 0.1 * normal(*SHAPE, seed=1), smooth(4, 4, std=0.3))
    noise = normal(1, *SHAPE, seed=2)
    path = prior.start(SIGMAS[0], noise)
    mu, distilled = prior.denoise(path, SIGMAS[0]), DSD()._distillation(prior, lambda: noise)
    for sigma, after in pairwise(SIGMAS[:-1]):
        path = path + (after - sigma) / sigma * (path - prior.denoise(path, sigma))
        _, pull = distilled(mu, sigma, after)
        mu = mu - log(sigma / after) * pull
        assert torch.allclose(mu, prior.denoise(path, after), atol=1e-10)
