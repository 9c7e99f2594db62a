"""PnP-DM: the paper's draws digit by digit, the law at rest, and the posterior as rho falls and iterations grow."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Remembering, Scripted, assert_law, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.engine.step import Step
from invdiff.operators import CallableOperator, Denoising, GaussianNoise, LinearOperator, PoissonNoise
from invdiff.priors import GaussianMixturePrior, GaussianPrior, Prior
from invdiff.samplers import PnPDM
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)
MIXING = torch.tensor([[1, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.5]])


def run(sampler: PnPDM, problem: InverseProblem, prior: Prior, rng: object) -> list[Step]:
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


def test_a_run_equals_the_algorithm_of_the_paper() -> None:
    """Images in [-1, 1]: z from N(m, P) with P^-1 = A^T A / sigma^2 + I / rho^2, then down a score-based chain."""
    matrix, mean, covariance = normal(3, 4, seed=1), 0.5 + 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y, sigma, grid = normal(1, 3, seed=3), 0.2, (1.5, 0.5, 0.2, 0.0)
    sampler = PnPDM(iterations=2, rho=1.0, decay=0.4, rho_min=0.1, noise_share=None, grid=Levels(values=grid))
    assert sampler.levels(0) == [1.0, 0.5, 0.2, 0.0]
    assert sampler.levels(1) == [0.4, 0.2, 0.0]
    shapes = [SHAPE, (3,), *[SHAPE] * 3, SHAPE, (3,), *[SHAPE] * 2]
    numbers = [normal(1, *shape, seed=10 + k) for k, shape in enumerate(shapes)]
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(sigma), y)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
    found = run(sampler, problem, prior, Scripted(numbers))

    draws, one = iter(n.flatten() for n in numbers), torch.eye(4).double()
    z_matrix, z_y = matrix / 2, y[0] - matrix @ torch.full((4,), 0.5).double()
    x = torch.zeros(4).double()
    for k, rho in enumerate((2.0, 0.8)):
        # The exact draw as that of a perturbed least-squares problem: its noise has the covariance P.
        inner, outer = next(draws), next(draws)
        precision = z_matrix.T @ z_matrix / sigma**2 + one / rho**2
        right = z_matrix.T @ z_y / sigma**2 + x / rho**2
        right = right + z_matrix.T @ outer / sigma + inner / rho
        x = torch.linalg.solve(precision, right)
        walk = [rho, *(2 * level for level in grid if 2 * level < rho)]
        for s, after in pairwise(walk):
            score = -torch.linalg.solve(4 * covariance + s**2 * one, x - (2 * mean - 1))
            x0 = x + s**2 * score
            drift = (after / s) ** 2 * x + (1 - (after / s) ** 2) * x0
            x = drift + after * (1 - (after / s) ** 2) ** 0.5 * next(draws)
        assert (found[k].x.flatten() - (x + 1) / 2).abs().max() < 1e-6


@pytest.mark.parametrize("unit", [1.0, 30.0])
def test_the_last_levels_follow_the_noise_of_y(unit: float) -> None:
    """The last rho is that share of the noise of y in image units, in any unit of y, and never more than rho_min."""
    sigma, shape = 0.02, (1, 64, 64)
    operator = CallableOperator(lambda x: unit * x, image_shape=shape)
    problem = InverseProblem(operator, GaussianNoise(unit * sigma), torch.zeros(1, *shape), image_shape=shape)
    shrink = PnPDM(rho_min=0.1, noise_share=0.5)._shrink(problem, Kept())
    assert 0.1 * float(shrink) == pytest.approx(0.5 * sigma, rel=0.02)
    assert float(PnPDM(rho_min=0.1, noise_share=50.0)._shrink(problem, Kept())) == 1


class Kept(Prior):
    """Every image is its own estimate."""

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return x


def test_a_langevin_chain_equals_the_update_of_the_authors() -> None:
    """Theirs of phase retrieval, images in [-1, 1]: rho is twice and the step four times that of image units."""
    y, start, sigma = normal(1, *SHAPE, seed=1).abs(), torch.full((1, *SHAPE), 0.5).double(), 0.2
    operator = CallableOperator(lambda x: x**2, image_shape=SHAPE)
    problem = InverseProblem(operator, GaussianNoise(sigma), y, image_shape=SHAPE)
    grid = Levels(values=(1.0, 0.0))
    sampler = PnPDM(iterations=1, rho=0.3, rho_min=0.1, grid=grid, inner="langevin", chain_steps=3, step_size=1e-3)
    numbers = [normal(1, *SHAPE, seed=10 + k) for k in range(3)]
    (step,) = run(sampler, problem, Kept(), Scripted([*numbers, start]))
    x = 2 * start - 1
    z, gamma, rho = x, 4e-3, 0.6
    for n in numbers:
        half = (z + 1) / 2
        gradient = half * (half**2 - y) / sigma**2  # of |y - ((z + 1) / 2)^2|^2 / (2 sigma^2)
        z = z - gamma * gradient - gamma / rho**2 * (z - x) + (2 * gamma) ** 0.5 * n
    assert (step.x - (z + 1) / 2).abs().max() < 1e-6


@pytest.mark.parametrize("rho", [0.1, 0.3])
def test_the_law_at_rest_is_the_posterior_with_more_noise(rho: float) -> None:
    """Of covariance sigma_y^2 I + rho^2 A A^T, where rho stays; and not without."""
    rows, sigma = 2000, 0.2
    mean, covariance = torch.full((4,), 0.5).double(), smooth(2, 2, std=0.2)
    y = torch.tensor([[0.9, 0.6, 0.4]]).double()
    problem = InverseProblem(Dense(MIXING, SHAPE), GaussianNoise(sigma), y)
    problem = problem.select(torch.zeros(rows, dtype=torch.long))
    grid = EDM(steps=25, sigma_max=rho, sigma_min=0.01)
    sampler = PnPDM(iterations=25, rho=rho, decay=1.0, rho_min=rho, noise_share=None, grid=grid)
    prior = gaussian(mean.reshape(SHAPE), covariance)
    prior.unit = 0.5
    x = run(sampler, problem, prior, Normals(rows, SHAPE))[-1].x

    def law(width: float) -> tuple[Tensor, Tensor]:
        a = MIXING.double()
        gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + sigma**2 * torch.eye(3) + width**2 * a @ a.T)
        return mean + gain @ (y[0] - a @ mean), covariance - gain @ a @ covariance

    assert_law(x, *law(rho), z=6.0)
    with pytest.raises(AssertionError, match="is off by"):
        assert_law(x, *law(0.0), z=6.0)


def gaussian_four() -> GaussianPrior:
    i = torch.arange(4).double()
    return GaussianPrior(torch.full(SHAPE, 0.5).double(), 0.09 * torch.exp(-(i[:, None] - i).abs() / 2))


def two_modes() -> GaussianMixturePrior:
    i = torch.arange(4).double()
    covariance = 0.01 * torch.exp(-(i[:, None] - i).abs() / 2)
    means = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.7, 0.7, 0.7, 0.5]]).double().reshape(2, *SHAPE)
    return GaussianMixturePrior(torch.tensor([0.4, 0.6]).double(), means, torch.stack([covariance, 1.5 * covariance]))


FEW: dict[str, Any] = {
    "iterations": 3,
    "decay": 0.3,
    "rho_min": 0.3,
    "grid": EDM(steps=6, sigma_max=1.0, sigma_min=0.005),
}
MANY: dict[str, Any] = {
    "iterations": 45,
    "decay": 0.92,
    "rho_min": 0.05,
    "grid": EDM(steps=60, sigma_max=1.0, sigma_min=0.005),
}


@pytest.mark.parametrize(
    ("prior", "sigma"), [(gaussian_four(), 0.2), (two_modes(), 0.3)], ids=["gaussian", "two modes"]
)
def test_more_iterations_and_less_rho_end_in_the_posterior(prior: Any, sigma: float) -> None:
    """Distance of 2000 draws from as many exact ones in every direction, against that between two exact sets."""
    rows = 2000
    y = torch.tensor([[0.75, 0.75, 0.7]]).double()
    one = InverseProblem(Dense(MIXING, SHAPE), GaussianNoise(sigma), y)
    problem = one.select(torch.zeros(rows, dtype=torch.long))
    posterior = prior.posterior(one)
    exact, other = (posterior.sample(rows, torch.Generator().manual_seed(seed)).flatten(1) for seed in (1, 2))
    directions = torch.nn.functional.normalize(
        torch.randn(4, 100, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=0
    )

    def distance(x: Tensor) -> float:
        a, b = ((draws @ directions).sort(0).values for draws in (x.flatten(1), exact))
        return float(((a - b).abs().mean(0) / b.std(0)).mean())

    few, many = (
        distance(run(PnPDM(rho=1.0, **settings), problem, prior, Normals(rows, SHAPE))[-1].x)
        for settings in (FEW, MANY)
    )
    assert many < 2 * distance(other)
    assert few > 2.5 * many


@pytest.mark.parametrize("given", [None, 1e-3])
def test_langevin_draws_what_the_closed_form_draws(given: float | None) -> None:
    """In a whole run with a measured step size and a given one; unadjusted chains are a few percent too wide."""
    rows = 2000
    prior = GaussianPrior(torch.full(SHAPE, 0.5).double(), smooth(2, 2, std=0.2))
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.full((1, *SHAPE), 0.8).double())
    problem = problem.select(torch.zeros(rows, dtype=torch.long))
    sampler = PnPDM(iterations=6, rho=0.5, decay=0.6, rho_min=0.1, grid=EDM(steps=15, sigma_max=0.5), chain_steps=60)
    exact = run(sampler, problem, prior, Normals(rows, SHAPE))[-1].x.flatten(1)
    chain = run(replace(sampler, inner="langevin", step_size=given), problem, prior, Normals(rows, SHAPE))[-1].x
    assert ((chain.flatten(1).mean(0) - exact.mean(0)).abs() < 0.15 * exact.std(0)).all()
    assert ((chain.flatten(1).std(0) / exact.std(0) - 1).abs() < 0.15).all()


def test_auto_takes_the_closed_form_where_there_is_one() -> None:
    prior = GaussianPrior(torch.full(SHAPE, 0.5), smooth(2, 2, std=0.2).float())
    y = torch.full((1, *SHAPE), 0.6)
    auto, exact, chain = (replace(PnPDM.example(), inner=inner) for inner in ("auto", "closed_form", "langevin"))
    linear = InverseProblem(Denoising(), GaussianNoise(0.1), y)
    assert torch.equal(
        auto.sample(linear, prior, compute=QUIET).samples, exact.sample(linear, prior, compute=QUIET).samples
    )
    for problem in (
        InverseProblem(CallableOperator(lambda x: x**2), GaussianNoise(0.1), y, image_shape=SHAPE),
        InverseProblem(Denoising(), PoissonNoise(0.05), y),
    ):
        posterior = auto.sample(problem, prior, compute=QUIET)
        assert torch.equal(posterior.samples, chain.sample(problem, prior, compute=QUIET).samples)
        assert not posterior.diverged.any()


def test_the_closed_form_needs_no_gradient() -> None:
    class Opaque(LinearOperator):
        differentiable = False

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.detach()

        def adjoint(self, y: Tensor) -> Tensor:
            return 2 * y.detach()

        def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
            return measurement_shape

    problem = InverseProblem(Opaque(), GaussianNoise(0.1), torch.full((1, *SHAPE), 1.2))
    prior = GaussianPrior(torch.full(SHAPE, 0.5), smooth(2, 2, std=0.2).float())
    assert not replace(PnPDM.example(), inner="closed_form").sample(problem, prior, compute=QUIET).diverged.any()
