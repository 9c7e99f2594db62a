"""Gaussian blur against torch's padding and convolution, scipy's filter, and the Fourier transform."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from invdiff.operators import GaussianBlur

Normal = Callable[..., Tensor]


def test_is_the_papers_blur(normal: Normal) -> None:
    """DPS and DAPS: 61 taps, std 3, scipy's filter of a delta as kernel, reflection of 30 pixels."""
    delta = np.zeros((61, 61))
    delta[30, 30] = 1
    kernel = torch.from_numpy(gaussian_filter(delta, 3.0))
    x = normal(2, 1, 36, 41)
    wanted = nn.functional.conv2d(nn.ReflectionPad2d(30)(x), kernel[None, None])
    torch.testing.assert_close(GaussianBlur(std=3.0, kernel_size=61)(x), wanted, rtol=0, atol=1e-12)


SCIPY = {"reflect": "mirror", "symmetric": "reflect", "replicate": "nearest", "circular": "wrap", "zero": "constant"}


@pytest.mark.parametrize("boundary", SCIPY)
def test_every_boundary_is_scipys(boundary: str, normal: Normal) -> None:
    """Images smaller than the kernel too, where the mirror is met more than once."""
    for std in [0.5, 1.375, 3.0]:
        for shape in [(1, 12, 17), (3, 5, 4)]:
            x = normal(2, *shape)
            wanted = gaussian_filter(x.numpy(), (0, 0, std, std), mode=SCIPY[boundary], truncate=4.0)
            got = GaussianBlur(std=std, kernel_size=31, boundary=boundary)(x)
            torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=0, atol=1e-12)


def test_circular_is_a_product_in_fourier_space(normal: Normal) -> None:
    operator, x = GaussianBlur(std=1.5, kernel_size=9, boundary="circular"), normal(2, 3, 16, 21)
    taps = operator.kernel()[0]
    kernel = torch.zeros(16, 21, dtype=torch.float64)
    kernel[:9, :9] = taps[:, None] * taps
    spectrum = torch.fft.fft2(kernel.roll((-4, -4), (0, 1)))
    torch.testing.assert_close(operator(x), torch.fft.ifft2(torch.fft.fft2(x) * spectrum).real)
    # and its singular values are the moduli of that spectrum
    s = operator.singular_values(x[:1])[0, 0]
    torch.testing.assert_close(s.flatten().sort().values, spectrum.abs().flatten().sort().values)


@pytest.mark.parametrize("boundary", ["reflect", "symmetric", "replicate", "circular"])
def test_keeps_constants(boundary: str) -> None:
    x = torch.full((1, 1, 10, 7), 0.3)
    torch.testing.assert_close(GaussianBlur(std=2.0, boundary=boundary)(x), x)


def test_kernel_size_cuts_the_kernel() -> None:
    kernel = GaussianBlur(std=torch.tensor([3.0, 0.5]), kernel_size=5).kernel()
    assert kernel.shape == (2, 5)
    torch.testing.assert_close(kernel.sum(1), torch.ones(2, dtype=torch.float64))
    weights = torch.exp(-0.5 * torch.tensor([2.0, 1, 0, 1, 2], dtype=torch.float64) ** 2 / 9)
    torch.testing.assert_close(kernel[0], weights / weights.sum())


def test_a_std_per_image(normal: Normal) -> None:
    stds = [0.6, 1.0, 2.0]
    x = normal(3, 1, 12, 13)
    y = GaussianBlur(std=torch.tensor(stds), kernel_size=17)(x)
    for i, std in enumerate(stds):
        torch.testing.assert_close(y[i : i + 1], GaussianBlur(std=std, kernel_size=17)(x[i : i + 1]))


def test_select_keeps_what_was_computed(normal: Normal) -> None:
    """Chunks of a large batch must not decompose the same matrices again."""
    operator, x = GaussianBlur(std=torch.tensor([0.6, 1.0, 2.0])), normal(3, 1, 12, 12)
    operator(x)
    operator.matrix = None  # type: ignore[assignment]  # would raise if it were called
    part = operator.select(torch.tensor([2]))
    part.matrix = None  # type: ignore[assignment]
    torch.testing.assert_close(part(x[2:]), operator(x)[2:])


@pytest.mark.parametrize("size", [0, 4, -3])
def test_bad_kernel_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be an odd integer >= 1, got {size}"):
        GaussianBlur(kernel_size=size)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), torch.tensor([1.0, -2.0])])
def test_bad_std(std: float | Tensor) -> None:
    with pytest.raises(ValueError, match="std must be > 0 pixels, got"):
        GaussianBlur(std=std)


def test_bad_boundary() -> None:
    with pytest.raises(ValueError, match=r"boundary must be one of reflect, .*, got 'mirror'"):
        GaussianBlur(boundary="mirror")


def test_bad_truncate() -> None:
    with pytest.raises(ValueError, match=r"truncate .* got -1"):
        GaussianBlur(truncate=-1)
