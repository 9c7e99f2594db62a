"""Noise and blur of a photograph, estimated from the photograph alone: arrays (C, H, W) in [0, 1].

Noise  The finest diagonal details of a photograph (Donoho and Johnstone 1994) are noise alone in its calm parts: the
       largest share of the parts whose sizes scatter as those of noise alone. A JPEG file has rounded the details: the
       share that is zero, under the steps of its table, tells the noise before, and that what is left of it.
Blur   Spectra of photographs fall as |f|^-a, with a close to 2.4 in those that come with scikit-image, and a Gaussian
       of width s makes it |f|^-a exp(-(2 pi f s)^2). A fit above the noise gives s, with a prior on a.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

Array = NDArray[np.float64]

LEAST_NOISE = 0.5 / 255  # a picture of 8 bits and what the model of its blur leaves out
SHARP = 0.6  # pixels: below, a photograph counts as sharp
MOST_BLUR = 6.0  # pixels
SLOPE, SLOPE_STD = 2.4, 0.15  # of spectra of photographs
TILE = 64  # pixels: side of the pieces of which spectra are taken
PART, SQUARE = 32, 8  # details of a part, which lie together in squares of this side
CALM = (0.5, 0.25, 0.1, 0.05)  # shares of the parts that may be noise alone, from the smallest
LOWER = 0.4  # of a calm share: these parts must tell the same noise


@dataclass(frozen=True)
class Degradation:
    """What was found in a photograph.

    noise  standard deviation, grey levels from 0 to 1
    blur   standard deviation of a Gaussian in pixels; 0: sharp; None: too little detail above the noise to tell
    jpeg   the noise is what a JPEG file has left of it
    """

    noise: float
    blur: float | None
    jpeg: bool


def estimate(image: Array, file: str | Path | IO[bytes] | None = None) -> Degradation:
    """Noise and blur of a photograph (C, H, W) in [0, 1].

    file  the picture that it is from, for the table of a JPEG
    """
    found = _noise_of_jpeg(file) if file is not None else None
    if found is None:
        noise = estimate_noise(image)
        return Degradation(noise, estimate_blur(image.mean(0), noise / float(np.sqrt(len(image)))), jpeg=False)
    return Degradation(max(found[0], LEAST_NOISE), estimate_blur(image.mean(0), found[1]), jpeg=True)


def estimate_noise(image: Array) -> float:
    """The standard deviation of white noise in an image (C, H, W), equal in all channels."""
    unclipped = (image > 0) & (image < 1)
    parts = in_parts(*finest(image, unclipped if unclipped.mean() > 0.1 else np.ones_like(unclipped)))
    return max(level_of(parts).value, LEAST_NOISE) if len(parts) else LEAST_NOISE


@dataclass(frozen=True)
class Level:
    """The standard deviation of noise, and its standard error; `alone` is False where no part is noise alone."""

    value: float
    error: float
    alone: bool


def level_of(parts: Array) -> Level:
    """The noise in numbers (N, n), which are noise alone, of mean 0, in the calm ones of N parts."""
    from scipy.special import chdtri, ndtri  # slow to load, and not needed by most commands

    (count, numbers), size = parts.shape, np.sqrt(np.square(parts).mean(1))

    def at(share: float) -> tuple[float, float]:
        """The noise by the quantile of this share, and its relative error."""
        usual = np.sqrt(chdtri(numbers, 1 - share) / numbers)
        density = np.exp(-(ndtri(share) ** 2) / 2) / np.sqrt(2 * np.pi)
        scatter = np.sqrt(share * (1 - share) / count) / density / np.sqrt(2 * numbers)
        return float(np.quantile(size, share) / usual), float(scatter)

    for share in CALM:
        value, error = at(share)
        lower, margin = at(LOWER * share)
        alone = LOWER * share * count >= 2 and lower > value * (1 - 2 * margin)
        if alone:
            break
    return Level(value, value * error, alone)


def finest(planes: Array, there: NDArray[np.bool_]) -> tuple[Array, NDArray[np.bool_]]:
    """Diagonal details of planes (..., H, W), as large as the noise, without plain gradients: (..., H // 2, W // 2).

    Also which of them are made of numbers that are all `there`.
    """
    rows, columns = (n // 2 * 2 for n in planes.shape[-2:])
    corners = [(slice(i, rows, 2), slice(j, columns, 2)) for i in (0, 1) for j in (0, 1)]
    a, b, c, d = (planes[..., i, j] for i, j in corners)
    return (a - b - c + d) / 2, np.logical_and.reduce([there[..., i, j] for i, j in corners])


def in_parts(planes: Array, there: NDArray[np.bool_]) -> Array:
    """The numbers of planes (..., H, W) that are there, square by square, (N, PART); the last few are left out."""
    rows, columns = planes.shape[-2:]
    square = np.arange(rows)[:, None] // SQUARE * -(-columns // SQUARE) + np.arange(columns) // SQUARE
    order = np.argsort(square, axis=None, kind="stable")
    numbers = np.moveaxis(planes.reshape(-1, rows * columns)[:, order], 0, -1)
    kept = numbers[np.moveaxis(there.reshape(-1, rows * columns)[:, order], 0, -1)]
    size = max(min(PART, len(kept)), 1)  # a tiny picture is one part
    return kept[: len(kept) // size * size].reshape(-1, size)


def estimate_blur(grey: Array, noise: float) -> float | None:
    """The standard deviation in pixels of the Gaussian that blurred an image (H, W); see `Degradation.blur`."""
    power, side = _spectrum(grey)
    frequency = np.arange(2, len(power)) / side
    signal = power[2:] - noise**2
    above = np.cumprod(signal > noise**2).astype(bool)  # up to where it sinks into the noise
    if above.sum() < 4:
        return None
    f, level = frequency[above], np.log(signal[above])
    slope = np.array([0, 0.15 / SLOPE_STD, 0])  # 0.15: the scatter of a logarithm around the model
    model = np.vstack([np.stack([np.ones_like(f), -np.log(f), -((2 * np.pi * f) ** 2)], 1), slope])
    square = float(np.linalg.lstsq(model, np.append(level, SLOPE * slope[1]), rcond=None)[0][2])
    blur = min(float(np.sqrt(max(square, 0.0))), MOST_BLUR)
    return blur if blur >= SHARP else 0.0


def _spectrum(grey: Array) -> tuple[Array, int]:
    """Mean power of the pieces of an image by |frequency|, 0, 1, ... cycles a piece; the side of a piece."""
    side = min(TILE, *grey.shape)
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    total = np.zeros((side, side // 2 + 1))
    starts = [range(0, n - side + 1, max(side // 2, 1)) for n in grey.shape]
    for i in starts[0]:
        for j in starts[1]:
            piece = grey[i : i + side, j : j + side]
            piece = piece - (piece * window).sum() / window.sum()
            total += np.abs(np.fft.rfft2(piece * window)) ** 2
    total /= len(starts[0]) * len(starts[1]) * np.square(window).sum()
    ring = np.round(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side).astype(int).ravel()
    return (np.bincount(ring, total.ravel()) / np.bincount(ring))[: side // 2], side


def noise_left_by_jpeg(files: Sequence[str | Path]) -> float | None:
    """Root mean square of the noise that JPEG files have left, [0, 1]; None where one is of another format."""
    found = [_noise_of_jpeg(file) for file in files]
    known = [max(noise[0], LEAST_NOISE) for noise in found if noise is not None]
    return float(np.sqrt(np.mean(np.square(known)))) if known and len(known) == len(found) else None


def _noise_of_jpeg(file: str | Path | IO[bytes]) -> tuple[float, float] | None:
    """The noise that a JPEG file has left, and that of its grey picture before; None for a file of another format."""
    with Image.open(file) as opened:
        if not isinstance(opened, JpegImagePlugin.JpegImageFile) or opened.mode not in ("L", "RGB"):
            return None
        tables = [np.array(table, dtype=float).reshape(8, 8) for _, table in sorted(opened.quantization.items())]
        step = 1 if JpegImagePlugin.get_sampling(opened) == 0 else 2  # pixels of a value of colour
        opened.draft("YCbCr" if opened.mode == "RGB" else "L", opened.size)
        planes = np.atleast_3d(np.asarray(opened, dtype=float)).transpose(2, 0, 1)
    grey, variance = _left_of_noise(planes[0], tables[0])

    u, v = np.indices((8, 8))
    variance += float(np.square(tables[0])[u + v < 6].sum()) / 12 / 64  # what coarse steps take of the image
    grey = max(grey, float(np.sqrt(variance)))
    for plane, share in zip(planes[1:], (1.086, 0.825), strict=False):  # mean of the squares of YCbCr -> RGB
        if min(plane.shape) >= 8 * step:
            variance += share * _left_of_noise(_in_blocks(plane[None], step, flat=False).mean((-1, -2)), tables[-1])[1]
    return float(np.sqrt(variance)) / 255, grey / 255


def _left_of_noise(plane: Array, table: Array) -> tuple[float, float]:
    """The standard deviation of noise in a plane before JPEG rounded it, and the variance of what is left."""
    from scipy.fft import dctn  # slow to load, and not needed by most commands
    from scipy.special import ndtr

    u, v = np.indices((8, 8))
    low, high = (u + v >= 1) & (u + v < 4), u + v >= 6
    found = np.rint(dctn(_in_blocks(plane[None], 8)[:, 0] - 128, axes=(1, 2), norm="ortho") / table)
    image = np.square(found * table)[:, low].sum(1)
    zeros = (found == 0)[image <= np.median(image)][:, high].mean(0)
    sigmas = np.geomspace(0.3, 60, 120)
    expected = np.clip(2 * ndtr(table[high] / 2 / sigmas[:, None]) - 1, 1e-9, 1 - 1e-9)
    fit = (zeros * np.log(expected) + (1 - zeros) * np.log1p(-expected)).sum(1)
    sigma = float(sigmas[fit.argmax()])
    k = np.arange(1, 60)[:, None, None]
    rounded = 2 * ((ndtr((k + 0.5) * table / sigma) - ndtr((k - 0.5) * table / sigma)) * (k * table) ** 2).sum(0)
    rounded[0, 0] = sigma**2
    return sigma, float(rounded.mean())


def _in_blocks(planes: Array, side: int, *, flat: bool = True) -> Array:
    """Planes (C, H, W) as square pieces, those that are cut left out: (N, C, side, side), or (H', W', side, side)."""
    channels, rows, columns = len(planes), planes.shape[1] // side, planes.shape[2] // side
    if rows == 0 or columns == 0:  # an image of less than one piece is one
        return planes[None]
    cut = planes[:, : rows * side, : columns * side].reshape(channels, rows, side, columns, side)
    blocks = cut.transpose(1, 3, 0, 2, 4)
    return blocks.reshape(-1, channels, side, side) if flat else blocks[:, :, 0]
