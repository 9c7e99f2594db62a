"""Gaussian prior of independent pixels, exact at any size.

Model       N(mean, diag(std^2)).
Posterior   diagonal again, at any size, where each pixel is measured by itself (denoising, inpainting). Otherwise
            pixels are correlated: a dense `GaussianPrior`, for small images.
"""

import math

import torch
from torch import Tensor

from .spectral_gaussian import SpectralGaussian
from .whitening import Rows


class DiagonalGaussianPrior(SpectralGaussian):
    """Independent Gaussian pixels.

    mean  (C, H, W)
    std   of every pixel, (C, H, W), >= 0, image units

    Raises ValueError if these do not fit together.
    """

    kind = "diagonal"

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        if mean.dim() != 3 or not bool(mean.isfinite().all()):
            raise ValueError(f"mean of a Gaussian must be (C, H, W), finite numbers, got shape {tuple(mean.shape)}")
        if std.shape != mean.shape:
            raise ValueError(
                f"std of the pixels must have the shape of the mean, {tuple(mean.shape)}, got {tuple(std.shape)}"
            )
        if not bool((std >= 0).all() and std.isfinite().all()):
            raise ValueError(f"std of the pixels must be >= 0 and finite, got {float(std.min()):.3g}")
        super().__init__(mean, std.to(mean.dtype).square())

    @classmethod
    def white(cls, shape: tuple[int, int, int], *, std: float = 0.2, mean: float = 0.5) -> "DiagonalGaussianPrior":
        """The same mean and std in every pixel of (C, H, W)."""
        if not 0 < std < math.inf:
            raise ValueError(f"std of white pixels must be positive and finite, got {std}")
        return cls(torch.full(tuple(shape), float(mean)), torch.full(tuple(shape), float(std)))

    @property
    def std(self) -> Tensor:
        return self.spectrum.sqrt()

    def _filter(self, x: Tensor, factors: Tensor) -> Tensor:
        return factors * x

    def _squares(self, x: Tensor) -> Tensor:
        return x.square()

    def _response(self, rows: Rows) -> Tensor:
        ones = torch.ones(1, self._mean.numel(), dtype=torch.float64, device=rows.device)
        return rows.adjoint(rows.forward(ones)).reshape(self._mean.shape)

    def _again(self, mean: Tensor, spectrum: Tensor) -> "DiagonalGaussianPrior":
        return DiagonalGaussianPrior(mean, spectrum.sqrt())

    @classmethod
    def example(cls) -> "DiagonalGaussianPrior":
        wave = torch.linspace(0, 3.14, 16)
        return cls(0.5 + 0.2 * torch.outer(wave.cos(), wave.sin())[None], 0.05 + 0.1 * torch.outer(wave, wave)[None])
