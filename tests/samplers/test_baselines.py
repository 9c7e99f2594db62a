"""Baselines without a network: whole runs by other code, the minimiser, the law without TV, and budgets of calls."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers import Dense, Scripted, affine_law, alike, normal
from invdiff.benchmark.budget import fit_calls, fit_seconds, steps_of
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianNoise
from invdiff.problem import InverseProblem
from invdiff.samplers import MYULA, TV, GraphLa, Sampler, Wavelets

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


def chambolle_pock(x: Array, k: Array, tau: float, sigma: float, bounds: Array, steps: int) -> list[Array]:
    """Algorithm 1 for the sum over the rows of k of bounds times |k x|."""
    a, y, bar, p = MATRIX.numpy(), Y.numpy(), x, np.zeros(len(k))
    found = []
    for _ in range(steps):
        p = np.clip(p + sigma * k @ bar, -bounds, bounds)
        new = np.linalg.solve(np.eye(12) + tau * a.T @ a / SIGMA**2, x - tau * k.T @ p + tau * a.T @ y / SIGMA**2)
        x, bar = new, 2 * new - x
        found.append(x)
    return found


def haar(x: Array) -> Array:
    """Details of two scales of an image that is mirrored: across, down and diagonal of each."""
    x, found = np.pad(x, ((0, 3), (0, 4)), mode="symmetric") / 2, []
    for step in (1, 2):
        across = [(x + sign * np.roll(x, -step, 1)) / 2 for sign in (1, -1)]
        (low, down), (right, diagonal) = ([(b + sign * np.roll(b, -step, 0)) / 2 for sign in (1, -1)] for b in across)
        found, x = [*found, right, down, diagonal], low
    return np.concatenate([band.ravel() for band in found])


def test_a_run_of_wavelets_equals_the_paper() -> None:
    noise = drawn(1)
    found = run(Wavelets(iterations=6, weight=3.0, ratio=0.2, scales=2), noise)
    k = np.stack([haar(e.reshape(3, 4)) for e in np.eye(12)], 1)
    x = CENTRE + 0.01 * noise[0]
    expected = chambolle_pock(x, k, 0.2 / 3.0, 3.0 / 0.2, np.full(len(k), 3.0), 6)
    assert np.abs(np.array(found) - expected).max() < 1e-6


def test_a_run_of_graphla_equals_the_paper() -> None:
    noise = drawn(1)
    found = run(GraphLa(iterations=12, weight=3.0, tv_weight=2.5, width=0.3, window=1, ratio=0.2), noise)
    first = run(TV(iterations=6, weight=2.5, ratio=0.2), noise)
    assert np.abs(np.array(found[:6]) - first).max() < 1e-9
    place, u = np.stack(np.divmod(np.arange(12), WIDTH), 1), first[-1]
    near = np.abs(place[:, None] - place[None]).max(-1) == 1
    w = near * np.exp(-((u[:, None] - u[None]) ** 2) / 0.3**2)
    k = (np.diag(w.sum(1)) - w) / w.sum(1).max()
    expected = chambolle_pock(u, k, 0.2 / 3.0 / 2, 3.0 / 0.2 / 2, np.full(12, 3.0), 6)
    assert np.abs(np.array(found[6:]) - expected).max() < 1e-6


def test_space_variant_tv_is_weighted_by_its_first_half() -> None:
    noise, d = drawn(1), edges()
    found = run(TV(iterations=8, weight=3.0, ratio=0.2, space_variant=True), noise)
    first = run(TV(iterations=4, weight=3.0, ratio=0.2), noise)
    assert np.abs(np.array(found[:4]) - first).max() < 1e-9
    size = np.hypot(*(d @ first[-1]).T)
    weight = 1 / np.sqrt(1 + (size / size.mean()) ** 2)
    weight *= 3.0 / weight.mean()
    a, y, x, p = MATRIX.numpy(), Y.numpy(), first[-1], np.zeros((12, 2))
    tau, sigma, bar = 0.2 / 3.0 / 8**0.5, 3.0 / 0.2 / 8**0.5, first[-1]
    for k in range(4):
        p = p + sigma * d @ bar
        p *= (weight / np.maximum(weight, np.hypot(*p.T)))[:, None]
        pulled = x - tau * np.einsum("kai,ka->i", d, p) + tau * a.T @ y / SIGMA**2
        new = np.linalg.solve(np.eye(12) + tau * a.T @ a / SIGMA**2, pulled)
        x, bar = new, 2 * new - x
        assert np.abs(found[4 + k] - x).max() < 1e-6


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


@pytest.mark.parametrize("sampler", [TV(), Wavelets(), GraphLa(), MYULA()], ids=lambda s: s.name())
def test_a_budget_leaves_samplers_without_network_calls_as_they_are(sampler: Sampler) -> None:
    assert fit_calls(sampler, 20, None) == fit_seconds(sampler, 1e-3, None, lambda s: 1.0) == sampler
    assert steps_of(sampler) == sampler.num_steps
