"""Gaussian random fields: stationary covariances on a torus, diagonal in Fourier space, exact at any size.

Model       N(mean, F^-1 diag(spectrum) F), F the orthonormal Fourier transform of each channel.
Paper       Lindgren, Rue & Lindstrom 2011, An explicit link between Gaussian fields and Gaussian Markov random fields,
            J. R. Stat. Soc. B 73(4): Matern spectra are (kappa^2 + |k|^2)^-(nu + d/2), here with d = 2.
Posterior   where A^T A is stationary too (denoising, circular blur) a field again, at any size. Otherwise the posterior
            is not stationary: a dense `GaussianPrior`, for small images.
"""

import math

import torch
from torch import Tensor

from ..base import Prior
from .spectral_gaussian import SpectralGaussian
from .whitening import Rows


class GaussianFieldPrior(SpectralGaussian):
    """A stationary Gaussian field on a torus, channels independent.

    mean      (C, H, W)
    spectrum  variance of every Fourier coefficient, in the order of `torch.fft.fft2`, (C, H, W) or, the same for all
              channels, (H, W): >= 0, equal at k and -k. Its average is the variance of a pixel

    Raises ValueError if these do not fit together.
    """

    kind = "stationary"

    def __init__(self, mean: Tensor, spectrum: Tensor) -> None:
        if mean.dim() != 3 or not bool(mean.isfinite().all()):
            raise ValueError(f"mean of a field must be (C, H, W), finite numbers, got shape {tuple(mean.shape)}")
        if tuple(spectrum.shape) not in (tuple(mean.shape), tuple(mean.shape[1:])):
            raise ValueError(
                f"spectrum of a field must have the shape of its mean, {tuple(mean.shape)}, or of one channel, got "
                f"{tuple(spectrum.shape)}"
            )
        if not bool((spectrum >= 0).all() and spectrum.isfinite().all()):
            raise ValueError(f"spectrum of a field must be >= 0 and finite, got {float(spectrum.min()):.3g}")
        if not torch.allclose(spectrum, _negated(spectrum), rtol=1e-4, atol=1e-7 * float(spectrum.max())):
            raise ValueError("spectrum of a real field must be equal at k and -k, in the order of torch.fft.fft2")
        super().__init__(mean, (spectrum + _negated(spectrum)) / 2)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "GaussianFieldPrior":
        """From the covariance of two pixels at every lag, periodic, lag 0 first: (C, H, W) or (H, W).

        Raises ValueError if the transform of the covariance is not >= 0.
        """
        spectrum = torch.fft.fft2(covariance.double()).real
        least, most = float(spectrum.min()), float(spectrum.max())
        if least < -1e-8 * most:
            raise ValueError(f"transform of the covariance of a field must be >= 0, got {least:.3g}")
        return cls(mean, spectrum.clamp(min=0))

    @classmethod
    def matern(
        cls,
        shape: tuple[int, int, int],
        *,
        length: float,
        smoothness: float = 1.5,
        std: float = 0.2,
        mean: float = 0.5,
    ) -> "GaussianFieldPrior":
        """Matern covariance: correlated over about `length` pixels, `smoothness` derivatives.

        length      sqrt(2 smoothness) / kappa, in pixels
        smoothness  nu
        std, mean   of every pixel
        """
        if not 0 < length < math.inf or not 0 < smoothness < math.inf:
            raise ValueError(
                f"length and smoothness of a field must be positive and finite, got {length} and {smoothness}"
            )
        squares = (2 * math.pi) ** 2 * _squared_frequencies(shape)
        return cls._of(shape, (2 * smoothness / length**2 + squares) ** -(smoothness + 1), std, mean)

    @classmethod
    def power_law(
        cls, shape: tuple[int, int, int], *, exponent: float = 2.0, std: float = 0.2, mean: float = 0.5
    ) -> "GaussianFieldPrior":
        """Spectrum |k|^-exponent, about 2 for photographs. At k = 0 it has the value of the lowest frequency.

        std, mean  of every pixel
        """
        if not math.isfinite(exponent):
            raise ValueError(f"exponent of a field must be finite, got {exponent}")
        squares = _squared_frequencies(shape)
        lowest = 1 / max(shape[1:]) ** 2
        return cls._of(shape, squares.clamp(min=lowest) ** (-exponent / 2), std, mean)

    @classmethod
    def _of(cls, shape: tuple[int, int, int], spectrum: Tensor, std: float, mean: float) -> "GaussianFieldPrior":
        if not 0 < std < math.inf:
            raise ValueError(f"std of a field must be positive and finite, got {std}")
        return cls(torch.full(shape, float(mean)), std**2 * spectrum / spectrum.mean())

    @property
    def std(self) -> Tensor:
        return self.spectrum.mean((1, 2), keepdim=True).sqrt().expand(self._mean.shape)

    def _filter(self, x: Tensor, factors: Tensor) -> Tensor:
        # Factors are equal at k and -k. MKL refuses an empty batch.
        return torch.fft.ifft2(factors * torch.fft.fft2(x)).real if x.numel() else factors * x

    def _squares(self, x: Tensor) -> Tensor:
        z = torch.fft.fft2(x, norm="ortho") if x.numel() else x.to(torch.complex64)
        return z.real.square() + z.imag.square()

    def _response(self, rows: Rows) -> Tensor:
        channels = self._mean.shape[0]
        identity = torch.zeros(channels, *self._mean.shape, dtype=torch.float64, device=rows.device)
        each = torch.arange(channels)
        identity[each, each, 0, 0] = 1
        answers = rows.adjoint(rows.forward(identity.flatten(1))).reshape(identity.shape)
        return torch.fft.fft2(answers[each, each]).real

    def _again(self, mean: Tensor, spectrum: Tensor) -> "GaussianFieldPrior":
        return GaussianFieldPrior(mean, spectrum)

    @classmethod
    def example(cls) -> "GaussianFieldPrior":
        return cls.matern((1, 16, 16), length=4.0)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        return {"example": cls.example(), "power law": cls.power_law((2, 8, 9))}


def _negated(spectrum: Tensor) -> Tensor:
    """The spectrum at -k."""
    return spectrum.flip(-2, -1).roll((1, 1), (-2, -1))


def _squared_frequencies(shape: tuple[int, int, int]) -> Tensor:
    """|k|^2 in cycles per pixel, float64 (H, W)."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[1:])
    return rows[:, None] ** 2 + columns**2
