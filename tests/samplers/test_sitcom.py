"""SITCOM: a run in the coordinates of the paper with torch's own Adam, and rows that stop when they fit."""

import torch

from helpers import Dense, Levels, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import SITCOM

SHAPE, LEVELS = (1, 3, 3), (5.0, 1.0, 0.0)


def test_a_run_is_the_papers() -> None:
    """On [-1, 1]: Adam on |y - A f(v)|^2 + lambda |z - v|^2 until it is the noise, then f(v) and new noise."""
    matrix, y = normal(4, 9, seed=1), normal(2, 4, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.5), y)
    numbers, h = [normal(2, *SHAPE, seed=k) for k in range(3)], prior.unit
    sampler = SITCOM(schedule=Levels(values=LEVELS), iterations=6, learning_rate=0.1, penalty=0.3)
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted(numbers)))  # type: ignore[arg-type]
    bars = [1 / (1 + (2 * level) ** 2) for level in LEVELS]
    stopped = []
    for row in range(2):
        z = (1 - bars[0]) ** 0.5 * numbers[0][row : row + 1]
        for step, t, s, noise in zip(found, bars, bars[1:], numbers[1:], strict=False):

            def clean(v: torch.Tensor, t: float = t) -> torch.Tensor:
                return (prior.denoise(0.5 + h * v / t**0.5, h * (1 / t - 1) ** 0.5) - 0.5) / h

            v = z.clone().requires_grad_(True)
            adam = torch.optim.Adam([v], lr=0.1)
            for k in range(6):
                misfit = (y[row] - (0.5 + h * clean(v)).flatten(1) @ matrix.T).square().sum() / (4 * 0.5**2)
                if misfit <= 1:
                    stopped.append(k)
                    break
                adam.zero_grad()
                (misfit + 0.3 * (v - z).square().sum()).backward()
                adam.step()
            z = s**0.5 * clean(v.detach()) + (1 - s) ** 0.5 * noise[row : row + 1]
            assert (step.x[row] - (0.5 + h * z / s**0.5)).abs().max() < 1e-5
    assert len(stopped) < 4  # a row that fits at once would compare nothing
