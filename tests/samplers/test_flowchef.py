"""FlowChef: a run in the coordinates of a rectified flow, and what it leaves of precise and of noisy data."""

import torch

from helpers import Dense, Levels, Normals, Scripted, gaussian, normal, smooth
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


def test_published_steps_fit_noise_and_bounded_ones_do_not() -> None:
    """One pixel measured as 1 with noise 0.5: it ends there, or where the residual is no more than the noise. The pixel
    beside it follows by the denoiser alone."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    problem = InverseProblem(
        Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2)), GaussianNoise(0.5), torch.ones(1, 1).double()
    )
    rows, schedule = problem.select(torch.zeros(400, dtype=torch.long)), EDM(steps=100, sigma_max=20.0, sigma_min=0.01)
    laws = {}
    for step, rate in (("published", 0.25), ("bounded", 1.0)):
        sampler = FlowChef(schedule=schedule, step=step, rate=rate, iterations=1)  # type: ignore[arg-type]
        with torch.no_grad():
            *_, last = sampler.iterate(rows, prior, Normals(400, (1, 1, 2)))  # type: ignore[arg-type]
        laws[step] = last.x.flatten(1).mean(0), last.x.flatten(1).var(0)
    (mean, variance), (bounded, _) = laws["published"], laws["bounded"]
    assert abs(float(mean[0]) - 1) < 1e-2
    assert float(mean[1]) > 0.3
    assert float(variance[0]) < 1e-3
    assert 0.4 < float(bounded[0]) < 0.6
