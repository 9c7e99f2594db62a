"""Radial magnetic resonance imaging: spokes through the centre of k-space, off the grid.

Model   y_c(j) = (H W)^-1/2 sum_p S_c(p) x(p) exp(-2 pi i k_j . p), p in pixels from the middle of the image, k_j in
        cycles per pixel: the discrete Fourier transform at any frequency (type 2), scaled like the orthonormal one.
        Exact, adjoint included: the exponential is a product of one factor for rows and one for columns, which are
        kept, spokes * samples * (H + W) complex numbers. A^H A is a convolution with the point spread function, exact
        on a grid of twice the size, on which `solve` and `pinv` iterate conjugate gradients.
Shapes  x (B, 1, H, W) real, or (B, 2, H, W), real and imaginary part of a complex image -> y (B, coils, spokes,
        samples) complex, in units of x; sigma^2 is the variance of the complex number.
Spec    Samples lie at radii (i - samples // 2) / samples cycles per pixel, in [-1/2, 1/2), including the centre of
        k-space; 2 n of them for n pixels, the readout oversampling of scanners; pi n / 2 spokes are dense enough.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape, per_row

from ..core.base import Variants
from ..core.conjugate_gradients import conjugate_gradients
from .coil_maps import CoilArray
from .kspace import GOLDEN_ANGLE, channel_mismatch

ANGLES = ("uniform", "golden")

OVERSAMPLING = 2

# Limit of the numbers in an intermediate result: spokes are processed in portions.
PORTION = 2**24


class Spokes(NamedTuple):
    """The two factors of the exponential, complex (spokes, samples, H), scaled, and (spokes, samples, W)."""

    rows: Tensor
    columns: Tensor


class RadialMRI(CoilArray):
    """Spokes through the centre of k-space.

    spokes         number of spokes
    angles         `uniform`, spaced by 180 degrees / spokes, or `golden`, each 111.25 degrees after the last
    samples        per spoke; None: twice the pixels along the longer side of the image
    size           of the image in pixels, (H, W) or the side of a square; None: that of the maps, else half of
                   `samples`, else any square image
    coils          number of simulated coils; one of uniform sensitivity where neither coils nor maps are given
    maps           instead: complex sensitivity maps, a file of `invdiff.files` or an array, (coils, H, W), or one set
                   per image, (B, coils, H, W)
    complex_image  images have two channels, real and imaginary part
    """

    per_image = ("maps",)

    def __init__(
        self,
        *,
        spokes: int = 40,
        angles: str = "uniform",
        samples: int | None = None,
        size: int | tuple[int, int] | None = None,
        coils: int | None = None,
        maps: str | Path | Tensor | np.ndarray | None = None,
        complex_image: bool = False,
    ) -> None:
        super().__init__()
        if spokes < 1:
            raise ValueError(f"radial_mri: spokes must be an integer >= 1, got {spokes}")
        if angles not in ANGLES:
            raise ValueError(f"radial_mri: angles must be one of {', '.join(ANGLES)}, got {angles!r}")
        if samples is not None and samples < 1:
            raise ValueError(f"radial_mri: samples, per spoke, must be an integer >= 1, got {samples}")
        self._set_coils(coils, maps, default=1)
        if size is None and self.maps is not None:
            size = self.maps.shape[-3], self.maps.shape[-2]
        if size is None and samples is not None:
            size = max(1, samples // OVERSAMPLING)
        self.size = None if size is None else _pair(size)
        if samples is None and self.size is not None:
            samples = OVERSAMPLING * max(self.size)
        self.spokes, self.angles, self.samples = spokes, angles, samples
        self.complex_image = complex_image
        self._factors: dict[tuple, Spokes] = {}  # pure functions of size, precision and device; kept for speed
        self._transfers: dict[tuple, Tensor] = {}

    # -- trajectory ----------------------------------------------------------------------------------------------------

    def directions(self) -> Tensor:
        """Angle of each spoke from the axis of the columns, in radians, float64 (spokes,)."""
        return torch.arange(self.spokes, dtype=torch.float64) * self._step()

    def _step(self) -> float:
        return math.pi / self.spokes if self.angles == "uniform" else GOLDEN_ANGLE

    def radii(self, side: int) -> Tensor:
        """Radii of the samples of a spoke, in cycles per pixel, float64, for an image of this longer side."""
        samples = self.samples or OVERSAMPLING * side
        return (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples

    def trajectory(self, side: int) -> Tensor:
        """(k_y, k_x) of each sample in cycles per pixel, float64 (spokes, samples, 2)."""
        angle = self.directions()[:, None]
        radius = self.radii(side)
        return torch.stack([radius * angle.sin(), radius * angle.cos()], -1)

    def density(self, side: int) -> Tensor:
        """Area of k-space around each sample, in (cycles per pixel)^2, float64 (spokes, samples)."""
        order = (self.directions() % math.pi).sort()
        gap = torch.cat([order.values[1:], order.values[:1] + math.pi]) - order.values
        wedge = torch.empty_like(gap)
        wedge[order.indices] = (gap + gap.roll(1)) / 2
        radius = self.radii(side)
        spacing = 1 / len(radius)
        # A part of a ring; the samples in the centre share the disc of area pi / 4 spacing^2.
        return wedge[:, None] * torch.where(radius == 0, spacing**2 / 4, radius.abs() * spacing)

    # -- transform -----------------------------------------------------------------------------------------------------

    def _spokes_of(self, size: tuple[int, ...], like: Tensor) -> Spokes:
        key = (size, like.real.dtype, like.device)
        if key not in self._factors:
            with torch.inference_mode(False):  # kept tensors must serve a later call that differentiates
                k = self.trajectory(max(size))
                rows, columns = (exponentials(k[..., axis], torch.arange(n) - n // 2) for axis, n in enumerate(size))
                exact = (rows / math.sqrt(size[0] * size[1]), columns)
                kind = like.real.dtype.to_complex()
                self._factors[key] = Spokes(*(factor.to(like.device, kind) for factor in exact))
        return self._factors[key]

    def forward(self, x: Tensor) -> Tensor:
        images = self.coil_images(x)
        parts = []
        for rows, columns in self._portions(images):
            # (B, coils, H, W) on every sample's column factor, then summed over rows.
            lines = images @ columns.flatten(0, 1).mT
            parts.append((lines * rows.flatten(0, 1).mT).sum(-2).unflatten(-1, rows.shape[:2]))
        return torch.cat(parts, -2)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.combined(self._adjoint_images(y))

    def _adjoint_images(self, y: Tensor) -> Tensor:
        """The adjoint of the transform, for every coil: (B, coils, spokes, samples) -> (B, coils, H, W) complex."""
        size = self.image_shape(tuple(y.shape[1:]))[1:]
        images = y.new_zeros(*y.shape[:2], *size)
        start = 0
        for rows, columns in self._portions(images):
            part = y[..., start : start + len(rows), :].flatten(-2)
            lines = rows.flatten(0, 1).mH * part[..., None, :]
            images = images + lines @ columns.flatten(0, 1).conj()
            start += len(rows)
        return images

    def _portions(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Factors of a few spokes at a time, to bound memory."""
        factors = self._spokes_of(tuple(images.shape[-2:]), images)
        per_spoke = images.shape[:-1].numel() * factors.rows.shape[1]
        count = max(1, PORTION // per_spoke)
        return list(zip(factors.rows.split(count), factors.columns.split(count), strict=True))

    # -- inversion -----------------------------------------------------------------------------------------------------

    def _transfer_of(self, size: tuple[int, ...], like: Tensor) -> Tensor:
        key = (size, like.real.dtype, like.device)
        if key not in self._transfers:
            with torch.inference_mode(False):
                self._transfers[key] = self._transfer(size).to(like.device, like.real.dtype)
        return self._transfers[key]

    def _transfer(self, size: tuple[int, ...]) -> Tensor:
        """Transfer function of A^H A without coils, on the double grid (2H, 2W), float64.

        Of the point spread function sum_j exp(2 pi i k_j . d) / (H W), at every distance d of two pixels.
        """
        height, width = size
        upper = torch.zeros(height, 2 * width, dtype=torch.complex128)
        samples = self.trajectory(max(size)).flatten(0, 1)
        for k in samples.split(max(1, PORTION // (8 * width))):
            down, across = torch.arange(height), torch.arange(2 * width) - width
            upper += exponentials(-k[:, 0], down).mT @ exponentials(-k[:, 1], across)
        upper = torch.fft.ifftshift(upper, -1) / (height * width)
        upper[:, width] = 0  # no two pixels have this distance
        # The other half of the distances is its mirrored conjugate; no two pixels have the distance of the row between.
        lower = upper[1:].flip(0, 1).roll(1, 1).conj()
        spread = torch.cat([upper, torch.zeros_like(upper[:1]), lower])
        return torch.fft.fft2(spread).real

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x, without k-space."""
        height, width = x.shape[-2:]
        transfer = self._transfer_of((height, width), x)
        spectrum = torch.fft.fft2(self.coil_images(x), s=tuple(transfer.shape))
        return self.combined(torch.fft.ifft2(spectrum * transfer)[..., :height, :width])

    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        rho = per_row(rho, b)
        return conjugate_gradients(lambda x: self.normal(x) + rho * x, b)

    def pinv(self, y: Tensor) -> Tensor:
        return conjugate_gradients(self.normal, self.adjoint(y))

    def first_guess(self, y: Tensor) -> Tensor:
        """Gridding: the adjoint with every sample weighted by its area, coils combined."""
        shape = self.image_shape(tuple(y.shape[1:]))
        weights = shape[1] * shape[2] * self.density(max(shape[1:])).to(y.device, y.real.dtype)
        return self._evened(self.adjoint(weights * y))

    # -- shapes --------------------------------------------------------------------------------------------------------

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.coils, self.spokes, self.samples or OVERSAMPLING * max(image_shape[1:])

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        side = measurement_shape[-1] // OVERSAMPLING
        return (2 if self.complex_image else 1, *(self.size or (side, side)))

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        size = tuple(shape[-2:])
        if self.size is None and size[0] != size[1]:
            own = describe_shape(size)
            return f"radial_mri: an image must be square unless size is set, got {own}; set size={list(size)}"
        if self.size is not None and size != self.size:
            return f"radial_mri: size is {describe_shape(self.size)}, the image {describe_shape(size)}"
        return channel_mismatch(shape[0], self.complex_image) or self._maps_mismatch(size)

    @classmethod
    def example(cls) -> tuple["RadialMRI", tuple[int, ...]]:
        return cls(spokes=12), (1, 12, 12)

    @classmethod
    def variants(cls) -> Variants:
        maps = torch.randn(3, 3, 7, 6, generator=torch.Generator().manual_seed(5), dtype=torch.complex64)
        maps[..., :2, :2] = 0  # no coil sees this corner
        return {
            "example": cls.example(),
            "golden": (cls(size=(6, 7), spokes=15, samples=13, angles="golden", complex_image=True), (2, 6, 7)),
            "coils": (cls(size=(7, 6), spokes=9, coils=3), (1, 7, 6)),
            "maps-per-image": (cls(maps=maps, spokes=9, complex_image=True), (2, 7, 6)),
        }


def exponentials(k: Tensor, pixels: Tensor) -> Tensor:
    """exp(-2 pi i k p) for every k (...) in cycles per pixel, float64, and every p (n,): (..., n) complex128."""
    phase = -2 * math.pi * k[..., None] * pixels
    return torch.polar(torch.ones_like(phase), phase)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(int(n) for n in size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"radial_mri: size must be (H, W) of the image in pixels or the side of a square, got {size}")
    return pair[0], pair[1]
