"""Noise and blur of photographs that were degraded here, against what they were degraded with."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from invdiff.estimate import LEAST_NOISE, MOST_BLUR, estimate

PHOTOS: dict[str, Callable[[], np.ndarray]] = {
    "cat": skimage.data.chelsea,
    "astronaut": lambda: skimage.data.astronaut()[:300, :400],
    "coffee": lambda: skimage.data.coffee()[:400, :400],
    "grey": lambda: skimage.data.camera()[:400, :400, None],
}


def degraded(photo: str, blur: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, C) in [0, 1], blurred, without and with noise of 8 bits."""
    image = PHOTOS[photo]() / 255
    blurred = gaussian_filter(image, (blur, blur, 0)) if blur else image
    noisy = blurred + noise * np.random.default_rng(0).standard_normal(image.shape)
    return blurred, np.rint(255 * noisy.clip(0, 1)) / 255


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("blur", [0.0, 1.4, 3.0])
def test_noise_and_blur(photo: str, blur: float) -> None:
    _, noisy = degraded(photo, blur, 0.03)
    found = estimate(noisy.transpose(2, 0, 1))
    assert found.noise == pytest.approx(0.03, rel=0.1)
    assert found.blur == pytest.approx(blur, rel=0.2)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("quality", [95, 75])
@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_what_a_jpeg_file_has_left(photo: str, quality: int, noise: float) -> None:
    """Measured in its pixels alone the noise of quality 75 would be a quarter of what it is."""
    blurred, noisy = degraded(photo, 1.4, noise)
    file = BytesIO()
    Image.fromarray(np.rint(255 * noisy).astype(np.uint8).squeeze()).save(file, "JPEG", quality=quality)
    file.seek(0)
    stored = (np.asarray(Image.open(file), dtype=float) / 255).reshape(noisy.shape)
    file.seek(0)
    found = estimate(stored.transpose(2, 0, 1), file)
    assert found.jpeg
    assert found.noise == pytest.approx((stored - blurred).std(), rel=0.4)
    assert found.blur == pytest.approx(1.4, rel=0.3)


def test_a_picture_without_noise() -> None:
    ramp = np.broadcast_to(np.linspace(0.1, 0.9, 64), (3, 48, 64))
    assert estimate(ramp).noise == LEAST_NOISE


def test_clipped_parts_do_not_count() -> None:
    """Half of a photograph is white and has lost its noise."""
    _, noisy = degraded("coffee", 0.0, 0.03)
    noisy[:, :200] = 1
    assert estimate(noisy.transpose(2, 0, 1)).noise == pytest.approx(0.03, rel=0.15)


@pytest.mark.parametrize("shape", [(3, 200, 300), (1, 20, 90), (1, 9, 9)])
def test_noise_alone_and_small_pictures(shape: tuple[int, ...]) -> None:
    """Nothing to tell a blur by: no number is made up, whatever the size."""
    found = estimate(0.5 + 0.1 * np.random.default_rng(0).standard_normal(shape))
    assert found.noise == pytest.approx(0.1, rel=0.4 if shape[1] < 30 else 0.05)
    assert found.blur is None or 0 <= found.blur <= MOST_BLUR
