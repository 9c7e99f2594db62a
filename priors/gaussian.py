"""Gaussian prior: the yardstick. Denoiser, samples and linear-Gaussian posteriors in closed form.

Contract    denoise(x, sigma) = mean + C (C + sigma^2 I)^-1 (x - mean).
Shapes      dense: the covariance is (n, n) with n = C H W, so small images only.
"""

import math

import torch
from torch import Tensor

from .base import Prior, per_row


class GaussianPrior(Prior):
    """N(mean, covariance).

    mean        (C, H, W)
    covariance  (n, n), symmetric and positive semi-definite, n = C H W, pixels in the order of `mean.flatten()`
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        n = mean.numel()
        if covariance.shape != (n, n) or not torch.allclose(covariance, covariance.mT):
            raise ValueError(
                f"covariance must be symmetric, {n} x {n} for a mean of {n} values, got {tuple(covariance.shape)}"
            )
        eigenvalues, basis = torch.linalg.eigh(covariance.double())
        rounding = max(1e-8, 100 * torch.finfo(covariance.dtype).eps)  # of a covariance with fewer ranks than pixels
        if eigenvalues[0] < -rounding * eigenvalues[-1].abs():
            raise ValueError(f"covariance must be positive semi-definite, its least eigenvalue is {eigenvalues[0]:.3g}")
        self.shape, self.channels = tuple(mean.shape), mean.shape[0]
        spread = 10 * max(float(eigenvalues[-1]), 1e-12) ** 0.5
        self.value_range = (float(mean.min()) - spread, float(mean.max()) + spread)
        # Exact at every level; these are the ones at which there is something to see.
        self.sigma_range = (1e-4 * spread, 10 * spread)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis.to(mean.dtype))
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0).to(mean.dtype))

    @property
    def covariance(self) -> Tensor:
        return (self.basis * self.eigenvalues) @ self.basis.mT

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        # A closed form is no network: under a driver's bf16 it would lose the digits that it is there for.
        with torch.autocast(x.device.type, enabled=False):
            return self._denoise(x, sigma)

    def _denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        variance = per_row(sigma, x.flatten(1)) ** 2
        z = (x - self.mean).flatten(1) @ self.basis
        # At sigma = 0 the image is known: the gain is one, also where the prior has no variance.
        gain = torch.where(
            variance == 0, 1.0, self.eigenvalues / (self.eigenvalues + variance).clamp(min=torch.finfo(x.dtype).tiny)
        )
        return self.mean + ((z * gain) @ self.basis.mT).reshape(x.shape)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws, (count, C, H, W)."""
        z = torch.randn(count, self.eigenvalues.numel(), generator=generator, dtype=self.mean.dtype).to(
            self.mean.device
        )
        return self.mean + ((z * self.eigenvalues.sqrt()) @ self.basis.mT).reshape(count, *self.mean.shape)

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log-density of x under N(mean, covariance + sigma^2 I), (B,)."""
        variance = self.eigenvalues + sigma**2
        z = (x - self.mean).flatten(1) @ self.basis
        return -0.5 * ((z**2 / variance).sum(1) + (2 * math.pi * variance).log().sum())

    def posterior(self, matrix: Tensor, y: Tensor, noise_std: float) -> "GaussianPrior":
        """p(x | y) for y = matrix x + noise_std n, with matrix (m, n) and y (m,): Gaussian again."""
        # x = mean + root z with z standard normal: p(z | y) has the covariance (I + H^T H)^-1 with
        # H = matrix root / noise_std, which stays positive where the textbook formula, a difference, loses every digit.
        # In float64 for the same reason.
        root = self.basis.double() * self.eigenvalues.double().sqrt()
        whitened = matrix.double() @ root / noise_std
        residual = (y.double() - matrix.double() @ self.mean.double().flatten()) / noise_std
        precision, directions = torch.linalg.eigh(whitened.mT @ whitened)
        shrink = 1 / (1 + precision.clamp(min=0))
        shift = root @ directions @ (shrink * (directions.mT @ (whitened.mT @ residual)))
        narrowed = root @ directions * shrink.sqrt()
        return GaussianPrior(self.mean + shift.to(self.mean.dtype).reshape(self.mean.shape), narrowed @ narrowed.mT)

    @classmethod
    def example(cls) -> "GaussianPrior":
        n = 16 * 16
        rows = torch.arange(16, dtype=torch.float64)
        smooth = torch.exp(-(((rows[:, None] - rows) / 3) ** 2) / 2) + 1e-3 * torch.eye(16, dtype=torch.float64)
        covariance = 0.04 * torch.kron(smooth, smooth)
        return cls(torch.full((1, 16, 16), 0.5), covariance.float().reshape(n, n))
