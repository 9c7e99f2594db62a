"""Multi-coil Cartesian magnetic resonance imaging: some lines of k-space for several coils.

Model   y_c = mask * F (S_c x) for each coil c, F the Fourier transform, centred and orthonormal by default, S_c its
        sensitivity. Exact adjoint. Where whole lines are sampled, A^T A acts on each row of the image, as a W x W
        matrix, so that `solve` and `pinv` (SENSE, Pruessmann et al. 1999) are exact; otherwise they iterate conjugate
        gradients.
Shapes  x (B, 1, H, W) real, or (B, 2, H, W), real and imaginary part of a complex image -> y (B, coils, H, W) complex,
        in units of x where sum_c |S_c|^2 = 1, zero where not sampled; sigma^2 is the variance of the complex number.
Spec    `kspace.py`: transform and masks; `coil_maps.py`: simulated maps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import per_row

from ..core.base import Variants
from .coil_maps import CoilArray
from .kspace import CartesianSampling, as_complex, as_image, draw_masks, from_kspace, to_kspace

# Limit of the numbers kept in decompositions, half a gigabyte in float32: 64 images of 128 x 128, 4 of 320 x 320.
ROOM = 2**27

# Tikhonov term of the first guess, as a fraction of the largest eigenvalue of A^T A.
DAMPING = 0.03


class Rows(NamedTuple):
    """A^T A of one image, row by row: eigenvalues (H, W) and eigenvectors (H, W, W), complex for complex images."""

    values: Tensor
    vectors: Tensor


class MulticoilMRI(CartesianSampling, CoilArray):
    """Several coils, k-space sampled on its grid. The sampling is that of `MRI`.

    coils            number of simulated coils around the image; 8 where no maps are given
    maps             instead of these: sensitivity maps, complex, a file of `invdiff.files` or an array, (coils, H, W)
                     or one set per image, (B, coils, H, W); of any scale, 0 where no coil is sensitive
    acceleration     inverse of the sampled fraction of positions, >= 1; 4 where no mask is given
    center_fraction  fraction of the lines that is fully sampled around the centre of k-space, part of the sampled
                     fraction; 0.08 is usual at acceleration 4, 0.04 at 8
    pattern          `random`, `equispaced` or `gaussian` lines along the columns, or `radial` spokes on the grid
    mask             instead of these: the sampled positions, (W,), (H, W) or (B, [1,] H, W); a file or an array
    seed             determines the drawn mask, for all images
    fft              where the origins of image and k-space are: `centred` (fastMRI: both in the middle), `numpy`
                     (np.fft.fft2 of the image: both in the first entry), `fftshift` (np.fft.fftshift of that) or
                     `ifftshift` (np.fft.fft2 of np.fft.ifftshift of the image). The mask is laid out like y
    norm             of the transform, as in NumPy, whose default is `backward`: `ortho`, `backward`, `forward`
    complex_image    images have two channels, real and imaginary part

    `MulticoilMRI.random(shape, seed=..., images=B)` draws one mask per image. `zero_filled(y)` combines the coils
    without unfolding.
    """

    per_image = ("mask", "maps", "number")
    number: Tensor

    # `pinv` counts singular values below this fraction of the largest one of the image as zero, which limits the
    # amplification of noise.
    cutoff: float = 1e-3

    def __init__(
        self,
        *,
        coils: int | None = None,
        maps: str | Path | Tensor | np.ndarray | None = None,
        acceleration: float | None = None,
        center_fraction: float = 0.08,
        pattern: str = "random",
        mask: str | Path | Tensor | np.ndarray | None = None,
        seed: int = 0,
        fft: str = "centred",
        norm: str = "ortho",
        complex_image: bool = False,
    ) -> None:
        super().__init__()
        self._set_sampling(acceleration, center_fraction, pattern, mask, seed, complex_image, fft, norm)
        self._set_coils(coils, maps, default=8)
        given = [len(value) for value in (self.mask, self.maps) if value is not None and len(value) > 1]
        if len(set(given)) > 1:
            raise ValueError(f"mri: mask and maps must be for equally many images, got {given[0]} and {given[1]}")
        # The decomposition of each image, also after `select`.
        self.register_buffer("number", torch.arange(max(given, default=1)))
        self._rows: dict[tuple, Rows] = {}  # shared by all selections, oldest first
        if self.mask is None:
            self.whole_lines = pattern != "radial"
        else:
            self.whole_lines = bool((self.mask == self.mask[..., :1, :]).all())

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        *,
        coils: int | None = None,
        maps: str | Path | Tensor | np.ndarray | None = None,
        acceleration: float = 4.0,
        center_fraction: float = 0.08,
        pattern: str = "random",
        seed: int,
        images: int = 1,
    ) -> Self:
        """A different mask for each of `images` images of this (C, H, W), complex where C = 2."""
        masks = draw_masks(shape, acceleration, center_fraction, pattern, seed, images)
        return cls(coils=coils, maps=maps, mask=masks, complex_image=shape[0] == 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._sampled(to_kspace(self.coil_images(x), self.convention))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.combined(from_kspace(self._sampled(y), self.convention))

    def zero_filled(self, y: Tensor) -> Tensor:
        """The aliased combination of the coils: the adjoint, divided by sum_c |S_c|^2."""
        return self._evened(self.adjoint(y)) / self.convention.scale(y.shape) ** 2

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.coils, *image_shape[1:]

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return super().mismatch(shape) or self._maps_mismatch(tuple(shape[-2:]))

    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        if not self._fits(b):
            return super().solve(b, rho)
        return self._filtered(b, lambda values, like: 1 / (values + per_row(rho, like)))

    def pinv(self, y: Tensor) -> Tensor:
        b = self.adjoint(y)
        if not self._fits(b):
            return super().pinv(y)

        def inverted(values: Tensor, like: Tensor) -> Tensor:
            keep = values > self.cutoff**2 * values.amax((-2, -1), keepdim=True)
            return torch.where(keep, 1 / values.where(keep, 1), 0)

        return self._filtered(b, inverted)

    def first_guess(self, y: Tensor) -> Tensor:
        """SENSE with a Tikhonov term: the pseudo-inverse amplifies noise where sampled lines are far apart."""
        b = self.adjoint(y)
        power = self.convention.scale(b.shape) ** 2 * self.sensitivity(tuple(b.shape[-2:]), b).amax((-2, -1)).flatten()
        return self.solve(b, DAMPING * power.expand(len(b)))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _fits(self, image: Tensor) -> bool:
        """Whether A^T A acts on rows and the decompositions of these images fit into `ROOM`."""
        height, width = image.shape[-2:]
        numbers = len(set(self.number.tolist())) * height * width**2 * (2 if self.complex_image else 1)
        return self.whole_lines and numbers <= ROOM

    def _filtered(self, b: Tensor, scale: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """V f(values) V^T b, with f(values (1 or B, H, W), like (B, H, W)) broadcastable to (B, H, W)."""
        rows = as_complex(b)[:, 0]
        parts = [self._decomposed(i, number, b) for i, number in enumerate(self.number.tolist())]
        factors = scale(torch.stack([part.values for part in parts]), rows)
        if len(parts) == 1:
            # One matrix per row serves all images: (H, W, W) times (H, W, B).
            vectors = parts[0].vectors
            z = vectors.mH @ rows.permute(1, 2, 0)
            solved = (vectors @ (factors.permute(1, 2, 0) * z)).permute(2, 0, 1)
        else:
            solved = torch.stack(
                [
                    (part.vectors @ (factor[..., None] * (part.vectors.mH @ row[..., None])))[..., 0]
                    for part, factor, row in zip(parts, factors, rows, strict=True)
                ]
            )
        return as_image(solved[:, None], self.complex_image) if self.complex_image else solved[:, None]

    def _decomposed(self, image: int, number: int, like: Tensor) -> Rows:
        size = tuple(like.shape[-2:])
        key = (number, size, like.dtype, like.device)
        if key not in self._rows:
            with torch.inference_mode(False):  # kept tensors must serve a later call that differentiates
                rows = self.select(torch.tensor([image]))._decompose(size)
                precision = like.dtype.to_complex() if self.complex_image else like.dtype
                kept = Rows(rows.values.to(like.device, like.dtype), rows.vectors.to(like.device, precision))
            while self._rows and (len(self._rows) + 1) * kept.vectors.numel() > ROOM:
                self._rows.pop(next(iter(self._rows)))
            self._rows[key] = kept
        return self._rows[key]

    def _decompose(self, size: tuple[int, ...]) -> Rows:
        """In float64, of the first image."""
        maps = self.maps_of(size, torch.zeros((), dtype=torch.float64))[0]
        mask = self.mask_of(size)[0, 0, 0].double()
        # Transform, mask and transform back along a row: a convolution with the inverse transform of the mask.
        response = torch.fft.ifft(torch.fft.ifftshift(mask) if self.convention.kspace_centred else mask)
        response = self.convention.scale(size) ** 2 * response
        place = torch.arange(size[1])
        response = response[(place[:, None] - place) % size[1]]
        values, vectors = [], []
        for block in maps.split(32, dim=1):  # of rows, to bound memory
            normal = torch.einsum("chj,chk->hjk", block.conj(), block) * response
            eigen = torch.linalg.eigh(normal if self.complex_image else normal.real)
            values.append(eigen.eigenvalues.clamp(min=0))
            vectors.append(eigen.eigenvectors)
        return Rows(torch.cat(values), torch.cat(vectors))

    @classmethod
    def example(cls) -> tuple["MulticoilMRI", tuple[int, ...]]:
        return cls(coils=4, acceleration=2, center_fraction=0.2), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        one, two = (1, 6, 7), (2, 7, 6)
        maps = torch.randn(3, 3, 7, 6, generator=torch.Generator().manual_seed(5), dtype=torch.complex64)
        maps[..., :2, :2] = 0  # no coil sees this corner
        masks = draw_masks(two, 1.6, 0.08, "radial", 4, 3)
        return {
            "example": cls.example(),
            "complex": (cls(coils=4, acceleration=1.5, complex_image=True), two),
            "radial": (cls(coils=4, acceleration=1.3, pattern="radial"), one),
            "numpy": (cls(coils=3, acceleration=2, fft="numpy", norm="backward"), one),
            "masks-per-image": (cls.random(one, coils=3, acceleration=2, seed=1, images=3), one),
            "maps-per-image": (cls(maps=maps, complex_image=True), two),
            "all-per-image": (cls(maps=maps, mask=masks, complex_image=True), two),
        }
