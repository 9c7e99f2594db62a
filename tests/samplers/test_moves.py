"""The longest step of DPS and MCG: Bayes' rule along the gradient, and over the steps of an operator."""

import pytest
from torch import Tensor

from helpers import dense, normal
from invdiff import InverseProblem
from invdiff.operators import Denoising, GaussianBlur, GaussianNoise, Quantisation
from invdiff.samplers.moves import longest_step
from invdiff.shapes import per_row, row_gradient, row_norm

SHAPE = (1, 8, 8)


def moved(problem: InverseProblem, x0: Tensor, sigma: float, jacobian: float) -> tuple[Tensor, Tensor]:
    """The longest step, where the Jacobian of x0 by x is this number, and the gradient by x."""
    slope, misfit = row_gradient(lambda x: row_norm(problem.residual(x)), x0), row_norm(problem.residual(x0))
    return longest_step(problem, sigma, x0, misfit, slope, jacobian * slope, 1.0), jacobian * slope


@pytest.mark.parametrize("sigma", [0.05, 0.3, 3.0])
def test_where_every_pixel_is_measured_the_step_ends_at_the_mean_of_bayes_rule(sigma: float) -> None:
    x0, y, noise = normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2), 0.2
    problem = InverseProblem(Denoising(), GaussianNoise(noise), y)
    step, gradient = moved(problem, x0, sigma, 1.0)
    expected = (x0 / sigma**2 + y / noise**2) / (1 / sigma**2 + 1 / noise**2)
    assert (x0 - per_row(step, x0) * gradient - expected).abs().max() < 1e-6  # the noise level is float32


@pytest.mark.parametrize("jacobian", [0.5, 3.0])
def test_without_noise_the_estimate_moves_to_the_least_residual(jacobian: float) -> None:
    """A Jacobian below 1 counts for 1: the estimate then falls short."""
    operator, x0, y = GaussianBlur(std=1.0, kernel_size=5), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    problem = InverseProblem(operator, GaussianNoise(1e-6), y)
    step, gradient = moved(problem, x0, 1.0, jacobian)
    matrix = dense(operator, SHAPE)
    change = max(jacobian, 1.0) * gradient.flatten(1) @ matrix.T
    residual = problem.residual(x0).flatten(1) + per_row(step, x0).flatten(1) * change
    assert ((residual * change).sum(1) / (row_norm(residual) * row_norm(change))).abs().max() < 1e-4


@pytest.mark.parametrize("side", [16, 128])
def test_the_steps_of_an_operator_do_not_shorten_it(side: int) -> None:
    x0, y = 0.5 + 0.1 * normal(1, 1, side, side, seed=1), 0.5 + 0.1 * normal(1, 1, side, side, seed=2)
    found = [moved(InverseProblem(a, GaussianNoise(0.05), y), x0, 0.1, 1.0)[0] for a in (Denoising(), Quantisation())]
    assert 0.5 < float(found[1] / found[0]) < 2
