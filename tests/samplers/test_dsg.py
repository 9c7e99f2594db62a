"""DSG: a run in the coordinates of the paper, and steps as long as their noise."""

import torch

from helpers import Dense, Levels, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import DSG

SHAPE, LEVELS = (1, 3, 3), (5.0, 1.0, 0.2, 0.0)


def test_a_run_is_the_papers() -> None:
    """DDPM's step on [-1, 1], the noise replaced by sqrt(n) std of the mixed direction; no guidance in step 2."""
    matrix, y = normal(4, 9, seed=1), normal(2, 4, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(3.0), y)
    numbers, h = [normal(2, *SHAPE, seed=k) for k in range(4)], prior.unit
    sampler = DSG(schedule=Levels(values=LEVELS), rate=0.3, interval=2, bounded=False)
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted(numbers)))  # type: ignore[arg-type]
    bars = [1 / (1 + (2 * level) ** 2) for level in LEVELS]  # 2 * level: in units of h, as levels are of [0, 1]
    z = (1 - bars[0]) ** 0.5 * numbers[0]
    for k, (step, t, s, noise) in enumerate(zip(found, bars, bars[1:], numbers[1:], strict=False)):
        z = z.requires_grad_(True)
        d = (prior.denoise(0.5 + h * z / t**0.5, h * (1 / t - 1) ** 0.5) - 0.5) / h
        norm = (y - (0.5 + h * d).flatten(1) @ matrix.T).square().sum(1).sqrt()
        (g,) = torch.autograd.grad(norm.sum(), z)
        alpha = t / s
        mean = s**0.5 * (1 - alpha) / (1 - t) * d + alpha**0.5 * (1 - s) / (1 - t) * z
        std = ((1 - alpha) * (1 - s) / (1 - t)) ** 0.5
        direction = std * noise
        if k % 2 == 0:
            star = -3 * std * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            mixed = direction + 0.3 * (star - direction)
            direction = 3 * std * mixed / mixed.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, 1, 1, 1)
        z = (mean + direction).detach()
        assert (step.x - (0.5 + h * z / s**0.5)).abs().max() < 1e-6


def test_no_rate_is_a_step_as_long_as_its_noise_is_on_average() -> None:
    """And a guided step is bounded: with much noise in y it is nearly that of no rate."""
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    numbers = [normal(2, *SHAPE, seed=k) for k in range(3)]
    steps = {}
    for sigma, rate in ((1e3, 0.0), (1e3, 0.5), (0.1, 0.5)):
        problem = InverseProblem(Dense(normal(4, 9, seed=1), SHAPE), GaussianNoise(sigma), normal(2, 4, seed=2))
        sampler = DSG(schedule=Levels(values=(5.0, 1.0, 0.0)), rate=rate)
        with torch.no_grad():
            steps[sigma, rate] = next(sampler.iterate(problem, prior, Scripted(numbers))).x  # type: ignore[arg-type]
    free = steps[1e3, 0.0]
    assert (steps[1e3, 0.5] - free).abs().max() < 1e-2 * (steps[0.1, 0.5] - free).abs().max()
