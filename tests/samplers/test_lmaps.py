"""LMAPS: a whole run in the paper's coordinates, its known bias, and modes that have no closed form."""

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import CallableOperator, GaussianNoise
from invdiff.samplers import LMAPS
from invdiff.samplers.optimisers import conjugate_descent
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.45, 0.15, 0.0)  # in the paper's images
SHAPE = (1, 3, 3)


def test_a_run_equals_the_paper() -> None:
    """In z = sqrt(a) x + sqrt(1 - a) n: the mode under x0 ~ N(D, k (1 - a) / a I), then z of the next level from it."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), SHAPE), SHAPE, spread=0.2)
    bar = [1 / (1 + level**2) for level in LEVELS]
    numbers = world.numbers(4)
    found = world.run(LMAPS(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), width=0.7), numbers)
    z = bar[0] ** 0.5 * LEVELS[0] * numbers[0]
    for k in range(4):
        mean, a, after = world.denoise_vp(z, bar[k]), bar[k], bar[k + 1]
        precision = torch.eye(9) / (0.7**2 * (1 - a) / a) + world.matrix.T @ world.matrix / 0.2**2
        gain = torch.linalg.solve(precision, world.matrix.T / 0.2**2)
        z = after**0.5 * (mean + gain @ (world.y - world.matrix @ mean))
        if after < 1:
            z = z + (1 - after) ** 0.5 * numbers[k + 1]
        assert (found[k] - z / after**0.5).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("noise", "mean", "variance"), [(1e-4, (1.0, 0.724), (0.0, 0.187)), (0.3, (0.909, 0.666), (0.038, 0.212))]
)
def test_the_known_bias_for_two_pixels_that_are_alike(
    noise: float, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """By propagation of the affine map: the measured pixel is too near to y and too sure, the other one follows."""
    problem, prior = alike(noise)
    found, covariance = affine_law(LMAPS(schedule=EDM(steps=100, sigma_max=80.0, sigma_min=0.002)), problem, prior)
    assert found.tolist() == pytest.approx(mean, abs=2e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=2e-3)


def test_a_mode_without_closed_form() -> None:
    """Of y = x + x^2: conjugate gradients end where the gradient of the local problem is zero."""
    operator = CallableOperator(lambda x: x + x**2, image_shape=SHAPE)
    y = 0.8 + 0.2 * normal(2, *SHAPE)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.2))
    problem = InverseProblem(operator, GaussianNoise(0.1), y, image_shape=SHAPE)
    mean = 0.4 + 0.1 * normal(2, *SHAPE, seed=1)
    x0 = LMAPS(iterations=12)._most_likely(problem, prior, mean, 0.3)
    slope = (x0 - mean) / 0.3**2 - (y - x0 - x0**2) * (1 + 2 * x0) / 0.1**2
    assert float(slope.abs().max()) < 1e-3


def test_conjugate_descent_is_linear_algebra_on_a_quadratic() -> None:
    """As many steps as there are eigenvalues end at the solution, each row at its own; one that is there stays."""
    values = torch.tensor([1.0, 10.0, 400.0]).double().repeat(3).reshape(SHAPE)
    goal = normal(2, *SHAPE)
    start = torch.cat([torch.zeros(1, *SHAPE), goal[1:]])
    found = conjugate_descent(lambda x: values * (x - goal), start, 3, 0.01, 0.5)
    assert (found - goal).abs().max() < 1e-9
