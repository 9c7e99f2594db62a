"""Kernels that are not normalised, have their origin elsewhere, or an even size."""

import pytest
import torch
from torch import Tensor

from helpers import noisy
from invdiff.operators import Blur, CircularBlur

AXIS = torch.arange(21) - 10.0
KERNEL = torch.exp(-(AXIS[:, None] ** 2 + AXIS**2) / 8)
KERNEL /= KERNEL.sum()


@pytest.mark.parametrize("total", [1000.0, 255.0, 3.0, 0.1])
@pytest.mark.parametrize("blur", [Blur, CircularBlur])
def test_a_sum_other_than_one(blur: type[Blur | CircularBlur], total: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    findings = found(blur(total * KERNEL), noisy(blur(KERNEL)(brain)))
    assert len(findings) == 1  # the scale of y follows from it
    (finding,) = findings.values()
    assert finding.kind in ("kernel sum", "kernel units")
    assert finding.severe
    assert "operator.normalise=true" in finding.words


def test_a_sum_that_y_has_too(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    operator = Blur(2 * KERNEL)
    assert not found(operator, noisy(operator(brain)))["kernel sum"].severe


@pytest.mark.parametrize("size", [21, 20])
def test_the_origin_in_the_corner(size: int, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    kernel = KERNEL[:size, :size] / KERNEL[:size, :size].sum()
    y = noisy(Blur(kernel)(brain))
    assert found(Blur(kernel), y) == {}
    assert "np.fft.fftshift(kernel)" in found(Blur(torch.fft.ifftshift(kernel)), y)["kernel origin"].words


def test_an_even_size(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    box = torch.ones(4, 4) / 16
    assert "half a pixel" in found(Blur(box), noisy(Blur(box)(brain)))["kernel size"].words
    assert found(Blur(torch.ones(5, 5) / 25), noisy(brain)) == {}


def test_negative_taps(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    shifted = KERNEL - 0.0002
    shifted /= shifted.sum()
    assert "negative" in found(Blur(shifted), noisy(Blur(shifted)(brain)))["kernel sign"].words
