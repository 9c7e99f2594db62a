"""Speckle: its likelihood in the dark, where a density has no bound."""

import pytest
import torch

from invdiff.operators import SpeckleNoise

LOOKS, FLOOR = 3.0, 1e-3


def value_and_slope(y: float, clean: float) -> tuple[float, float]:
    at = torch.tensor([[clean]], dtype=torch.float64, requires_grad=True)
    nll = SpeckleNoise(LOOKS, FLOOR).nll(torch.tensor([[y]], dtype=torch.float64), at)
    (gradient,) = torch.autograd.grad(nll.sum(), at)
    return nll.item(), gradient.item()


@pytest.mark.parametrize("y", [0.01, 0.5, 40.0])
def test_continuation_is_smooth_and_pulls_back(y: float) -> None:
    start = max(y / 20, FLOOR)
    below, above = value_and_slope(y, start * (1 - 1e-9)), value_and_slope(y, start * (1 + 1e-9))
    assert below == pytest.approx(above, rel=1e-6)
    assert above[1] == pytest.approx(LOOKS * (1 / start - y / start**2), rel=1e-6)
    assert value_and_slope(y, -3.0)[1] == below[1] < 0


@pytest.mark.parametrize("y", [0.0, 5e-4])
def test_a_black_pixel_rewards_no_negative_image(y: float) -> None:
    assert value_and_slope(y, -3.0) == (value_and_slope(y, 0.0)[0], 0)
    assert value_and_slope(y, 2e-3)[1] > 0


def test_black_is_drawn_as_the_floor() -> None:
    clean = torch.tensor([[-1.0, 0.0] * 5000])
    dark = SpeckleNoise(4.0, FLOOR).sample(clean, [torch.Generator().manual_seed(0)])
    assert (dark >= 0).all()
    assert float(dark.mean()) == pytest.approx(FLOOR, rel=0.03)
