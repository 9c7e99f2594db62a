"""Single-coil Cartesian magnetic resonance imaging: some lines of k-space.

Model   A x = mask * F x, F the Fourier transform, centred and orthonormal by default. Exact adjoint, pseudo-inverse and
        decomposition: for complex images V is F itself and the singular values are the mask, 0 and 1, times the scale
        of F. The spectrum of a real image is symmetric, X(-k) = conj X(k): V is the Hartley transform and s(k)^2 is
        (mask(k) + mask(-k)) / 2, times that of F.
Shapes  x (B, 1, H, W) real, or (B, 2, H, W), real and imaginary part of a complex image -> y (B, 1, H, W) complex, in
        units of x, zero where not sampled; sigma^2 is the variance of the complex number.
Spec    `kspace.py`: transform and masks.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..core.base import SpectralOperator, Variants
from .kspace import CartesianSampling, Convention, as_complex, as_image, draw_masks, from_kspace, negated, to_kspace


class MRI(CartesianSampling, SpectralOperator):
    """One coil, k-space sampled on its grid.

    acceleration     inverse of the sampled fraction of positions, >= 1; 4 where no mask is given
    center_fraction  fraction of the lines that is fully sampled around the centre of k-space, part of the sampled
                     fraction; 0.08 is usual at acceleration 4, 0.04 at 8. `radial`: diameter of the centre
    pattern          `random` lines, `equispaced` lines, `gaussian` (random lines, denser near the centre) or `radial`
                     (spokes at golden-angle steps on the grid); lines run along the columns
    mask             instead of these: the sampled positions, non-zero means measured, centre of k-space in the middle;
                     a file (a picture, or an array of `invdiff.files`) or an array; (W,), one value per line, (H, W) or
                     (B, [1,] H, W) per image
    seed             determines the drawn mask, for all images
    fft              where the origins of image and k-space are: `centred` (fastMRI: both in the middle), `numpy`
                     (np.fft.fft2 of the image: both in the first entry), `fftshift` (np.fft.fftshift of that) or
                     `ifftshift` (np.fft.fft2 of np.fft.ifftshift of the image). The mask is laid out like y
    norm             of the transform, as in NumPy, whose default is `backward`: `ortho`, `backward`, `forward`
    complex_image    images have two channels, real and imaginary part

    `MRI.random(shape, seed=..., images=B)` draws one mask per image.
    """

    per_image = ("mask",)

    def __init__(
        self,
        *,
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

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        *,
        acceleration: float = 4.0,
        center_fraction: float = 0.08,
        pattern: str = "random",
        seed: int,
        images: int = 1,
    ) -> Self:
        """A different mask for each of `images` images of this (C, H, W), complex where C = 2."""
        masks = draw_masks(shape, acceleration, center_fraction, pattern, seed, images)
        return cls(mask=masks, complex_image=shape[0] == 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._sampled(to_kspace(as_complex(x), self.convention))

    def adjoint(self, y: Tensor) -> Tensor:
        """The zero-filled reconstruction, in units of x where the transform is orthonormal."""
        return as_image(from_kspace(self._sampled(y), self.convention), self.complex_image)

    def singular_values(self, like: Tensor) -> Tensor:
        mask = self.mask_of(tuple(like.shape[-2:]), like.device).to(like.real.dtype)
        s = mask if self.complex_image else ((mask + negated(mask, self.convention)) / 2).sqrt()
        return self.convention.scale(like.shape) * s

    def vt(self, x: Tensor) -> Tensor:
        k = to_kspace(as_complex(x), self._orthonormal)
        return as_image(k, True) if self.complex_image else k.real - k.imag

    def v(self, z: Tensor) -> Tensor:
        if self.complex_image:
            return as_image(from_kspace(as_complex(z), self._orthonormal), True)
        k = from_kspace(torch.complex(z, -z), self._orthonormal)
        return k.real

    @property
    def _orthonormal(self) -> Convention:
        return self.convention._replace(norm="ortho")

    def ut(self, y: Tensor) -> Tensor:
        return self.vt(self.adjoint(self._unscaled(y)))

    def u(self, z: Tensor) -> Tensor:
        return self._unscaled(self(self.v(z)))

    def _unscaled(self, y: Tensor) -> Tensor:
        """y / s: with A = U S V^T and s equal at k and -k, U is A V without the scale."""
        s = self.singular_values(y)
        return torch.where(s > 0, y / s.where(s > 0, 1), 0)

    @classmethod
    def example(cls) -> tuple["MRI", tuple[int, ...]]:
        return cls(acceleration=2, center_fraction=0.2), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        one, two = (1, 7, 6), (2, 6, 7)
        return {
            "example": cls.example(),
            "complex": (cls(acceleration=3, center_fraction=0.3, complex_image=True), two),
            "equispaced": (cls(acceleration=2, center_fraction=0.3, pattern="equispaced"), one),
            "gaussian": (cls(acceleration=2, pattern="gaussian"), one),
            "radial": (cls(acceleration=2, pattern="radial"), one),
            "numpy": (cls(acceleration=2, fft="numpy", norm="backward"), one),
            "complex-ifftshift": (cls(acceleration=2, fft="ifftshift", norm="forward", complex_image=True), two),
            "lines": (cls(mask=torch.tensor([1, 0, 0, 1, 1, 0])), one),
            "per-image": (cls.random(one, acceleration=2, seed=1, images=3), one),
            "complex-per-image": (cls.random(two, acceleration=2, seed=1, images=3), two),
        }
