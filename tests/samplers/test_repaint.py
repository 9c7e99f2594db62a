"""RePaint: a whole run in the paper's coordinates, and its law on two pixels that are alike."""

import pytest
import torch

from helpers import BothCoordinates, Levels, affine_law, alike
from invdiff.operators import Inpainting
from invdiff.samplers import RePaint
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.9, 0.45, 0.15, 0.0)  # in the paper's images


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_run_without_noise_equals_the_paper(repeats: int) -> None:
    """Algorithm 1 with beta of step t: down with the posterior q(z_s | z_t, x0), known pixels noised from y, back up by
    sqrt(1 - beta) z + sqrt(beta) n."""
    world = BothCoordinates(Inpainting(keep=0.5), (1, 4, 4), spread=1e-5)
    known = world.matrix.abs().sum(1) > 0
    bar = [1 / (1 + level**2) for level in LEVELS]
    numbers = world.numbers(1 + 2 * 5 + 3 * 4 * (repeats - 1))  # two a step, three a repetition, of all but the last
    sampler = RePaint(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), length=1, repeats=repeats)
    found = world.run(sampler, numbers)

    draws = iter(numbers)
    z = bar[0] ** 0.5 * LEVELS[0] * next(draws)
    for k in range(5):
        a, a_next = bar[k], bar[k + 1]
        beta = 1 - a / a_next
        for u in range(repeats if k < 4 else 1):
            x0 = world.denoise_vp(z, a)
            mean = (a_next**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_next) * z) / (1 - a)
            unknown = mean + (beta * (1 - a_next) / (1 - a)) ** 0.5 * next(draws)
            pasted = a_next**0.5 * world.y + (1 - a_next) ** 0.5 * next(draws)
            below = torch.where(known, pasted, unknown)
            if u == 0:
                first = below
            if u + 1 < repeats and k < 4:
                z = (1 - beta) ** 0.5 * below + beta**0.5 * next(draws)
        z = below
        x = first / a_next**0.5
        assert (found[k] - x).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("noise", "steps", "repeats", "mean", "variance"),
    [
        (1e-4, 100, 1, (1.0, 0.485), (0.0, 0.455)),
        (0.3, 100, 1, (0.856, 0.473), (0.094, 0.468)),
        (0.3, 30, 10, (0.914, 0.706), (0.053, 0.290)),
    ],
)
def test_the_law_for_two_pixels_that_are_alike(
    noise: float, steps: int, repeats: int, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """Exact: mean (0.917, 0.734), variance (0.083, 0.413), and (1, 0.8) and (0, 0.36) without noise. Replacement alone
    stays at half of the way, from a propagation of moments in NumPy; with resampling the mean comes near."""
    problem, prior = alike(noise)
    sampler = RePaint(schedule=EDM(steps=steps, sigma_max=80.0, sigma_min=0.002), length=1, repeats=repeats)
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=2e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=2e-3)
