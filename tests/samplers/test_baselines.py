"""TV and MYULA: whole runs by other code, the minimiser, the law without TV, and budgets of network calls."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers import Dense, Scripted, affine_law, alike, normal
from invdiff.benchmark.budget import fit_calls, fit_seconds, steps_of
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianNoise
from invdiff.problem import InverseProblem
from invdiff.samplers import MYULA, TV, Sampler

Array = NDArray[np.float64]
SHAPE, WIDTH, SIGMA = (1, 3, 4), 4, 0.2
MATRIX = normal(7, 12, seed=5) / 3
Y = MATRIX @ (0.5 + 0.3 * normal(12, seed=6)) + SIGMA * normal(7, seed=7)
CENTRE = 0.5


def run(sampler: Sampler, numbers: list[Array]) -> list[Array]:
    """Every iterate on a dense operator."""
    problem = InverseProblem(Dense(MATRIX, SHAPE), GaussianNoise(SIGMA), Y[None], image_shape=SHAPE)
    streams = Scripted([torch.from_numpy(n).reshape(1, *SHAPE) for n in numbers])
    steps = sampler.iterate(problem, WhitePrior(), streams)  # type: ignore[arg-type]
    return [step.x.flatten().numpy() for step in steps]


def edges() -> Array:
    """D as a matrix, (12, 2, 12)."""
    d = np.zeros((12, 2, 12))
    for k in range(12):
        for axis, (neighbour, inside) in enumerate([(k + WIDTH, k + WIDTH < 12), (k + 1, (k + 1) % WIDTH != 0)]):
            if inside:
                d[k, axis, k], d[k, axis, neighbour] = -1, 1
    return d


def cut(p: Array, radius: float) -> Array:
    return np.stack([v if np.hypot(*v) <= radius else radius * v / np.hypot(*v) for v in p])


def drawn(count: int) -> list[Array]:
    return [normal(12, seed=10 + k).numpy() for k in range(count)]


def test_a_run_of_tv_equals_the_paper() -> None:
    """Algorithm 1 of Chambolle and Pock with theta = 1."""
    a, y, d = MATRIX.numpy(), Y.numpy(), edges()
    noise = drawn(1)
    found = run(TV(iterations=6, weight=3.0, ratio=0.2), noise)
    tau, sigma = 0.2 / 3.0 / 8**0.5, 3.0 / 0.2 / 8**0.5
    x = bar = CENTRE + 0.01 * noise[0]
    p = np.zeros((12, 2))
    for k in range(6):
        p = cut(p + sigma * d @ bar, 3.0)
        pulled = x - tau * np.einsum("kai,ka->i", d, p)
        new = np.linalg.solve(np.eye(12) + tau * a.T @ a / SIGMA**2, pulled + tau * a.T @ y / SIGMA**2)
        x, bar = new, 2 * new - x
        assert np.abs(found[k] - x).max() < 1e-6


def test_tv_ends_at_the_minimiser() -> None:
    """That of a gradient descent with momentum on a TV that is rounded off by 1e-4."""
    a, y, d = MATRIX.numpy(), Y.numpy(), edges()
    noise = drawn(1)
    found = run(TV(iterations=1500, weight=3.0), noise)[-1]

    def energy(x: Array) -> float:
        return float(((y - a @ x) ** 2).sum() / (2 * SIGMA**2) + 3.0 * np.hypot(*(d @ x).T).sum())

    x = ahead = np.full(12, CENTRE)
    step = 1 / (np.linalg.norm(a, 2) ** 2 / SIGMA**2 + 3.0 * 8 / 1e-3)
    for k in range(20_000):
        slope = d @ ahead
        rounded = slope / np.sqrt((slope**2).sum(1, keepdims=True) + 1e-6)
        new = ahead - step * (a.T @ (a @ ahead - y) / SIGMA**2 + 3.0 * np.einsum("kai,ka->i", d, rounded))
        x, ahead = new, new + k / (k + 3) * (new - x)
    assert energy(found) <= energy(x) + 1e-6
    assert np.abs(found - x).max() < 5e-3


def test_a_run_of_myula_equals_the_paper() -> None:
    """Equation 3.4, with the dual field of the proximal operator kept from one step to the next."""
    a, y, d = MATRIX.numpy(), Y.numpy(), edges()
    noise = drawn(7)
    found = run(MYULA(iterations=6, weight=3.0, spread=0.7, inner=2), noise)
    largest = np.linalg.norm(a, 2) ** 2 / SIGMA**2 + 1 / 0.7**2
    delta = 1 / (4 * largest)
    x, p = CENTRE + 0.01 * noise[0], np.zeros((12, 2))
    for k in range(6):
        for _ in range(2):
            p = cut(p + d @ (x - np.einsum("kai,ka->i", d, p)) / 8, 3.0 / largest)
        prox = x - np.einsum("kai,ka->i", d, p)
        gradient = a.T @ (a @ x - y) / SIGMA**2 + (x - CENTRE) / 0.7**2
        x = x - delta * gradient - delta * largest * (x - prox) + (2 * delta) ** 0.5 * noise[k + 1]
        assert np.abs(found[k] - x).max() < 1e-4  # the norm is that of a power iteration


def test_myula_without_tv_has_the_law_of_langevin_steps() -> None:
    """Of a Gaussian with precision h: its mean, and the variance 1 / (h (1 - delta h / 2))."""
    problem, prior = alike(0.3)
    sampler = MYULA(iterations=200, weight=0.0, spread=0.5 / prior.scale)
    mean, covariance = affine_law(sampler, problem, prior)
    h = torch.tensor([1 / 0.3**2 + 4.0, 4.0]).double()  # the first pixel is measured as 1
    delta = 1 / (4 * h[0])
    centre = prior.centre.double().flatten()
    assert (mean - (centre * 4.0 + torch.tensor([1 / 0.3**2, 0.0])) / h).abs().max() < 1e-4
    assert (covariance - torch.diag(1 / (h * (1 - delta * h / 2)))).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", [TV(), MYULA()], ids=lambda s: s.name())
def test_a_budget_leaves_samplers_without_network_calls_as_they_are(sampler: Sampler) -> None:
    assert fit_calls(sampler, 20, None) == fit_seconds(sampler, 1e-3, None, lambda s: 1.0) == sampler
    assert steps_of(sampler) == sampler.num_steps
