"""ILVR: a whole run in the paper's coordinates, and its known bias."""

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import ILVR
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.9, 0.45, 0.15, 0.0)  # in the paper's images


@pytest.mark.parametrize("down_to", [0.0, 0.4])
def test_a_run_without_noise_equals_the_paper(down_to: float) -> None:
    """Algorithm 1, phi the projection onto the rows of A, of which A^+ y is the reference image: x' from the posterior
    q(z_s | z_t, x0), then phi(y_s) + x' - phi(x')."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), (1, 3, 3)), (1, 3, 3), spread=1e-3)
    bar = [1 / (1 + level**2) for level in LEVELS]
    numbers = world.numbers(11)
    found = world.run(ILVR(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), down_to=down_to / 2), numbers)

    back = torch.linalg.pinv(world.matrix)
    reference, phi = back @ world.y, back @ world.matrix
    z = bar[0] ** 0.5 * LEVELS[0] * numbers[0]
    for k in range(5):
        a, a_next = bar[k], bar[k + 1]
        beta = 1 - a / a_next
        x0 = world.denoise_vp(z, a)
        mean = (a_next**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_next) * z) / (1 - a)
        z = mean + (beta * (1 - a_next) / (1 - a)) ** 0.5 * numbers[1 + 2 * k]
        if LEVELS[k + 1] >= down_to or k == 4:  # here the result always explains y
            noised = a_next**0.5 * reference + (1 - a_next) ** 0.5 * numbers[2 + 2 * k]
            z = phi @ noised + z - phi @ z
        assert (found[k] - z / a_next**0.5).abs().max() < (1e-4 if k < 4 else 3e-3)  # y is met to its noise


@pytest.mark.parametrize(
    ("noise", "mean", "variance"), [(1e-4, (1.0, 0.485), (0.0, 0.455)), (0.3, (0.890, 0.450), (0.038, 0.486))]
)
def test_the_known_bias_for_two_pixels_that_are_alike(
    noise: float, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """Exact: mean (0.917, 0.734), variance (0.083, 0.413), and (1, 0.8) and (0, 0.36) without noise, for which these
    are numbers of a propagation of moments in NumPy. The unmeasured pixel lags behind."""
    problem, prior = alike(noise)
    sampler = ILVR(schedule=EDM(steps=100, sigma_max=80.0, sigma_min=0.002))
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=2e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=2e-3)
