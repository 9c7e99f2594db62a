"""Affine-invariant Langevin dynamics: the update with explicit covariances in image space, and its law."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Scripted, normal, smooth
from invdiff import InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianNoise
from invdiff.samplers import ALDI
from invdiff.samplers.ensemble import aldi
from invdiff.samplers.ensemble.base import Data, Span
from invdiff.streams import Streams, key

SIGMA = 0.3


def paper(x: Tensor, matrix: Tensor, y: Tensor, noises: list[Tensor], step: float) -> Tensor:
    """One ensemble (J, n) in image space, covariances as matrices, the prior that of the first ensemble."""
    count, n = x.shape
    mean0, prior = x.mean(0), torch.linalg.inv(x.T.cov())
    for first, second in pairwise(noises):
        away, predicted = x - x.mean(0), x @ matrix.T
        covariance, cross = away.T @ away / count, away.T @ (predicted - predicted.mean(0)) / count
        hessian = prior + matrix.T @ matrix / SIGMA**2
        dt = step / torch.linalg.eigvals(covariance @ hessian).real.max()
        data = (predicted - y) @ cross.T / SIGMA**2
        drift = -data - (x - mean0) @ prior @ covariance + (n + 1) / count * away
        x = x + dt * drift + (2 * dt) ** 0.5 * (first + second) / 2 @ away / count**0.5
    return x


def problem_of(matrix: Tensor, y: Tensor) -> InverseProblem:
    return InverseProblem(Dense(matrix, (1, 2, 2)), GaussianNoise(SIGMA), y[None])


def draws(count: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, covariance = normal(4, seed=5), smooth(2, 2, std=1.0)
    return mean, covariance, mean + normal(count, 4, seed=7) @ torch.linalg.cholesky(covariance).T


def test_a_run_equals_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step from a power iteration that has converged."""
    monkeypatch.setattr(aldi, "stiffest", partial(aldi.stiffest, iterations=400))
    particles, updates, matrix, y = 12, 5, normal(2, 4, seed=4), normal(2, seed=6)
    sampler = ALDI(ensemble=particles, updates=updates, step=0.4)
    noises = [normal(1, particles, particles, seed=20 + i) for i in range(updates + 1)]
    _, _, x = draws(particles)
    data = Data(problem_of(matrix, y), particles)
    start = x.reshape(1, particles, 1, 2, 2)
    *_, found = sampler.condition(data, WhitePrior(), start, Scripted(noises))  # type: ignore[arg-type]
    theirs = paper(x, matrix, y, [n[0] for n in noises], 0.4)
    assert torch.allclose(found[0].reshape(particles, 4), theirs, atol=1e-10)


def test_many_particles_have_the_posterior() -> None:
    """After a long time, of the Gaussian that the draws define."""
    particles, matrix, y = 150, normal(2, 4, seed=4), normal(2, seed=6)
    _, _, x = draws(particles)
    mean, covariance = x.mean(0), x.T.cov()
    sampler, data = ALDI(ensemble=particles, updates=50), Data(problem_of(matrix, y), particles)
    rng = Streams([key(0, "sample", 0)], (1, 2, 2), dtype=torch.float64)
    states = [z[0].reshape(particles, 4) for z in sampler.condition(data, WhitePrior(), x.reshape(1, -1, 1, 2, 2), rng)]
    last = torch.cat(states[-20::5])
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + SIGMA**2 * torch.eye(2))
    root = torch.linalg.cholesky(torch.linalg.inv(covariance - gain @ matrix @ covariance))
    white = (last - mean - (y - matrix @ mean) @ gain.T) @ root
    assert float(white.mean(0).abs().max()) < 0.3
    assert float(white.var(0).min()) > 0.7
    assert float(white.var(0).max()) < 1.4


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 4, 4)])
def test_a_span_is_white(shape: tuple[int, int, int]) -> None:
    """More draws than pixels, and fewer."""
    x = normal(2, 10, *shape, seed=3)
    span = Span.of(x)
    rank = min(9, shape[1] * shape[2])
    assert span.rank.flatten().tolist() == [rank, rank]
    assert torch.allclose(span.images(span.start), x, atol=1e-10)
    covariance = span.start.mT @ span.start / 9
    assert torch.allclose(torch.linalg.eigvalsh(covariance)[:, -rank:], torch.ones(2, rank).double())
