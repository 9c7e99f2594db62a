"""FlowChef: a run in the coordinates of a rectified flow, and what it leaves of precise and of noisy data."""

import pytest
import torch

from helpers import Answers, Dense, Levels, Normals, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import FlowChef
from invdiff.schedules import EDM

SHAPE, LEVELS = (1, 3, 3), (5.0, 1.0, 0.2, 0.0)


def test_a_run_is_the_papers() -> None:
    """z <- z - dt v - rate grad_D mean (y - A D)^2 on [-1, 1], v held over the iterations, none at the last step."""
    matrix, y = 0.2 * normal(4, 9, seed=1), normal(2, 4, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    number, h = normal(2, *SHAPE, seed=0), prior.unit
    sampler = FlowChef(schedule=Levels(values=LEVELS), iterations=2, step="published", rate=0.7)
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted([number])))  # type: ignore[arg-type]
    times = [2 * level / (1 + 2 * level) for level in LEVELS]
    z = times[0] * number
    for step, t, s in zip(found, times, times[1:], strict=False):
        x0 = (prior.denoise(0.5 + h * z / (1 - t), h * t / (1 - t)) - 0.5) / h
        v = (z - x0) / t
        z = z - (t - s) * v
        for _ in range(2 if s > 0 else 0):
            r = (y - (0.5 + h * x0).flatten(1) @ matrix.T) / h
            change = 0.7 * 2 / 4 * (r @ matrix).reshape(-1, *SHAPE)
            z, x0 = z + change, x0 + change
        assert (step.x - (0.5 + h * z / (1 - s))).abs().max() < 1e-6


def test_published_steps_fit_noise() -> None:
    """One pixel measured as 1 with noise 0.5: it ends there, and the pixel beside it follows by the denoiser alone."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    operator = Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    problem = InverseProblem(operator, GaussianNoise(0.5), torch.ones(100, 1).double())
    sampler = FlowChef(schedule=EDM(steps=100, sigma_max=20.0, sigma_min=0.01), step="published", rate=0.25)
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, Normals(100, (1, 1, 2)))  # type: ignore[arg-type]
    mean, variance = last.x.flatten(1).mean(0), last.x.flatten(1).var(0)
    assert abs(float(mean[0]) - 1) < 1e-2
    assert float(mean[1]) > 0.3
    assert float(variance[0]) < 1e-3


def test_bounded_steps_leave_what_fits() -> None:
    """A clean estimate that misses y by less than its noise stays; one that misses it by more moves, not past y."""
    y, x0 = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.5, 0.9]]).double()
    for noise, wanted in ((0.5, 0.9), (0.01, 0.5)):
        problem = InverseProblem(Dense(torch.eye(2), (1, 1, 2)), GaussianNoise(noise), y)
        prior = Answers(x0.reshape(1, 1, 1, 2))
        sampler = FlowChef(schedule=Levels(values=(1.0, 0.5, 0.0)))
        with torch.no_grad():
            first = next(sampler.iterate(problem, prior, Scripted([torch.zeros(1, 1, 1, 2).double()])))  # type: ignore[arg-type]
        assert float(first.x0.flatten()[1]) == pytest.approx(wanted, abs=0.02)
