"""FPS: a run against the paper in its own coordinates, one particle after the other, and its law as noise goes to 0."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Remembering, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import FPS
from invdiff.samplers.particles.weights import Weights

SHAPE = (1, 2, 2)
LEVELS = Levels(values=(3.0, 1.2, 0.6, 0.3, 0.15, 0.08, 0.0))


def paper(
    noises: list[Tensor], matrix: Tensor, y: Tensor, sigma: float, mean: Tensor, covariance: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """On images 2 u - 1 of variance-preserving noise alpha, without resampling: particles (N, n), log-weights (N,).

    noises  standard normal numbers in images' coordinates: of the path, of the start, then of each step
    """
    n, eye = matrix.shape[1], torch.eye(matrix.shape[1], dtype=torch.float64)
    alphas = [1 / (1 + (2 * s) ** 2) for s in LEVELS.values]
    path_noise, start_noise, *rest = noises

    def bayes(m: Tensor, v: float, seen: Tensor, a: float, noise: Tensor) -> Tensor:
        """N(x; m, v) N(seen; matrix x, a sigma^2); noise in the eigenbasis of the operator, its own root."""
        covariance = torch.linalg.inv(eye / v + matrix.T @ matrix / (a * sigma**2))
        values, vectors = torch.linalg.eigh(covariance)
        centre = (m / v + seen @ matrix / (a * sigma**2)) @ covariance
        return centre + noise @ (vectors @ torch.diag(values.sqrt()) @ vectors.T)

    seen = alphas[0] ** 0.5 * y + (1 - alphas[0]) ** 0.5 * matrix @ path_noise
    x = bayes(torch.zeros(n, dtype=torch.float64), 1 - alphas[0], seen, alphas[0], start_noise)
    logs = torch.zeros(len(x), dtype=torch.float64)
    for (a, after), (path, noise) in zip(pairwise(alphas), zip(rest[::2], rest[1::2], strict=True), strict=False):
        marginal = a * covariance + (1 - a) * eye
        x0 = mean + a**0.5 * (x - a**0.5 * mean) @ torch.linalg.solve(marginal, covariance)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        c = share
        seen = (
            after**0.5 * y
            + ((1 - c) * (1 - after) / (1 - a)) ** 0.5 * (seen - a**0.5 * y)
            + (c * (1 - after)) ** 0.5 * matrix @ path
        )
        m, v = after**0.5 * x0 + ((1 - c) * (1 - after)) ** 0.5 * eps, c * (1 - after)
        total = v * matrix @ matrix.T + after * sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        away = seen - m @ matrix.T
        logs = logs - (away * torch.linalg.solve(total, away.T).T).sum(1) / 2
        x = bayes(m, v, seen, after, noise)
    a = alphas[-2]
    marginal = a * covariance + (1 - a) * eye
    return mean + a**0.5 * (x - a**0.5 * mean) @ torch.linalg.solve(marginal, covariance), logs


@pytest.mark.parametrize("share", [0.95, 0.4])
def test_a_run_equals_the_paper(share: float) -> None:
    particles, matrix = 5, normal(2, 4, seed=1)
    mean, covariance = 0.3 * normal(4, seed=2), smooth(2, 2, std=0.6)
    y = normal(2, seed=3)
    operator = Dense(matrix, SHAPE)
    steps = len(LEVELS.values) - 2
    singular = [normal(4, seed=10), normal(particles, 4, seed=11)]
    singular += [n for k in range(steps) for n in (normal(4, seed=20 + k), normal(particles, 4, seed=40 + k))]
    theirs, logs = paper(
        [n @ operator.right for n in singular], matrix, y, 0.2, mean, covariance, share
    )  # V n of each number
    # On [0, 1]: u = (x + 1) / 2, y' = (y + A 1) / 2, and half of the noise.
    problem = InverseProblem(operator, GaussianNoise(0.1), ((y + matrix.sum(1)) / 2)[None])
    prior = Remembering(gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4))
    sampler = FPS(schedule=LEVELS, fresh=share, ensemble=particles, resample_below=0.0)
    numbers = [n.reshape(1, *SHAPE) if n.dim() == 1 else n.reshape(1, particles, *SHAPE) for n in singular]
    uniform = torch.zeros(1, 1, dtype=torch.float64)
    script = [*numbers[:2]]
    for path, noise in zip(numbers[2::2], numbers[3::2], strict=True):
        script += [path, uniform, noise]
    weights = Weights(1, particles, 0.0)
    with torch.no_grad():
        *_, (x, _, sigma) = sampler.evolve(problem, prior, Scripted(script), weights)  # type: ignore[arg-type]
    assert sigma == 0
    assert torch.allclose(2 * x.flatten(2)[0] - 1, theirs, atol=1e-9)
    assert torch.allclose(weights.log_weights[0], logs, atol=1e-8)


def test_noise_is_counted_again_at_every_level() -> None:
    """What was measured is too narrow, the more so the more levels there are below the noise of y."""
    sigma, variance = 0.2, 0.09
    prior = gaussian(torch.full(SHAPE, 0.5), variance * torch.eye(4))
    operator = Dense(torch.eye(4, dtype=torch.float64)[:2], SHAPE)
    problem = InverseProblem(operator, GaussianNoise(sigma), torch.full((300, 2), 0.6, dtype=torch.float64))
    found = []
    for steps in (10, 40):
        sampler = FPS(schedule=replace(FPS().schedule, steps=steps), ensemble=4)
        with torch.no_grad():
            *_, last = sampler.iterate(problem, prior, Normals(300, SHAPE))  # type: ignore[arg-type]
        found.append(float(last.x.flatten(1)[:, :2].var(0).mean()) / (variance * sigma**2 / (variance + sigma**2)))
    assert found[1] < 0.8 * found[0] < 0.8
