"""Quantisation: levels, and the gradient that stands for that of a staircase."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import Quantisation

Normal = Callable[..., Tensor]


def test_is_the_map_of_the_papers(normal: Normal) -> None:
    """Rounding of images in [-1, 1], (x + 1) / 2 to 2^bits levels."""
    for bits in range(1, 9):
        x = (0.5 + 0.5 * normal(2, 3, 8, 8)).clamp(0, 1)
        signed, steps = 2 * x - 1, 2**bits - 1
        wanted = (2 * torch.round(steps * (signed + 1) / 2) / steps - 1 + 1) / 2
        y = Quantisation(bits=bits)(x)
        torch.testing.assert_close(y, wanted)
        assert y.unique().numel() <= 2**bits
        assert (y - x).abs().max() <= 0.5 / steps + 1e-12
        torch.testing.assert_close(Quantisation(bits=bits)(y), y)


def test_two_levels() -> None:
    x = torch.tensor([-3.0, 0.1, 0.49, 0.51, 0.9, 7.0]).reshape(1, 1, 2, 3)
    assert Quantisation(bits=1)(x).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_gradient_of_the_residual_pulls_towards_the_measured_level() -> None:
    """Also from outside [0, 1], and not at all within the interval that was measured."""
    operator, y = Quantisation(bits=1), torch.tensor([1.0, 1, 0, 0, 1]).reshape(1, 1, 1, 5)
    x = torch.tensor([0.3, 0.6, 1.4, 0.2, 1.2]).reshape(1, 1, 1, 5)
    pull = operator.vjp(x, operator(x) - y)
    assert pull.flatten().tolist() == [-1, 0, 1, 0, 0]


def test_a_sick_row_harms_no_other(normal: Normal) -> None:
    x = torch.stack([normal(1, 4, 4), torch.full((1, 4, 4), torch.nan, dtype=torch.float64)])
    y = Quantisation()(x)
    assert torch.equal(y[:1], Quantisation()(x[:1]))
    assert y[1].isnan().all()


@pytest.mark.parametrize("bits", [0, 9, 2.5, -1])
def test_bad_bits(bits: float) -> None:
    with pytest.raises(ValueError, match=f"quantisation: bits must be an integer from 1 to 8, got {bits}"):
        Quantisation(bits=bits)  # type: ignore[arg-type]
