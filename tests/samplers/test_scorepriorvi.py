"""The variational score prior: a run against torch's Adam and a flow in closed form, and the Gaussian that it fits."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Scripted, normal
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianNoise
from invdiff.samplers import ScorePriorVI

SHAPE, SIGMA = (1, 2, 2), 0.1
MATRIX, Y = normal(3, 4, seed=1), 0.5 + 0.3 * normal(3, seed=2)
PROBLEM = InverseProblem(Dense(MATRIX, SHAPE), GaussianNoise(SIGMA), Y[None])


def precision(variance: float, levels: list[float]) -> float:
    """Of Gaussian images, as Heun's steps up the levels have it: they multiply an image by one number."""
    factor = 1.0
    for s, t in pairwise(levels):
        first = s / (variance + s**2)
        second = (1 + (t - s) * first) * t / (variance + t**2)
        factor *= 1 + (t - s) * (first + second) / 2
    return factor**2 / levels[-1] ** 2


def test_a_run_equals_the_paper() -> None:
    """Images in [-1, 1], levels of them; one loss, torch's own Adam for the mean and the logarithms."""
    updates, levels, prior = 6, (3.0, 1.0, 0.3, 0.05, 0.0), WhitePrior(0.5, 0.25)
    sampler = ScorePriorVI(schedule=Levels(values=levels), updates=updates, learning_rate=0.05)
    numbers = [normal(1, *SHAPE, seed=10 + i) for i in range(2 * updates + 1)]
    with torch.no_grad():
        *_, last = sampler.iterate(PROBLEM, prior, Scripted(numbers))  # type: ignore[arg-type]

    p = precision(0.25, [2 * s for s in levels[-2::-1]])
    away = Y - MATRIX @ torch.full((4,), 0.5, dtype=torch.float64)
    mu = (2 * torch.linalg.pinv(MATRIX) @ away).requires_grad_(True)
    log_std = torch.full((4,), 0.2, dtype=torch.float64).log().requires_grad_(True)
    rates = 0.1, 0.05  # of the mean, and of the logarithms, which have no unit
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip((mu, log_std), rates, strict=True)]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12)
    for i in range(updates):
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - i / updates)
        x = mu + log_std.exp() * numbers[2 * i].flatten()
        loss = (away - MATRIX @ x / 2).square().sum() / (2 * SIGMA**2) + p / 2 * x.square().sum() - log_std.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    theirs = mu.detach() + log_std.detach().exp() * numbers[-1].flatten()
    assert torch.allclose(2 * last.x.flatten() - 1, theirs, atol=1e-5)


@pytest.mark.slow
def test_the_nearest_gaussian_of_independent_pixels() -> None:
    """Its mean is that of the posterior; its variances are one over the diagonal of the precision."""
    levels, prior = ScorePriorVI().schedule.levels(1.0)[-2::-1], WhitePrior(0.5, 0.25)
    matrix = precision(0.25**2, levels) * torch.eye(4, dtype=torch.float64) + MATRIX.T @ MATRIX / SIGMA**2
    seen = MATRIX.T @ (Y - MATRIX @ torch.full((4,), 0.5, dtype=torch.float64)) / SIGMA**2
    centre = 0.5 + torch.linalg.solve(matrix, seen)
    found = ScorePriorVI().sample(PROBLEM, prior, num_samples=400, compute=Compute(device="cpu", progress=False))
    x: Tensor = found.samples[0].flatten(1)
    assert torch.allclose(x.mean(0), centre, atol=0.06)
    assert torch.allclose(x.var(0), 1 / matrix.diagonal(), rtol=0.35)
