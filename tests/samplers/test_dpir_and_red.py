"""DPIR and RED: whole runs in the papers' coordinates, and the one image that they end at."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import DPIR, RED
from invdiff.schedules import EDM


def world_of(spread: float = 0.2) -> BothCoordinates:
    """Singular values 1, 0.3, 0.1: its norm is known."""
    left, right = torch.linalg.qr(normal(3, 3, seed=7))[0], torch.linalg.qr(normal(9, 9, seed=8))[0]
    values = torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)
    return BothCoordinates(Dense(left @ torch.diag(values) @ right[:3], (1, 3, 3)), (1, 3, 3), spread)


def test_a_run_of_dpir_equals_the_paper() -> None:
    """Algorithm 1: levels even in the logarithm down to that of the noise, alpha = lam sigma_y^2 / sigma^2."""
    world, numbers = world_of(), [normal(9, seed=3)]
    found = world.run(DPIR(steps=5, sigma_max=1.0, lam=0.23), numbers)
    z = 2.0 * numbers[0]  # levels of [0, 1] are doubled
    for k in range(5):
        sigma = 2.0 ** (1 - k / 4) * 0.2 ** (k / 4)
        alpha = 0.23 * 0.2**2 / sigma**2
        normal_matrix = world.matrix.T @ world.matrix + alpha * torch.eye(9).double()
        x = torch.linalg.solve(normal_matrix, world.matrix.T @ world.y + alpha * z)
        z = world.denoise(x, sigma)
        assert (found[k] - z).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["fixed_point", "gradient"])
def test_a_run_of_red_equals_the_paper(form: Literal["fixed_point", "gradient"]) -> None:
    """Gradient A^T (A x - y) / sigma_y^2 + lam (x - D(x)), and the system that is left with D(x) held."""
    world, numbers = world_of(), [normal(9, seed=3)]
    sampler = RED(schedule=Levels(values=(0.5, 0.1, 0.0)), iterations=2, lam=0.3, form=form)
    found = world.run(sampler, numbers)
    back, hessian = world.matrix.T / 0.2**2, world.matrix.T @ world.matrix / 0.2**2
    x = 1.0 * numbers[0]
    for k, sigma in enumerate((1.0, 1.0, 0.2, 0.2)):
        clean, weight = world.denoise(x, sigma), 0.3 / sigma**2
        if form == "gradient":
            x = x - (hessian @ x - back @ world.y + weight * (x - clean)) / (1 / 0.2**2 + weight)
        else:
            x = torch.linalg.solve(hessian + weight * torch.eye(9).double(), back @ world.y + weight * clean)
        assert (found[k] - x).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["fixed_point", "gradient"])
def test_red_ends_at_the_posterior_mean_of_a_wider_prior(form: Literal["fixed_point", "gradient"]) -> None:
    """Under N(m, C): that of N(m, (C + sigma^2 I) / lam), wherever it starts; with lam = 1 and no level it is exact."""
    problem, prior = alike(0.3)
    sigma, lam = 0.3, 0.5
    sampler = RED(schedule=EDM(steps=1, sigma_max=sigma, sigma_min=sigma), iterations=300, lam=lam, form=form)
    mean, covariance = affine_law(sampler, problem, prior)
    wider = (torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double() + sigma**2 * torch.eye(2)) / lam
    assert (mean - gain(wider)).abs().max() < 1e-4
    assert covariance.abs().max() < 1e-6


def test_dpir_ends_at_one_image_near_the_posterior_mean() -> None:
    """The posterior mean is (0.917, 0.734): the last step denoises once more."""
    problem, prior = alike(0.3)
    mean, covariance = affine_law(DPIR(), problem, prior)
    assert mean.tolist() == pytest.approx((0.876, 0.619), abs=2e-3)
    assert covariance.abs().max() < 1e-3


def gain(covariance: Tensor) -> Tensor:
    """The posterior mean of N(0, covariance), the first pixel measured as 1 with noise 0.3."""
    return covariance[:, 0] / (covariance[0, 0] + 0.3**2)
