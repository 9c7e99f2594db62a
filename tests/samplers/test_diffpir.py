"""DiffPIR: a whole run in the paper's coordinates, and its known bias."""

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import DiffPIR
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.9, 0.45, 0.15, 0.0)  # in the paper's images


@pytest.mark.parametrize(("lam", "zeta"), [(1.0, 0.3), (4.0, 1.0)])
def test_a_run_equals_the_paper(lam: float, zeta: float) -> None:
    """Algorithm 1 in z = sqrt(a) x0 + sqrt(1 - a) n, with sigma_y and the levels of images in [-1, 1]."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), (1, 3, 3)), (1, 3, 3), spread=0.2)
    bar = [1 / (1 + level**2) for level in LEVELS]
    numbers = world.numbers(6)
    sampler = DiffPIR(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), lam=lam, zeta=zeta)
    found = world.run(sampler, numbers)

    a_matrix, z = world.matrix, bar[0] ** 0.5 * LEVELS[0] * numbers[0]
    for k in range(5):
        a, a_next = bar[k], bar[k + 1]
        rho = lam * 0.2**2 / ((1 - a) / a)
        normal_matrix = a_matrix.T @ a_matrix + rho * torch.eye(9).double()
        x0 = torch.linalg.solve(normal_matrix, a_matrix.T @ world.y + rho * world.denoise_vp(z, a))
        eps = (z - a**0.5 * x0) / (1 - a) ** 0.5
        z = a_next**0.5 * x0 + (1 - a_next) ** 0.5 * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * numbers[1 + k])
        assert (found[k] - z / a_next**0.5).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("noise", "zeta", "mean", "variance"),
    [
        (0.3, 0.3, (0.901, 0.498), (0.069, 0.489)),
        (0.3, 1.0, (0.909, 0.666), (0.038, 0.212)),
        (1e-4, 1.0, (1.0, 0.724), (0.0, 0.187)),
    ],
)
def test_the_known_bias_for_two_pixels_that_are_alike(
    noise: float, zeta: float, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """From a propagation of moments in NumPy. Exact: mean (0.917, 0.734), variance (0.083, 0.413), without noise
    (1, 0.8) and (0, 0.36)."""
    problem, prior = alike(noise)
    sampler = DiffPIR(schedule=EDM(steps=100, sigma_max=80.0, sigma_min=0.002), lam=1.0, zeta=zeta)
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=2e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=2e-3)
