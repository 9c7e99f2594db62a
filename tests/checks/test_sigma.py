"""noise.sigma=auto: the noise of measurements that were made here, against what was added."""

from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from invdiff.checks import estimate_sigma
from invdiff.operators import (
    CT,
    MRI,
    Denoising,
    GaussianBlur,
    Inpainting,
    MulticoilMRI,
    Operator,
    RandomProjection,
    SuperResolution,
    compose,
)

PHOTOS = {
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "camera": lambda: skimage.data.camera()[..., None],
}
SIGMAS = (0.01, 0.03, 0.1)


@cache
def photo(name: str) -> Tensor:
    """(1, C, 200, 300)"""
    return torch.from_numpy(PHOTOS[name]()[:200, :300] / 255).float().permute(2, 0, 1)[None]


@cache
def head() -> Tensor:
    """(1, 1, 128, 128), without edges: those of a picture reach into the corners of k-space."""
    wide = np.pad(skimage.data.shepp_logan_phantom(), 56)
    return torch.from_numpy(gaussian_filter(wide, 4.0)[::4, ::4].copy()).float()[None, None]


def noisy(x: Tensor, operator: Operator, sigma: float) -> Tensor:
    clean = operator(x)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=clean.dtype)
    mask = operator.measured(tuple(clean.shape[1:]))
    return clean + sigma * (noise if mask is None else noise * mask)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", PHOTOS)
def test_of_blurred_photographs(name: str, sigma: float) -> None:
    operator = GaussianBlur(std=1.5)
    assert estimate_sigma(noisy(photo(name), operator, sigma), operator).value == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize(
    "operator",
    [
        Denoising(),
        SuperResolution(factor=2),
        compose([GaussianBlur(std=3.0), SuperResolution(factor=2)]),
        Inpainting(lines=0.5),
        Inpainting(keep=0.8),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_of_other_pictures(operator: Operator) -> None:
    """Of sharp ones at strong noise: fine texture counts as noise at weak one."""
    found = estimate_sigma(noisy(photo("cat"), operator, 0.1), operator)
    assert found.value == pytest.approx(0.1, rel=0.05)
    assert found.error < 0.004


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(
    "operator",
    [MRI(), MRI(fft="numpy"), MRI(acceleration=1), MulticoilMRI(coils=4), CT(views=60)],
    ids=["mri", "mri-numpy", "mri-full", "multicoil", "ct"],
)
def test_of_scanners(operator: Operator, sigma: float) -> None:
    found = estimate_sigma(noisy(head(), operator, sigma), operator)
    assert abs(found.value - sigma) < max(0.05 * sigma, 3 * found.error)


def test_the_standard_error() -> None:
    """Of 60 fields of noise alone."""
    fields = torch.randn(60, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = [estimate_sigma(field, Denoising()) for field in fields]
    scatter = float(np.std([level.value for level in found]))
    assert np.mean([level.value for level in found]) == pytest.approx(1.0, abs=0.01)
    assert np.mean([level.error for level in found]) == pytest.approx(scatter, rel=0.3)


@pytest.mark.parametrize(
    ("operator", "y", "message"),
    [
        (
            RandomProjection(measurements=50, image_shape=(1, 8, 8)),
            torch.rand(1, 50),
            "no part of y of RandomProjection is known",
        ),
        (Inpainting(keep=0.1), torch.rand(1, 1, 32, 32), "too few neighbouring numbers"),
        (Denoising(), torch.arange(64.0).expand(1, 1, 64, 64), "parts of y are constant"),
        (Denoising(), torch.rand(1, 1, 16, 16), "no part of y is noise alone"),
    ],
)
def test_refused(operator: Operator, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_sigma(y, operator)
