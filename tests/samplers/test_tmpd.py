"""TMPD: the authors' formula, and the law where it is exact."""

import pytest
import torch

from helpers import Dense, Levels, Normals, Scripted, affine_law, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.integrators import DDIM
from invdiff.operators import GaussianNoise
from invdiff.samplers import TMPD
from invdiff.schedules import EDM

SHAPE = (1, 3, 3)


def test_a_run_is_the_papers_with_row_sums() -> None:
    """x_s = ancestral(x, D_y), D_y = D + s^2 J^T A^T (y - A D) / (sigma_y^2 + s^2 A J^T A^T 1); J by autograd.

    A takes means of pixels that do not overlap and images are white: the row sums are those of a multiple of 1.
    """
    matrix, y = torch.kron(torch.eye(3), torch.full((1, 3), 1 / 3)).double(), 0.5 + 0.3 * normal(2, 3, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), 0.3**2 * torch.eye(9))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    numbers = [normal(2, *SHAPE, seed=k) for k in range(4)]
    sampler = TMPD(schedule=Levels(values=(5.0, 1.0, 0.2, 0.0)))
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted(numbers)))  # type: ignore[arg-type]
    sigmas = [2 * prior.unit * level for level in (5.0, 1.0, 0.2, 0.0)]
    x = 0.5 + sigmas[0] * numbers[0]
    for step, t, s, z in zip(found, sigmas, sigmas[1:], numbers[1:], strict=False):
        guided = torch.empty_like(x)
        for row in range(2):
            d = prior.denoise(x[row : row + 1], t).flatten()
            jacobian = torch.autograd.functional.jacobian(lambda v, t=t: prior.denoise(v, t), x[row : row + 1])
            spread = t**2 * matrix @ jacobian.reshape(9, 9).T @ matrix.T
            weighted = (y[row] - matrix @ d) / (0.3**2 + spread.sum(1))
            guided[row] = (d + t**2 * jacobian.reshape(9, 9).T @ matrix.T @ weighted).reshape(SHAPE)
        tau = 1 - (s / t) ** 2
        x = x - tau * (x - guided) + s * tau**0.5 * z
        assert (step.x - x).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("eta", "mean", "variance"), [(1.0, (0.917, 0.734), (0.0727, 0.368)), (0.0, (0.914, 0.727), (0.0776, 0.391))]
)
def test_the_law_of_two_pixels(eta: float, mean: tuple[float, float], variance: tuple[float, float]) -> None:
    """N(0, [[1, .8], [.8, 1]]), the first of them measured as 1 with noise 0.3; 100 steps. The numbers are those of a
    propagation of moments in NumPy. The exact ones, to which more steps lead: .917, .734 and .0826, .4128."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    problem = InverseProblem(
        Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2)), GaussianNoise(0.3), torch.ones(1, 1).double()
    )
    sampler = TMPD(schedule=EDM(steps=100, sigma_max=80.0, sigma_min=0.002), integrator=DDIM(eta=eta))
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=1e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=1e-3)


def test_rows_that_sum_to_nothing_do_not_count_as_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of correlated pixels: the sums of A J A^T are about 0, its diagonal is not, and the data fit."""
    monkeypatch.setattr(TMPD, "ends_explained", False)
    matrix = torch.tensor([[1.0, -1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, -1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.3))
    y = matrix.double() @ (0.5 + 0.3 * normal(9, seed=5))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.01), y[None])
    for variances in ("row_sums", "diagonal"):
        sampler = TMPD(schedule=EDM(steps=40, sigma_max=10.0, sigma_min=0.003), variances=variances)  # type: ignore[arg-type]
        with torch.no_grad():
            *_, last = sampler.iterate(problem, prior, Normals(1, SHAPE))  # type: ignore[arg-type]
        assert float(problem.misfit(last.x)) < 5
