"""Verdicts on networks with a wrong declaration; the command has its own tests."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff.contracts.prior_figures import (
    DECLARED,
    NOISY,
    Level,
    compare_readings,
    judge,
    levels_for,
    mean_psnr,
    measure_level,
)
from invdiff.contracts.toys import WhitePrior
from invdiff.priors import CallablePrior
from invdiff.priors.networks.network_time import DiscreteTime
from invdiff.priors.networks.parametrised import Parametrisation, ParametrisedPrior
from invdiff.shapes import sigma_per_row

MEANS = torch.tensor([0.3, 0.5, 0.7]).reshape(1, 3, 1, 1)  # of red, green, blue
STD = 0.1


def clean() -> Tensor:
    return MEANS + STD * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def noise_of(ends: tuple[float, float] = (-1.0, 1.0)) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact prediction of the noise, on images of this range, by a network with a DDPM chain."""
    levels = DiscreteTime.linear().levels.float()
    width = ends[1] - ends[0]

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        # Between two steps as the schedule has it: linear in ln sigma.
        low = t.floor().clamp(max=len(levels) - 2).long()
        s = sigma_per_row((levels[low].log() * (1 - (t - low)) + levels[low + 1].log() * (t - low)).exp(), x_t)
        z = x_t * (1 + s**2).sqrt()
        mean = ends[0] + width * MEANS
        gain = (width * STD) ** 2 / ((width * STD) ** 2 + s**2)
        return (z - mean) * (1 - gain) / s

    return network


def best(prior: Any) -> tuple[str, float]:
    """The reading that denoises best, and its gain in dB over the declared one."""
    readings = compare_readings(prior, clean())
    words = max(readings, key=lambda key: readings[key] if math.isfinite(readings[key]) else -math.inf)
    return words, readings[words] - readings[DECLARED]


def prior(parametrisation: Parametrisation = "epsilon", **options: Any) -> ParametrisedPrior:
    return ParametrisedPrior(noise_of(), parametrisation, DiscreteTime.linear(), channels=3, **options)


def test_rightly_declared() -> None:
    assert best(prior()) == (DECLARED, 0)


@pytest.mark.parametrize("wrong", ["v", "x0", "score"])
def test_a_wrong_parametrisation(wrong: Parametrisation) -> None:
    words, gain = best(prior(wrong))
    assert words == f"its parametrisation is 'epsilon', not '{wrong}'"
    assert gain > 1


def test_a_wrong_range() -> None:
    words, gain = best(prior(network_range=(0.0, 1.0)))
    assert words == "its network_range is [-1, 1], not [0, 1]"
    assert gain > 1


def test_the_order_of_channels() -> None:
    words, gain = best(prior(bgr=True))
    assert words == "its channels are blue, green, red"
    assert gain > 1


def test_levels_lie_in_the_range_of_the_prior() -> None:
    white = WhitePrior()
    white.value_range, white.sigma_range = (-1.0, 1.0), (0.05, 1.5)
    assert levels_for(white) == [0.1, 0.2, 0.4, 1.0]
    white.sigma_range = (5.0, 6.0)
    assert levels_for(white) == [5.0, 6.0]


def test_numbers_of_a_level() -> None:
    """Against the closed form: the error of the exact denoiser is s0^2 sigma^2 / (s0^2 + sigma^2)."""
    white = WhitePrior(mean=0.5, std=0.1)
    images = 0.5 + 0.1 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    level, estimate = measure_level(white, images, 0.2)
    left = 0.01 * 0.04 / 0.05
    assert estimate.shape == images.shape
    assert level.denoised == pytest.approx(-10 * math.log10(left), abs=0.1)
    assert level.kept == pytest.approx(left**0.5 / 0.2, rel=0.02)
    assert level.noisy == pytest.approx(-10 * math.log10(0.04), abs=0.3)
    assert level.outside == 0


@pytest.mark.parametrize("sick", [math.nan, math.inf, -math.inf])
def test_a_psnr_of_what_is_no_number(sick: float) -> None:
    image = torch.full((1, 1, 4, 4), 0.5)
    spoilt = image.clone()
    spoilt[0, 0, 0, 0] = sick
    assert math.isnan(mean_psnr(spoilt, image, (0.0, 1.0)))


def test_what_is_no_number_is_no_value_of_an_image() -> None:
    level, _ = measure_level(CallablePrior(lambda x, sigma: x * math.nan), clean(), 0.1)
    assert (level.outside, math.isnan(level.denoised)) == (1.0, True)


def test_a_sick_level_is_never_passed() -> None:
    levels = [Level(0.01, 40.0, 41.0, 0.5, 0.0), Level(0.2, 14.0, math.nan, math.nan, 0.0)]
    found = {v.rule: v for v in judge(WhitePrior(), levels, {NOISY: 14.0, DECLARED: math.nan}, None)}
    assert found["denoises"].result == "failed"
    assert "nan dB" in found["denoises"].words


def test_a_reading_that_does_nothing_is_no_finding() -> None:
    """x + sigma^2 D is nearly x: better than what an untrained network makes of it, and no advice."""
    readings = compare_readings(CallablePrior(lambda x, sigma: torch.zeros_like(x)), clean())
    found = {v.rule: v.result for v in judge(WhitePrior(), [Level(0.2, 14.0, 8.0, 1.0, 0.0)], readings, None)}
    assert max(readings.values()) > readings[DECLARED] + 3
    assert found["range and parametrisation"] == "passed"
