"""Fourier amplitudes: the right ones, gradients that are finite where they vanish, and what they cannot tell apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.operators import PhaseRetrieval
from invdiff.scores.metrics import psnr

Normal = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blob(*shape: int, height: int, width: int, seed: int = 0) -> Tensor:
    """An image that is black but for a rectangle in the upper left corner, one pixel away from the edges."""
    x = torch.zeros(shape, dtype=torch.float64)
    x[..., 1 : 1 + height, 1 : 1 + width] = draw(*shape[:-2], height, width, seed=seed)
    return x


# -- what is measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oversampling", "size", "padded"),
    [
        (2.0, (8, 6), (16, 12)),
        (1.5, (8, 12), (12, 18)),
        (2.0, (7, 5), (14, 10)),
        (1.5, (5, 3), (8, 5)),
        (1, (4, 9), (4, 9)),
        (1, (9, 4), (9, 4)),
    ],
)
def test_amplitudes_of_the_papers(oversampling: float, size: tuple[int, int], padded: tuple[int, int]) -> None:
    """By numpy, with the image in the middle of its frame as DPS and DAPS have it: amplitudes do not see where."""
    x = draw(2, 3, *size)
    before = [(p - n) // 2 for p, n in zip(padded, size, strict=True)]
    after = [p - n - b for p, n, b in zip(padded, size, before, strict=True)]
    frame = np.pad(x.numpy(), [(0, 0), (0, 0), *zip(before, after, strict=True)])
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(frame, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    y = PhaseRetrieval(oversampling=oversampling)(x)
    np.testing.assert_allclose(y.numpy(), abs(spectrum), atol=1e-13)
    assert y.shape[-2:] == padded
    # The zero frequency, by far the brightest, is in the centre; energy is kept.
    assert y[0, 0].argmax() == (padded[0] // 2) * padded[1] + padded[1] // 2
    torch.testing.assert_close(y.square().sum((-2, -1)), x.square().sum((-2, -1)))


def test_the_papers_oversampling_of_two_is_one_and_a_half() -> None:
    assert PhaseRetrieval(oversampling=1.5)(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 384, 384)


@pytest.mark.parametrize("oversampling", [1.0, 1.1, 1.5, 2.0, 2.7])
def test_image_shape(oversampling: float) -> None:
    operator = PhaseRetrieval(oversampling=oversampling)
    for n in range(1, 40):
        y = operator(torch.zeros(1, 2, n, n + 3))
        assert operator.image_shape(tuple(y.shape[1:])) == (2, n, n + 3)
    assert operator.image_shape((16, 16)) is None
    assert PhaseRetrieval(oversampling=2.0).image_shape((1, 15, 16)) is None, "no image is padded to 15 pixels"


@pytest.mark.parametrize("value", [0.9, 0, -2, float("nan"), float("inf")])
def test_oversampling_that_cannot_be(value: float) -> None:
    with pytest.raises(ValueError, match=rf"phase_retrieval: oversampling, .* must be >= 1, got {value}"):
        PhaseRetrieval(oversampling=value)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 3, 5, 7)])
def test_gradient(shape: tuple[int, ...], normal: Normal) -> None:
    operator = PhaseRetrieval()
    x, d = draw(*shape), normal(*shape, seed=1)
    assert operator(x).min() > 1e-3, "a zero would have no gradient to compare with"
    v, h = normal(*operator(x).shape, seed=2), 1e-6
    difference = (v * (operator(x + h * d) - operator(x - h * d))).sum() / (2 * h)
    torch.testing.assert_close((operator.vjp(x, v) * d).sum(), difference, rtol=1e-6, atol=0)


def test_gradients_are_finite_where_amplitudes_vanish(normal: Normal) -> None:
    """A black image, and one of a single frequency; first and second derivatives."""
    x = torch.zeros(2, 1, 8, 8)
    x[1] = torch.ones(8, 8)
    operator = PhaseRetrieval(oversampling=1)
    v = normal(*operator(x).shape, dtype=torch.float32).requires_grad_(True)
    with torch.enable_grad():
        gradient = operator.vjp(x, v)
        (second,) = torch.autograd.grad(gradient.sum(), v)
        z = x.clone().requires_grad_(True)
        (first,) = torch.autograd.grad(operator(z).square().sum(), z, create_graph=True)
        (twice,) = torch.autograd.grad(first.sum(), z)
    for found in (gradient, second, first, twice):
        assert found.isfinite().all()
    assert (gradient[0] == 0).all()
    assert gradient[1].abs().max() > 0


# -- what cannot be told apart -----------------------------------------------------------------------------------------


def moved(x: Tensor, turn: bool, down: int, right: int) -> Tensor:
    return (x.flip((-2, -1)) if turn else x).roll((down, right), (-2, -1))


@pytest.mark.parametrize("oversampling", [1.0, 1.5, 2.0])
def test_align_undoes_turns_shifts_and_signs(oversampling: float) -> None:
    for turn, down, right in [(False, 3, 2), (True, 0, 0), (True, -4, -5), (False, 0, 5)]:
        for sign in [1, -1]:
            operator = PhaseRetrieval(oversampling=oversampling)
            x = blob(2, 1, 12, 11, height=6, width=4)
            lost = sign * moved(x, turn, down, right)
            torch.testing.assert_close(operator(lost), operator(x), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(operator.align(lost, x), x)


def test_each_channel_of_each_image_is_aligned_by_itself() -> None:
    operator = PhaseRetrieval()
    x = blob(2, 2, 12, 12, height=6, width=5)
    lost = x.clone()
    lost[0, 1] = moved(x[0, 1], True, -2, -3)
    lost[1, 0] = moved(x[1, 0], False, 1, 4)
    torch.testing.assert_close(operator.align(lost, x), x)
    torch.testing.assert_close(operator.align(lost[1:], x[1:]), x[1:])


def test_align_keeps_to_what_is_ambiguous() -> None:
    """No mirror image; no shift that pushes the image out of its frame, though the reference asks for it."""
    operator = PhaseRetrieval()
    x = draw(1, 1, 9, 9)
    for other in (x.flip(-1), x.roll(3, -1), x.transpose(-2, -1)):
        found = operator.align(other, x)
        torch.testing.assert_close(operator(found), operator(other))
        assert not torch.allclose(found, x, atol=0.1)


@pytest.mark.parametrize(("turn", "down", "right"), [(False, 3, 2), (True, -4, -1)])
def test_align_overlooks_the_noise_in_a_dark_border(turn: bool, down: int, right: int, normal: Normal) -> None:
    """As reconstructions have it; y changes by no more than `border` allows."""
    operator = PhaseRetrieval()
    x = blob(1, 1, 16, 16, height=9, width=10)
    noise = 0.003 * normal(*x.shape)
    lost = moved(x, turn, down, right) + noise
    found = operator.align(lost, x)
    assert (found - x).norm() == pytest.approx(float(noise.norm())), "the noise came along, all of it"
    change = (operator(found) - operator(lost)).norm()
    assert 0 < change <= 2 * operator.border * operator(lost).norm()


def test_align_is_best_of_all_allowed(normal: Normal) -> None:
    """Against trying everything."""
    operator = PhaseRetrieval()
    x, reference = blob(1, 1, 7, 8, height=4, width=3), normal(1, 1, 7, 8)
    tried = []
    for image in (x, x.flip((-2, -1))):
        for down in range(-6, 7):
            for right in range(-7, 8):
                framed = torch.zeros(1, 1, 21, 24, dtype=x.dtype)
                framed[..., 7 + down : 14 + down, 8 + right : 16 + right] = image
                inside = framed[..., 7:14, 8:16]
                if inside.count_nonzero() == framed.count_nonzero():
                    tried += [(sign * inside - reference).norm() for sign in (1, -1)]
    assert len(tried) == 2 * 2 * 4 * 6
    assert (operator.align(x, reference) - reference).norm() == pytest.approx(float(min(tried)))


def test_align_of_blank_and_broken_images() -> None:
    operator, x = PhaseRetrieval(), draw(3, 1, 8, 8)
    other = x.flip((-2, -1)).clone()
    other[0], other[1] = 0, torch.nan
    found = operator.align(other, x)
    assert (found[0] == 0).all()
    assert found[1].isnan().any()
    torch.testing.assert_close(found[2], x[2])


# -- without a prior ---------------------------------------------------------------------------------------------------


def test_first_guess(normal: Normal) -> None:
    """Finds a simple object, up to what `align` undoes; far better than the object is like a grey image."""
    operator = PhaseRetrieval()
    x = torch.zeros(2, 1, 24, 24)
    x[..., 6:17, 5:14] = 0.3
    x[..., 8:11, 6:12] = 1
    x[1, :, 12:20, 10:20] = 0.7
    y = operator(x)
    guess = operator.first_guess(y)
    assert guess is not None
    assert guess.min() >= 0
    aligned = operator.align(guess, x)
    assert psnr(aligned[0], x[0]) > 25
    # Of its own measurement alone, the same every time, and quiet about a measurement of noise.
    torch.testing.assert_close(operator.first_guess(y[1:]), guess[1:], rtol=1e-3, atol=1e-3)
    assert torch.equal(operator.first_guess(y), guess)
    assert operator.first_guess(normal(1, 1, 8, 8, dtype=torch.float32)).isfinite().all()
    assert (operator.first_guess(torch.zeros(1, 1, 8, 8)) == 0).all()
