"""Gaussians that are diagonal in a basis with a fast transform: pixels and Fourier coefficients.

Model       N(mean, T^-1 diag(spectrum) T), T an orthonormal transform of the images.
Posterior   of the same kind, at any size, where A^T A is diagonal in the same basis. Otherwise a dense
            `GaussianPrior`, for small images.
"""

import math
from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from .base import ClosedFormPrior, Problem
from .gaussian import GaussianPrior
from .mixture import standard_normal
from .whitening import Rows, condition, log_normaliser, noise_part, whiten

# Pixels above which a dense posterior takes minutes and gigabytes.
DENSE_LIMIT = 4096


class SpectralGaussian(ClosedFormPrior):
    """N(mean, T^-1 diag(spectrum) T); see the module's docstring.

    mean      (C, H, W)
    spectrum  variance of every coefficient, (C, H, W)
    """

    _mean: Tensor
    spectrum: Tensor
    # The adjective of its covariances, for messages.
    kind: str

    def __init__(self, mean: Tensor, spectrum: Tensor) -> None:
        super().__init__()
        self.shape, self.channels = tuple(mean.shape), mean.shape[0]
        self.register_buffer("_mean", mean)
        self.register_buffer("spectrum", spectrum.expand(mean.shape).to(mean.dtype).clone())
        self.singular = not bool((self.spectrum > 0).all())
        spread = 10 * max(float(self.std.max()), 1e-12)
        self.value_range = (float(mean.min()) - spread, float(mean.max()) + spread)
        # Exact at every level; below and above these the denoiser hardly changes.
        self.sigma_range = (1e-4 * spread, 10 * max(float(spectrum.max()), 1e-12) ** 0.5)

    @abstractmethod
    def _filter(self, x: Tensor, factors: Tensor) -> Tensor:
        """Images (B, C, H, W) with each coefficient multiplied by a real factor."""

    @abstractmethod
    def _squares(self, x: Tensor) -> Tensor:
        """Squared coefficients of images, (B, C, H, W)."""

    @abstractmethod
    def _response(self, rows: Rows) -> Tensor:
        """The diagonal of A^T A, (C, H, W), if it is diagonal."""

    @abstractmethod
    def _again(self, mean: Tensor, spectrum: Tensor) -> Self:
        """A prior of the same class."""

    @property
    def mean(self) -> Tensor:
        return self._mean

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with self.exactly(x, sigma):
            away = x - self._mean
            return (self._mean + self._filter(away, self._gain(away, sigma))).to(x.dtype)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        with self.exactly(x, sigma, v):
            wide = v.to(torch.promote_types(v.dtype, self._mean.dtype))
            return self._filter(wide, self._gain(wide, sigma)).to(v.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        # Not from the denoiser: D - x loses its digits where sigma is small.
        with self.exactly(x, sigma):
            away = self._mean - x
            return self._filter(away, 1 / self._total(away, sigma)).to(x.dtype)

    def _gain(self, like: Tensor, sigma: float | Tensor) -> Tensor:
        variance = sigma_per_row(sigma, like) ** 2
        # At sigma = 0 the gain is one, also where the prior has no variance.
        return torch.where(
            variance == 0, 1.0, self.spectrum / (self.spectrum + variance).clamp(min=torch.finfo(like.dtype).tiny)
        )

    def _total(self, like: Tensor, sigma: float | Tensor) -> Tensor:
        """Spectrum of x_sigma. Raises ValueError if it has a 0."""
        total = self.spectrum + sigma_per_row(sigma, like) ** 2
        if self.singular and not bool((total > 0).all()):
            raise ValueError(f"a {self.kind} Gaussian with zero variances has no density at sigma = 0; give sigma > 0")
        return total

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        white = standard_normal(count, self._mean.numel(), self._mean, generator)
        return self._mean + self._filter(white.reshape(count, *self._mean.shape), self.spectrum.sqrt())

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        with self.exactly(x, sigma):
            away = x - self._mean
            total = self._total(away, sigma)
            return -0.5 * (self._squares(away) / total + (2 * math.pi * total).log()).flatten(1).sum(1).to(x.dtype)

    @torch.no_grad()
    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        self.check(problem)
        device, mean = self._mean.device, self._mean.double()
        with torch.autocast(device.type, enabled=False):
            rows, part = Rows(problem, device), noise_part(problem, device)
            seen = self._seen(rows)
            if seen is None:
                return self._dense(problem)
            precision = seen / part**2
            residual = (rows.of(problem.y) - rows.forward(mean.flatten()[None])) / part
            spectrum = self.spectrum.double()
            data = (rows.adjoint(residual) / part).reshape(1, *mean.shape)
            shift = self._filter(data, spectrum / (1 + spectrum * precision))
            # |w - B shift|^2 + shift^T C^-1 shift: nothing is subtracted.
            white = self._squares(self._filter(data, spectrum.sqrt() / (1 + spectrum * precision)))
            rest = residual - rows.forward(shift.flatten(1)) / part
            quadratic = rest.square().sum() + white.sum()
            evidence = log_normaliser(rows.count, part) - 0.5 * (quadratic + (spectrum * precision).log1p().sum())
            narrowed = self._again(
                (mean + shift[0]).to(self._mean.dtype), (spectrum / (1 + spectrum * precision)).to(self._mean.dtype)
            )
            return narrowed, evidence

    def _seen(self, rows: Rows) -> Tensor | None:
        """The diagonal of A^T A, (C, H, W), None where it is not diagonal."""
        values = self._response(rows)
        # One random image decides: an operator that is not diagonal passes with probability 0.
        probe = torch.randn(1, *values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        probe = probe.to(rows.device)
        wanted = rows.adjoint(rows.forward(probe.flatten(1))).reshape(probe.shape)
        error = (self._filter(probe, values) - wanted).norm()
        return values.clamp(min=0) if bool(error <= 1e-10 * wanted.norm()) else None

    def _dense(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        n = self._mean.numel()
        if n > DENSE_LIMIT:
            name = type(problem.operator).__name__
            raise ValueError(
                f"the posterior after {name} is not {self.kind} and takes a {n} x {n} matrix, the limit is "
                f"{DENSE_LIMIT} pixels; use smaller images or a LowRankMixturePrior"
            )
        matrix, w, constant = whiten(problem, self._mean.device)
        identity = torch.eye(n, dtype=torch.float64, device=self._mean.device).reshape(n, *self._mean.shape)
        root = self._filter(identity, self.spectrum.double().sqrt()).flatten(1)
        residual = w - matrix @ self._mean.double().flatten()
        (shift,), narrowed, (evidence,) = condition(root, matrix, residual[None])
        mean = self._mean + shift.to(self._mean.dtype).reshape(self._mean.shape)
        return GaussianPrior(mean, root=narrowed), evidence + constant
