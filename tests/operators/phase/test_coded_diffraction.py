"""Coded diffraction: the masks that were asked for, the right amplitudes, and what two masks determine."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import CodedDiffraction, PhaseRetrieval
from invdiff.operators.phase.coded_diffraction import MODULATIONS
from invdiff.scores.metrics import psnr

Normal = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_masks(modulation: str) -> None:
    masks = CodedDiffraction(masks=3, modulation=modulation).masks_of(draw(1, 1, 60, 70))
    assert masks.shape == (1, 1, 3, 60, 70)
    assert masks.dtype == torch.complex128
    gain, quarter = masks.abs(), masks.angle() / (math.pi / 2)
    if modulation == "uniform":
        torch.testing.assert_close(gain, torch.ones_like(gain))
        fractions = (quarter % 1).flatten().sort().values
        torch.testing.assert_close(fractions, torch.linspace(0, 1, len(fractions)).double(), atol=0.03, rtol=0)
    else:
        torch.testing.assert_close(quarter, quarter.round(), atol=1e-12, rtol=0)
    share = [(quarter.round() % 4 == q).double().mean() for q in range(4)]
    assert all(abs(s - 0.25) < 0.03 for s in share), "each quarter of a turn as often as any other"
    assert abs(masks.mean()) < 0.03
    if modulation == "octanary":
        strong = (gain - math.sqrt(3)).abs() < 1e-12
        assert (strong | ((gain - math.sqrt(0.5)).abs() < 1e-12)).all()
        assert abs(strong.double().mean() - 0.2) < 0.03
    assert gain.square().mean() == pytest.approx(1, abs=0.05)


def test_seed_and_number_of_masks() -> None:
    x = draw(1, 1, 8, 9)
    first = CodedDiffraction(masks=2).masks_of(x)
    torch.manual_seed(123)  # no global random state
    assert torch.equal(CodedDiffraction(masks=2).masks_of(x), first)
    assert not torch.equal(CodedDiffraction(masks=2, seed=1).masks_of(x), first)
    assert not torch.equal(first[:, :, 0], first[:, :, 1])
    assert torch.equal(CodedDiffraction(masks=5).masks_of(x)[:, :, :2], first), "more masks are further masks"
    torch.testing.assert_close(CodedDiffraction(masks=2).masks_of(x.float()), first.to(torch.complex64))


# -- what is measured --------------------------------------------------------------------------------------------------


def test_amplitudes() -> None:
    for oversampling, padded in [(1.0, (6, 9)), (1.5, (9, 14)), (2.0, (12, 18))]:
        for modulation in MODULATIONS:
            x = draw(2, 3, 6, 9)
            operator = CodedDiffraction(masks=2, modulation=modulation, oversampling=oversampling)
            y = operator(x)
            assert y.shape == (2, 3, 2, *padded)
            assert operator.image_shape(tuple(y.shape[1:])) == (3, 6, 9)
            masks = operator.masks_of(x).numpy()[0, 0]
            for mask in range(2):
                spectrum = np.fft.fft2(masks[mask] * x.numpy(), s=padded, norm="ortho")
                np.testing.assert_allclose(y[:, :, mask], abs(np.fft.fftshift(spectrum, axes=(-2, -1))), atol=1e-13)


def test_an_open_mask_is_phase_retrieval() -> None:
    x = draw(2, 1, 8, 8)
    y = CodedDiffraction(masks=torch.ones(1, 8, 8), oversampling=2.0)(x)
    torch.testing.assert_close(y[:, :, 0], PhaseRetrieval(oversampling=2.0)(x))


@pytest.mark.parametrize("shape", [(2, 1, 6, 8), (1, 3, 5, 7)])
def test_gradient(shape: tuple[int, ...], normal: Normal) -> None:
    operator = CodedDiffraction(masks=2)
    x, d = draw(*shape), normal(*shape, seed=1)
    assert operator(x).min() > 1e-3, "a zero would have no gradient to compare with"
    v, h = normal(*operator(x).shape, seed=2), 1e-6
    difference = (v * (operator(x + h * d) - operator(x - h * d))).sum() / (2 * h)
    torch.testing.assert_close((operator.vjp(x, v) * d).sum(), difference, rtol=1e-6, atol=0)


def test_the_gradient_of_a_black_image_is_zero(normal: Normal) -> None:
    operator, x = CodedDiffraction(masks=2), torch.zeros(1, 1, 8, 8)
    v = normal(*operator(x).shape, dtype=torch.float32).requires_grad_(True)
    with torch.enable_grad():
        gradient = operator.vjp(x, v)
        (second,) = torch.autograd.grad(gradient.sum(), v)
    assert (gradient == 0).all()
    assert second.isfinite().all()


# -- the masks of an experiment ----------------------------------------------------------------------------------------


def test_given_masks_per_image(normal: Normal) -> None:
    masks = normal(3, 2, 8, 8, dtype=torch.complex64)
    operator = CodedDiffraction(masks=masks)
    assert (operator.masks, operator.images) == (2, 3)
    check_operator(operator, (1, 8, 8))
    x = draw(3, 1, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(operator(x)[1:2], CodedDiffraction(masks=masks[1])(x[1:2]))


def test_given_masks_have_a_size() -> None:
    operator = CodedDiffraction(masks=torch.ones(2, 8, 8))
    assert operator.mismatch((1, 8, 8)) is None
    assert operator.mismatch((1, 8, 9)) == "coded_diffraction: the masks are 8x8 pixels, the image 8x9"
    with pytest.raises(ValueError, match="8x8 pixels, the image 8x9"):
        operator(torch.zeros(1, 1, 8, 9))


# -- what is determined ------------------------------------------------------------------------------------------------


def test_masks_leave_nothing_but_the_sign() -> None:
    operator, x = CodedDiffraction(masks=2), draw(2, 2, 8, 8)
    y = operator(x)
    for other in (x.flip((-2, -1)), x.roll(1, -1)):
        assert (operator(other) - y).norm() > 0.1 * y.norm()
    lost = x.clone()
    lost[0, 1] *= -1
    torch.testing.assert_close(operator(lost), y)
    torch.testing.assert_close(operator.align(lost, x), x)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_first_guess_solves_it(modulation: str) -> None:
    """Without noise two masks determine an image; one pixel that no mask lets through harms no other."""
    operator, x = CodedDiffraction(masks=2, modulation=modulation), draw(2, 1, 16, 16)
    guess = operator.first_guess(operator(x))
    assert guess is not None
    assert min(psnr(guess[i], x[i]) for i in range(2)) > 35
    torch.testing.assert_close(operator.first_guess(operator(x[1:])), guess[1:])

    masks = operator.masks_of(x)[0, 0].clone()
    masks[:, 3, 3] = 0
    blocked = CodedDiffraction(masks=masks).double()
    x[:, :, 3, 3] = 0
    assert psnr(blocked.first_guess(blocked(x))[0], x[0]) > 35


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": 0}, "masks must be an integer >= 1, got 0"),
        ({"masks": torch.ones(8, 8)}, r"masks must be \(L, H, W\) or \(B, L, H, W\), got 8x8"),
        ({"modulation": "binary"}, "modulation must be one of uniform, quaternary, octanary, got 'binary'"),
        ({"oversampling": 0.5}, "oversampling, .* must be >= 1, got 0.5"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"coded_diffraction: {words}"):
        CodedDiffraction(**options)
