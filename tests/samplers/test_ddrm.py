"""DDRM: a whole run in the paper's coordinates, index by index, and its known bias."""

from itertools import pairwise

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import DDRM
from invdiff.schedules import EDM

LEVELS = (6.0, 1.5, 0.5, 0.15, 0.0)  # in the paper's images


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.5, 0.7)])
def test_a_run_equals_the_paper(eta: float, eta_b: float) -> None:
    """Equations 4 to 8 for singular values 1, 0.5, 0.1, 0.01 and zeros: every branch at some level."""
    left, right = torch.linalg.qr(normal(4, 4, seed=7))[0], torch.linalg.qr(normal(9, 9, seed=8))[0]
    values = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    world = BothCoordinates(Dense(left @ torch.diag(values) @ right[:4], (1, 3, 3)), (1, 3, 3), spread=0.2)
    numbers = world.numbers(6)
    found = world.run(DDRM(schedule=Levels(values=tuple(v / 2 for v in LEVELS)), eta=eta, eta_b=eta_b), numbers)

    u, s, vt = world.operator.left, world.operator.values, world.operator.right  # type: ignore[union-attr]
    y_bar = [float(u[:, i] @ world.y / s[i]) if s[i] > 0 else 0.0 for i in range(9)]
    start, top = vt @ numbers[0], LEVELS[0]
    x_bar = torch.empty(9, dtype=torch.float64)
    for i in range(9):
        if s[i] > 0 and top >= 0.2 / s[i]:  # equation 4
            x_bar[i] = y_bar[i] + (top**2 - (0.2 / s[i]) ** 2) ** 0.5 * numbers[1][i]
        else:
            x_bar[i] = top * start[i]
    branches = set()
    for k, (sigma, after) in enumerate(pairwise(LEVELS)):
        d, z, old = vt @ world.denoise(vt.T @ x_bar, sigma), numbers[2 + k], x_bar.clone()
        for i in range(9):  # equations 5 to 8
            keep = (1 - eta**2) ** 0.5 * after
            if s[i] == 0:
                branches.add("unmeasured")
                x_bar[i] = d[i] + keep * (old[i] - d[i]) / sigma + eta * after * z[i]
            elif after < 0.2 / s[i]:
                branches.add("below")
                x_bar[i] = d[i] + keep * (y_bar[i] - d[i]) / (0.2 / s[i]) + eta * after * z[i]
            else:
                branches.add("above")
                width = (after**2 - (0.2 / s[i]) ** 2 * eta_b**2) ** 0.5
                x_bar[i] = (1 - eta_b) * d[i] + eta_b * y_bar[i] + width * z[i]
        assert (found[k] - vt.T @ x_bar).abs().max() < 1e-5
    assert branches == {"unmeasured", "below", "above"}


@pytest.mark.parametrize(
    ("noise", "steps", "mean", "variance"),
    [
        (0.3, 100, (0.948, 0.634), (0.011, 0.323)),
        (1e-4, 100, (1.0, 0.658), (0.0, 0.305)),
    ],
)
def test_the_known_bias_for_two_pixels_that_are_alike(
    noise: float, steps: int, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """From a propagation of moments in NumPy. Exact: mean (0.917, 0.734), variance (0.083, 0.413), without noise
    (1, 0.8) and (0, 0.36)."""
    problem, prior = alike(noise)
    sampler = DDRM(schedule=EDM(steps=steps, sigma_max=80.0, sigma_min=0.002))
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=2e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=1e-3)
