"""HDR: the papers' map in image units, its gradient, and what can be had back without a prior."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import HDR

Normal = Callable[..., Tensor]


def test_is_the_map_of_the_papers(normal: Normal) -> None:
    """clip(2x, -1, 1) of images in [-1, 1], and the other way round."""
    x = 0.5 + 0.5 * normal(2, 3, 8, 8)
    wanted = ((2 * (2 * x - 1)).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(HDR()(x), wanted, rtol=0, atol=1e-15)


def test_a_longer_exposure_keeps_black() -> None:
    x = torch.tensor([-0.1, 0.0, 0.1, 0.25, 0.5, 0.9]).reshape(1, 1, 1, 6)
    y = HDR(factor=2, pivot=0)(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([0, 0, 0.2, 0.5, 1, 1]))


def test_gradient_is_the_gain_or_nothing() -> None:
    x = torch.tensor([-0.5, 0.2, 0.3, 0.5, 0.7, 0.8, 2.0]).reshape(1, 1, 1, 7)
    gradient = HDR(factor=2.0).vjp(x, torch.ones_like(x))
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.0, 0, 2, 2, 2, 0, 0]))


def test_first_guess_fits_as_well_as_any_image(normal: Normal) -> None:
    """Exact where nothing was clipped; what noise carried out of [0, 1] cannot be fitted by any image."""
    x, operator = 0.5 + 0.4 * normal(2, 3, 8, 8), HDR(factor=torch.tensor([1.5, 3.0]))
    y = operator(x)
    kept = (y > 0) & (y < 1)
    assert 0 < int(kept.sum()) < y.numel()
    guess = operator.first_guess(y)
    torch.testing.assert_close(guess[kept], x[kept])
    noisy = y + 0.1 * normal(2, 3, 8, 8, seed=1)
    torch.testing.assert_close(operator(operator.first_guess(noisy)), noisy.clamp(0, 1))


def test_a_factor_per_image() -> None:
    check_operator(HDR(factor=torch.tensor([1.2, 2.0, 4.0]), pivot=0.3), (3, 5, 4))


def test_a_sick_row_harms_no_other(normal: Normal) -> None:
    x = normal(2, 1, 4, 4, dtype=torch.float32)
    y = HDR()(torch.stack([x[0], torch.full_like(x[1], torch.nan)]))
    assert torch.equal(y[0], HDR()(x)[0])
    assert y[1].isnan().all()


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), torch.tensor([2.0, 0.0])])
def test_bad_factor(factor: float | Tensor) -> None:
    with pytest.raises(ValueError, match="hdr: factor must be > 0, got"):
        HDR(factor=factor)


def test_bad_shape_and_pivot() -> None:
    with pytest.raises(ValueError, match=r"hdr: factor must be a number or one per image, \(B,\), got shape 2x1"):
        HDR(factor=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"hdr: pivot must be a finite display value, .* got nan"):
        HDR(pivot=float("nan"))
