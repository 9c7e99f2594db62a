"""Predictor and corrector with projection: a whole run in the paper's coordinates, and a law that becomes exact."""

from typing import Literal

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import ScoreSDE
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.9, 0.45, 0.15, 0.0)  # in the paper's images


@pytest.mark.parametrize("predictor", ["ancestral", "reverse_diffusion"])
def test_a_run_without_noise_equals_the_paper(predictor: Literal["ancestral", "reverse_diffusion"]) -> None:
    """Algorithms 2 and 4 for half of the coordinates of an orthonormal transform; noise of a projection has the level
    just reached, and the last step starts from the mean of the predictor."""
    q = torch.linalg.qr(normal(9, 9, seed=8))[0]  # its first 4 columns are measured
    world = BothCoordinates(Dense(q[:, :4].T, (1, 3, 3)), (1, 3, 3), spread=1e-5)
    v = world.operator.right.T  # type: ignore[union-attr]
    numbers = world.numbers(1 + 4 * 5)
    sampler = ScoreSDE(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), predictor=predictor, snr=0.2)
    found = world.run(sampler, numbers)

    measured = torch.arange(9) < 4
    target = v.T @ q[:, :4] @ world.y
    draws = iter(numbers)

    def project(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return v @ torch.where(measured, target + sigma * next(draws), v.T @ x)

    def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return (world.denoise(x, sigma) - x) / sigma**2

    x = LEVELS[0] * next(draws)
    for k in range(5):
        sigma, after = LEVELS[k], LEVELS[k + 1]
        step = 2 * (0.2 * sigma) ** 2
        x = project(x + step * score(x, sigma) + (2 * step) ** 0.5 * next(draws), sigma)
        fresh = sigma**2 - after**2
        x, noise = x + fresh * score(x, sigma), next(draws)
        x = x + (fresh * (after / sigma) ** 2 if predictor == "ancestral" or after == 0 else fresh) ** 0.5 * noise
        x = project(x, after)
        assert (found[k] - x).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("noise", "corrections", "snr", "mean", "variance"),
    [
        (1e-4, 0, 0.16, (1.0, 0.485), (0.0, 0.455)),
        (0.3, 0, 0.16, (0.856, 0.473), (0.094, 0.468)),
        (0.3, 1, 0.16, (0.876, 0.519), (0.075, 0.454)),
        (0.3, 4, 0.5, (0.917, 0.734), (0.083, 0.413)),  # that of the posterior
    ],
)
def test_the_law_for_two_pixels_that_are_alike(
    noise: float, corrections: int, snr: float, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """The predictor alone stays at half of the way, from a propagation of moments in NumPy; correctors end at the
    posterior, noise of y included."""
    problem, prior = alike(noise)
    steps = 100 if corrections < 4 else 60
    schedule = EDM(steps=steps, sigma_max=80.0, sigma_min=0.002)
    found_mean, covariance = affine_law(ScoreSDE(schedule=schedule, corrections=corrections, snr=snr), problem, prior)
    within = 2e-3 if corrections < 4 else 0.03
    assert found_mean.tolist() == pytest.approx(mean, abs=within)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=within)
