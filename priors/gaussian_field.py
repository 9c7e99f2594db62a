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

from .base import per_row
from .closed_form import ClosedFormPrior, Problem
from .gaussian import GaussianPrior
from .whitening import Rows, condition, log_normaliser, noise_part, whiten

# Pixels above which a dense posterior takes minutes and gigabytes.
DENSE_LIMIT = 4096


class GaussianFieldPrior(ClosedFormPrior):
    """A stationary Gaussian field on a torus, channels independent.

    mean      (C, H, W)
    spectrum  variance of every Fourier coefficient, in the order of `torch.fft.fft2`, (C, H, W) or, the same for all
              channels, (H, W): 0 or more, the same at k and -k. Its average is the variance of a pixel

    Raises ValueError, in one line, where these do not fit together.
    """

    centre: Tensor
    spectrum: Tensor

    def __init__(self, mean: Tensor, spectrum: Tensor) -> None:
        super().__init__()
        if mean.dim() != 3 or not bool(mean.isfinite().all()):
            raise ValueError(f"the mean of a field is (C, H, W) of finite numbers, got shape {tuple(mean.shape)}")
        if tuple(spectrum.shape) not in (tuple(mean.shape), tuple(mean.shape[1:])):
            raise ValueError(
                f"the spectrum of a field is like its mean, {tuple(mean.shape)}, or like one channel of it, got "
                f"{tuple(spectrum.shape)}"
            )
        if not bool((spectrum >= 0).all() and spectrum.isfinite().all()):
            raise ValueError(f"the spectrum of a field is 0 or more and finite, got {float(spectrum.min()):.3g}")
        if not torch.allclose(spectrum, _negated(spectrum), rtol=1e-4, atol=1e-7 * float(spectrum.max())):
            raise ValueError("the spectrum of a real field is the same at k and -k, in the order of torch.fft.fft2")
        spectrum = (spectrum + _negated(spectrum)) / 2
        self.shape, self.channels = tuple(mean.shape), mean.shape[0]
        self.register_buffer("centre", mean)
        self.register_buffer("spectrum", spectrum.expand(mean.shape).to(mean.dtype).clone())
        spread = 10 * max(float(self.std.max()), 1e-12)
        self.value_range = (float(mean.min()) - spread, float(mean.max()) + spread)
        # Exact at every level; these are the ones at which there is something to see.
        self.sigma_range = (1e-4 * spread, 10 * max(float(spectrum.max()), 1e-12) ** 0.5)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "GaussianFieldPrior":
        """From the covariance of two pixels at every lag, periodic, lag 0 first: (C, H, W) or (H, W).

        Raises ValueError where there is no such field: the transform of its covariance must be 0 or more.
        """
        spectrum = torch.fft.fft2(covariance.double()).real
        least, most = float(spectrum.min()), float(spectrum.max())
        if least < -1e-8 * most:
            raise ValueError(f"no field has this covariance: its transform must be 0 or more, its least is {least:.3g}")
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
            raise ValueError(f"length and smoothness of a field must be positive, got {length} and {smoothness}")
        squares = (2 * math.pi) ** 2 * _squared_frequencies(shape)
        return cls._of(shape, (2 * smoothness / length**2 + squares) ** -(smoothness + 1), std, mean)

    @classmethod
    def power_law(
        cls, shape: tuple[int, int, int], *, exponent: float = 2.0, std: float = 0.2, mean: float = 0.5
    ) -> "GaussianFieldPrior":
        """Spectrum |k|^-exponent; 2 is about that of photographs. At k = 0 it is what it is at the lowest frequency.

        std, mean  of every pixel
        """
        if not math.isfinite(exponent):
            raise ValueError(f"the exponent of a field must be finite, got {exponent}")
        squares = _squared_frequencies(shape)
        lowest = 1 / max(shape[1:]) ** 2
        return cls._of(shape, squares.clamp(min=lowest) ** (-exponent / 2), std, mean)

    @classmethod
    def _of(cls, shape: tuple[int, int, int], spectrum: Tensor, std: float, mean: float) -> "GaussianFieldPrior":
        if not 0 < std < math.inf:
            raise ValueError(f"std of a field must be positive and finite, got {std}")
        return cls(torch.full(shape, float(mean)), std**2 * spectrum / spectrum.mean())

    @property
    def mean(self) -> Tensor:
        return self.centre

    @property
    def std(self) -> Tensor:
        return self.spectrum.mean((1, 2), keepdim=True).sqrt().expand(self.centre.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.centre + _filter(x - self.centre, self._gain(x, sigma))

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _filter(v, self._gain(x, sigma))

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        # Not from the denoiser: D - x loses its digits where sigma is small.
        with torch.autocast(x.device.type, enabled=False):
            return _filter(self.centre - x, 1 / (self.spectrum + per_row(sigma, x) ** 2))

    def _gain(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        variance = per_row(sigma, x) ** 2
        # At sigma = 0 the image is known: the gain is one, also where the field has no variance.
        return torch.where(
            variance == 0, 1.0, self.spectrum / (self.spectrum + variance).clamp(min=torch.finfo(x.dtype).tiny)
        )

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(
            count, *self.centre.shape, generator=generator, dtype=self.centre.dtype, device=generator.device
        )
        return self.centre + _filter(white.to(self.centre.device), self.spectrum.sqrt())

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            variance = self.spectrum + per_row(sigma, x) ** 2
            if not bool((variance > 0).all()):
                raise ValueError("a field with a spectrum of zeros has no density at sigma = 0; give sigma > 0")
            z = torch.fft.fft2(x - self.centre, norm="ortho")
            squares = z.real.square() + z.imag.square()
            return -0.5 * (squares / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)

    @torch.no_grad()
    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        self.check(problem)
        device, mean = self.centre.device, self.centre.double()
        with torch.autocast(device.type, enabled=False):
            rows, part = Rows(problem, device), noise_part(problem, device)
            seen = _stationary(rows, mean.shape)
            if seen is None:
                return self._dense(problem)
            precision = seen / part**2
            residual = (rows.of(problem.y) - rows.forward(mean.flatten()[None])) / part
            spectrum = self.spectrum.double()
            data = (rows.adjoint(residual) / part).reshape(1, *mean.shape)
            shift = _filter(data, spectrum / (1 + spectrum * precision))
            # |w - B shift|^2 + shift^T C^-1 shift: nothing is subtracted.
            z = torch.fft.fft2(_filter(data, spectrum.sqrt() / (1 + spectrum * precision)), norm="ortho")
            rest = residual - rows.forward(shift.flatten(1)) / part
            quadratic = rest.square().sum() + z.real.square().sum() + z.imag.square().sum()
            evidence = log_normaliser(rows.count, part) - 0.5 * (quadratic + (spectrum * precision).log1p().sum())
            narrowed = GaussianFieldPrior(
                (mean + shift[0]).to(self.centre.dtype), (spectrum / (1 + spectrum * precision)).to(self.centre.dtype)
            )
            return narrowed, evidence

    def _dense(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        n = self.centre.numel()
        if n > DENSE_LIMIT:
            name = type(problem.operator).__name__
            raise ValueError(
                f"the posterior after {name} is not stationary and takes a {n} x {n} matrix; more than {DENSE_LIMIT} "
                "pixels are too many, use smaller images or a LowRankMixturePrior"
            )
        matrix, w, constant = whiten(problem, self.centre.device)
        identity = torch.eye(n, dtype=torch.float64, device=self.centre.device).reshape(n, *self.centre.shape)
        root = _filter(identity, self.spectrum.double().sqrt()).flatten(1)
        residual = w - matrix @ self.centre.double().flatten()
        (shift,), narrowed, (evidence,) = condition(root, matrix, residual[None])
        mean = self.centre + shift.to(self.centre.dtype).reshape(self.centre.shape)
        return GaussianPrior.from_root(mean, narrowed), evidence + constant

    @classmethod
    def example(cls) -> "GaussianFieldPrior":
        return cls.matern((1, 16, 16), length=4.0)


def _stationary(rows: Rows, shape: torch.Size) -> Tensor | None:
    """Eigenvalues of A^T A in Fourier space, (C, H, W), None where it is not diagonal there."""
    channels, height, width = shape
    identity = torch.zeros(channels, channels, height, width, dtype=torch.float64, device=rows.device)
    identity[torch.arange(channels), torch.arange(channels), 0, 0] = 1
    answers = rows.adjoint(rows.forward(identity.flatten(1))).reshape(identity.shape)
    values = torch.fft.fft2(answers[torch.arange(channels), torch.arange(channels)])
    # A generic image finds out: it is the same measure as a proof, but for a null set of images.
    probe = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows.device)
    wanted = rows.adjoint(rows.forward(probe.flatten(1))).reshape(probe.shape)
    error = (_filter(probe, values.real) - wanted).norm()
    return values.real.clamp(min=0) if bool(error <= 1e-10 * wanted.norm()) else None


def _filter(x: Tensor, factors: Tensor) -> Tensor:
    """Images (B, C, H, W) with each Fourier coefficient multiplied by a real factor that is the same at k and -k."""
    return torch.fft.ifft2(factors * torch.fft.fft2(x)).real


def _negated(spectrum: Tensor) -> Tensor:
    """The value at -k in the place of the one at k."""
    return spectrum.flip(-2, -1).roll((1, 1), (-2, -1))


def _squared_frequencies(shape: tuple[int, int, int]) -> Tensor:
    """|k|^2 in cycles per pixel, float64 (H, W)."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[1:])
    return rows[:, None] ** 2 + columns**2
