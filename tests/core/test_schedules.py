"""Noise levels: the published ones, in image units, strictly down to 0."""

from collections.abc import Callable

import pytest
import torch

from invdiff.schedules import EDM, VP, Schedule, karras


def test_vp_has_the_published_levels() -> None:
    """The linear DDPM grid on [-1, 1]: sigma at t = 999, 500, 250, 100, 20, 0."""
    sigmas = torch.tensor(VP().levels(2.0)).flip(0)[1:]  # by t
    for t, sigma in {999: 157.41, 500: 3.443, 250: 0.958, 100: 0.342, 20: 0.0794, 0: 0.01000}.items():
        assert float(sigmas[t]) == pytest.approx(sigma, rel=2e-3)


def test_vp_is_the_ddpm_recursion() -> None:
    """alpha_bar multiplied up one beta after the other, in plain Python."""
    alpha_bar, levels = 1.0, []
    for i in range(1000):
        alpha_bar *= 1 - (1e-4 + i / 999 * (0.02 - 1e-4))
        levels.append(0.5 * ((1 - alpha_bar) / alpha_bar) ** 0.5)
    assert torch.allclose(VP().sigmas(), torch.tensor([*levels[::-1], 0.0], dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize("steps", [2, 7, 20, 100, 250, 999])
def test_vp_with_fewer_steps_keeps_both_ends_and_even_distances(steps: int) -> None:
    full, kept = VP().sigmas(), VP(steps=steps).sigmas()
    positions = [int((full == level).nonzero()) for level in kept]  # t = 999 - position
    assert positions[0] == 0
    assert positions[-2:] == [999, 1000]
    gaps = torch.tensor(positions[:-1]).diff()
    assert int(gaps.max() - gaps.min()) <= 1


def test_karras_is_equation_5() -> None:
    high, low, count = 40.0, 0.001, 18
    levels = karras(high, low, count)
    for i, level in enumerate(levels.tolist()):
        wanted = (high ** (1 / 7) + i / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        assert level == pytest.approx(wanted, rel=1e-12)
    assert karras(3.0, 1.0, 1).tolist() == pytest.approx([3.0])


def test_edm_end_points() -> None:
    sigmas = EDM(steps=50, sigma_max=40.0, sigma_min=0.001).sigmas()
    assert float(sigmas[0]) == pytest.approx(40.0)
    assert float(sigmas[-2]) == pytest.approx(0.001)
    assert float(sigmas[-1]) == 0.0


@pytest.mark.parametrize(
    "schedule",
    [
        EDM(),
        EDM(steps=1),
        EDM(steps=2),
        EDM(steps=200, sigma_max=50.0, sigma_min=0.05),
        EDM(rho=1.0),
        VP(),
        VP(steps=1),
        VP(steps=33),
    ],
    ids=repr,
)
def test_levels_fall_strictly_to_zero(schedule: Schedule) -> None:
    sigmas = schedule.sigmas()
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (schedule.steps + 1,)
    assert (sigmas.diff() < 0).all()
    assert float(sigmas[-1]) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EDM(steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: EDM(sigma_min=0.0), "sigma_min must be a number > 0, got 0.0"),
        (lambda: EDM(sigma_min=50.0, sigma_max=40.0), "sigma_min must be < sigma_max, got 50.0 and 40.0"),
        (lambda: VP(steps=0), r"an integer in \[1, 1000\], got 0"),
        (lambda: VP(steps=1001), r"an integer in \[1, 1000\], got 1001"),
    ],
)
def test_bad_settings_are_named(make: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("options", [{"steps": 3, "sigma_min": 1.0, "sigma_max": 1.0}, {"rho": 0.0}, {"rho": -1.0}])
def test_levels_that_would_not_fall_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="schedule"):
        EDM(**options).sigmas()
