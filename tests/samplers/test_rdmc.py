"""RDMC: a run against the reverse Ornstein-Uhlenbeck process in its own coordinates, and its law."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Remembering, Scripted, assert_law, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import RDMC
from invdiff.schedules import EDM

SHAPE = (1, 2, 2)
SIGMA = 0.2
LEVELS = Levels(values=(2.0, 1.0, 0.5, 0.2, 0.0))
EYE = torch.eye(4, dtype=torch.float64)


def paper(numbers: list[Tensor], matrix: Tensor, y: Tensor, mean: Tensor, covariance: Tensor, inner: int) -> Tensor:
    """x_t = e^-t x0 + (1 - e^-2t)^(1/2) eps, one sample, its denoiser the mean of two chains of Langevin steps whose
    noise is that of two neighbours (Leimkuhler and Matthews); numbers in the order of their use.
    """
    script = iter(numbers)
    times = [math.log(1 + s**2) / 2 for s in LEVELS.values]
    last = LEVELS.values[-2]
    x = math.exp(-times[0]) * (0.5 + LEVELS.values[0] * next(script))
    probe = next(script)
    chains = 0.5 + 0.25 * next(script)
    for t, after in pairwise(times):
        s2 = math.exp(2 * t) - 1
        smoothing = max(0.15 * s2**0.5, last) ** 2

        def data(x0: Tensor) -> Tensor:
            return (x0 @ matrix.T - y) @ matrix / SIGMA**2

        for _ in range(2):
            shift = probe * 0.01 / probe.abs().amax(1, keepdim=True)
            change = data(chains + shift) - data(chains - shift)
            curvature, probe = change.norm(dim=1) / (2 * shift.norm(dim=1)), change
        eta = (1 / (curvature + 1 / s2 + 1 / smoothing))[:, None]

        def gradient(x0: Tensor, s2: float = s2, smoothing: float = smoothing, t: float = t, x: Tensor = x) -> Tensor:
            prior = torch.linalg.solve(covariance + smoothing * EYE, (x0 - mean).T).T
            return (x0 - math.exp(t) * x) / s2 + data(x0) + prior

        before = next(script)
        for _ in range(inner):
            fresh = next(script)
            chains = chains - eta / 2 * gradient(chains) + eta.sqrt() / 2 * (before + fresh)
            before = fresh
        estimate = chains.mean(0)
        # q(x_after | x_t, x0) of the forward process.
        kept, rest = math.exp(after - t), 1 - math.exp(-2 * t)
        gain = kept * (1 - math.exp(-2 * after)) / rest
        centre = gain * x + (math.exp(-after) - gain * math.exp(-t)) * estimate
        x = centre + ((1 - math.exp(-2 * after)) * (1 - kept**2) / rest) ** 0.5 * next(script)
    return x


def test_a_run_equals_the_paper() -> None:
    matrix, y = normal(2, 4, seed=1), normal(2, seed=2)
    mean, covariance = 0.5 + 0.3 * normal(4, seed=3), smooth(2, 2, std=0.4)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # grey is its centre
    inner, steps = 3, len(LEVELS.values) - 1
    shapes = [1, 2, 2, *([2] * (inner + 1) + [1]) * steps]
    numbers = [normal(rows, 4, seed=10 + i) for i, rows in enumerate(shapes)]
    theirs = paper([n[0] if len(n) == 1 else n for n in numbers], matrix, y, mean, covariance, inner)
    script = [n.reshape(1, *SHAPE) if len(n) == 1 else n.reshape(1, 2, *SHAPE) for n in numbers]
    sampler = RDMC(schedule=LEVELS, chains=2, inner=inner, momentum=0.0)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(SIGMA), y[None])
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, Scripted(script))  # type: ignore[arg-type]
    assert torch.allclose(last.x.flatten(), theirs, atol=1e-9)


def test_one_chain_has_the_posterior() -> None:
    """Without smoothing and with long chains, also where the steps are long: mean and covariance."""
    matrix, y = normal(2, 4, seed=4), normal(2, seed=5)
    mean, covariance = normal(4, seed=6), smooth(2, 2, std=0.7)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(SIGMA), y.expand(800, 2))
    sampler = RDMC(schedule=EDM(steps=6, sigma_max=4.0, sigma_min=0.15), inner=60, smoothing=0.0)
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, Normals(800, SHAPE))  # type: ignore[arg-type]
    # The score of the prior is that of the last level, which is there the prior's own.
    wide = covariance + 0.15**2 * EYE
    gain = wide @ matrix.T @ torch.linalg.inv(matrix @ wide @ matrix.T + SIGMA**2 * EYE[:2, :2])
    assert_law(last.x, mean + gain @ (y - matrix @ mean), wide - gain @ matrix @ wide)
