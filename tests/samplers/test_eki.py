"""Ensemble Kalman inversion: the update with explicit covariances, its law, and the problems that it refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Remembering, Scripted, assert_law, gaussian, normal, smooth
from invdiff import InverseProblem, Unsupported
from invdiff.contracts.toys import COMPUTE, WhitePrior
from invdiff.operators import CallableOperator, GaussianBlur, GaussianNoise, Inpainting
from invdiff.samplers import EKI
from invdiff.samplers.ensemble.base import Data
from invdiff.schedules import EDM

SHAPE = (1, 4, 4)
SIGMA = 0.1


def iglesias(x: Tensor, matrix: Tensor, y: Tensor, sigma: float, noises: list[Tensor]) -> Tensor:
    """Algorithm 1 with the data misfit controller, one ensemble (J, n), covariances as matrices."""
    count, time = len(y), 0.0
    for n, noise in enumerate(noises):
        predicted = x @ matrix.T
        misfits = ((y - predicted) / sigma).square().sum(1) / 2
        step = max(count / (2 * misfits.mean()), (count / (2 * misfits.var())) ** 0.5)
        step = 1 - time if n == len(noises) - 1 else min(step, 1 - time)
        time += step
        if step == 0:
            continue
        alpha, away, spread = 1 / step, predicted - predicted.mean(0), x - x.mean(0)
        gamma = alpha * sigma**2 * torch.eye(count, dtype=torch.float64)
        gain = (spread.T @ away / (len(x) - 1)) @ torch.linalg.inv(away.T @ away / (len(x) - 1) + gamma)
        x = x + (y + alpha**0.5 * sigma * noise - predicted) @ gain.T
    return x


def heun(x: Tensor, mean: Tensor, covariance: Tensor, levels: list[float]) -> Tensor:
    """Karras et al., Algorithm 1, for a Gaussian prior."""

    def slope(x: Tensor, t: float) -> Tensor:
        return t * torch.linalg.solve(covariance + t**2 * torch.eye(len(mean), dtype=torch.float64), (x - mean).T).T

    for t, after in pairwise(levels):
        first = slope(x, t)
        second = slope(x + (after - t) * first, after) if after > 0 else first
        x = x + (after - t) * (first + second) / 2
    return x


def test_a_run_equals_the_paper() -> None:
    """Draws of the prior and all updates, with half of the pixels measured."""
    particles, updates = 24, 5
    mean, covariance = 0.5 + 0.1 * normal(16, seed=1), smooth(4, 4, std=0.3)
    seen = torch.arange(16) % 2 == 0
    y = normal(16, seed=2) * 0.3 + 0.5
    problem = InverseProblem(
        Inpainting(mask=seen.reshape(1, *SHAPE)),
        GaussianNoise(SIGMA),
        torch.where(seen, y, torch.nan).reshape(1, *SHAPE),
    )
    sampler = EKI(schedule=EDM(steps=6, sigma_max=5.0, sigma_min=0.02), ensemble=particles, updates=updates)
    start = normal(1, particles, *SHAPE, seed=3)
    noises = [normal(1, particles, 16, seed=10 + i) for i in range(updates)]
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # grey is its centre
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted([start, *noises])))  # type: ignore[arg-type]
    levels = sampler.schedule.levels(1.0)
    x = heun(0.5 + levels[0] * start.reshape(particles, 16), mean, covariance, levels)
    assert torch.allclose(found[0].x.flatten(), x[0], atol=1e-10)
    matrix = torch.eye(16, dtype=torch.float64)[seen]
    x = iglesias(x, matrix, y[seen], SIGMA, [n[0][:, seen] for n in noises])
    assert len(found) == sampler.num_steps
    assert torch.allclose(found[-1].x.flatten(), x[0], atol=1e-8)


def test_many_particles_have_the_posterior() -> None:
    """From exact draws of a Gaussian prior, through a linear operator."""
    particles, matrix = 20_000, normal(2, 4, seed=4)
    mean, covariance = normal(4, seed=5), smooth(2, 2, std=1.0)
    y = normal(1, 2, seed=6)
    problem = InverseProblem(Dense(matrix, (1, 2, 2)), GaussianNoise(0.3), y)
    draws = mean + normal(particles, 4, seed=7) @ torch.linalg.cholesky(covariance).T
    sampler = EKI(ensemble=particles, updates=6)
    noises = Scripted(normal(1, particles, 2, seed=20 + i) for i in range(6))
    data = Data(problem, particles)
    *_, x = sampler.condition(data, WhitePrior(), draws.reshape(1, particles, 1, 2, 2), noises)  # type: ignore[arg-type]
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + 0.09 * torch.eye(2))
    truth = mean + (y[0] - matrix @ mean) @ gain.T
    assert_law(x[0], truth, covariance - gain @ matrix @ covariance)


def test_too_many_measurements_are_refused() -> None:
    blur = GaussianBlur(std=1.0, kernel_size=5)
    problem = InverseProblem(blur, GaussianNoise(0.1), blur(torch.rand(1, 1, 8, 8)))
    small = replace(EKI.example(), ensemble=127)
    with pytest.raises(Unsupported, match="at most 63 measurements"):
        small.sample(problem, WhitePrior(), compute=COMPUTE)
    assert not EKI.example().sample(problem, WhitePrior(), compute=COMPUTE).diverged.any()


def test_a_black_box_is_enough() -> None:
    """NumPy inside, nonlinear: the data are explained to the noise."""
    operator = CallableOperator(
        lambda x: torch.from_numpy(x.numpy()[..., ::2] ** 3), differentiable=False, image_shape=(1, 8, 8)
    )
    y = operator(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    problem = InverseProblem(operator, GaussianNoise(0.02), y)
    found = replace(EKI.example(), updates=20).sample(problem, WhitePrior(), compute=COMPUTE)
    assert float(found.misfit.max()) < 2
