"""Gaussian prior: denoiser, samples and linear-Gaussian posteriors in closed form.

Contract    denoise(x, sigma) = mean + C (C + sigma^2 I)^-1 (x - mean).
Shapes      dense: the covariance is (n, n) with n = C H W, so small images only; `GaussianFieldPrior` and
            `DiagonalGaussianPrior` take large ones.
"""

import math

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from .base import ClosedFormPrior, Problem
from .mixture import standard_normal
from .whitening import condition, whiten


class GaussianPrior(ClosedFormPrior):
    """N(mean, covariance), or N(mean, root root^T).

    mean        (C, H, W)
    covariance  (n, n), symmetric and positive semi-definite, n = C H W, pixels in the order of `mean.flatten()`
    root        (n, n), instead of the covariance: keeps small variances that are lost in the product
    """

    _mean: Tensor
    basis: Tensor
    eigenvalues: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor | None = None, *, root: Tensor | None = None) -> None:
        super().__init__()
        if (covariance is None) == (root is None):
            raise ValueError("a Gaussian needs either a covariance or a root of it")
        if root is not None:
            basis, singular, _ = torch.linalg.svd(root.double())
            eigenvalues = singular**2
        else:
            assert covariance is not None
            eigenvalues, basis = eigen(covariance, mean.numel())
        self.shape, self.channels = tuple(mean.shape), mean.shape[0]
        spread = 10 * max(float(eigenvalues.max()), 1e-12) ** 0.5
        self.value_range = (float(mean.min()) - spread, float(mean.max()) + spread)
        # Exact at every level; below and above these the denoiser hardly changes.
        self.sigma_range = (1e-4 * spread, 10 * spread)
        self.register_buffer("_mean", mean)
        self.register_buffer("basis", basis.to(mean.dtype))
        self.register_buffer("eigenvalues", eigenvalues.to(mean.dtype))
        self.singular = not bool((self.eigenvalues > 0).all())

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def covariance(self) -> Tensor:
        return (self.basis * self.eigenvalues) @ self.basis.mT

    @property
    def std(self) -> Tensor:
        return (self.basis.square() @ self.eigenvalues).sqrt().reshape(self.mean.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with self.exactly(x, sigma):
            away = x - self.mean
            return (self.mean + self._filter(away, self._gain(away, sigma))).to(x.dtype)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        with self.exactly(x, sigma, v):
            wide = v.to(torch.promote_types(v.dtype, self.mean.dtype))
            return self._filter(wide, self._gain(wide, sigma)).to(v.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        # Not from the denoiser: D - x loses its digits where sigma is small.
        with self.exactly(x, sigma):
            away = self.mean - x
            return self._filter(away, 1 / self._total(away, sigma)).to(x.dtype)

    def _total(self, like: Tensor, sigma: float | Tensor) -> Tensor:
        """Eigenvalues of the covariance of x_sigma. Raises ValueError if one is 0."""
        total = self.eigenvalues + sigma_per_row(sigma, like.flatten(1)) ** 2
        if self.singular and not bool((total > 0).all()):
            raise ValueError("a Gaussian with a singular covariance has no density at sigma = 0; give sigma > 0")
        return total

    def _gain(self, like: Tensor, sigma: float | Tensor) -> Tensor:
        variance = sigma_per_row(sigma, like.flatten(1)) ** 2
        # At sigma = 0 the gain is one, also where the prior has no variance.
        return torch.where(
            variance == 0, 1.0, self.eigenvalues / (self.eigenvalues + variance).clamp(min=torch.finfo(like.dtype).tiny)
        )

    def _filter(self, x: Tensor, factors: Tensor) -> Tensor:
        """The matrix with these eigenvalues times each image."""
        basis = self.basis.to(x.dtype)
        return ((x.flatten(1) @ basis * factors) @ basis.mT).reshape(x.shape)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws, (count, C, H, W)."""
        z = standard_normal(count, self.eigenvalues.numel(), self.mean, generator)
        return self.mean + ((z * self.eigenvalues.sqrt()) @ self.basis.mT).reshape(count, *self.mean.shape)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        with self.exactly(x, sigma):
            away = (x - self.mean).flatten(1)
            total = self._total(away, sigma)
            z = away @ self.basis.to(away.dtype)
            return -0.5 * (z**2 / total + (2 * math.pi * total).log()).sum(1).to(x.dtype)

    def posterior_and_evidence(self, problem: Problem) -> tuple["GaussianPrior", Tensor]:
        self.check(problem)
        matrix, w, constant = whiten(problem, self.mean.device)
        posterior, evidence = self._condition(matrix, w)
        return posterior, evidence + constant

    def condition(self, matrix: Tensor, y: Tensor, noise_std: float) -> "GaussianPrior":
        """p(x | y) for y = matrix x + noise_std n, with matrix (m, n) and y (m,): Gaussian again."""
        return self._condition(matrix.double() / noise_std, y.double() / noise_std)[0]

    @torch.no_grad()
    def _condition(self, matrix: Tensor, w: Tensor) -> tuple["GaussianPrior", Tensor]:
        root = self.basis.double() * self.eigenvalues.double().sqrt()
        residual = w - matrix @ self.mean.double().flatten()
        (shift,), narrowed, (evidence,) = condition(root, matrix, residual[None])
        mean = self.mean + shift.to(self.mean.dtype).reshape(self.mean.shape)
        return GaussianPrior(mean, root=narrowed), evidence

    @classmethod
    def example(cls) -> "GaussianPrior":
        n = 16 * 16
        rows = torch.arange(16, dtype=torch.float64)
        smooth = torch.exp(-(((rows[:, None] - rows) / 3) ** 2) / 2) + 1e-3 * torch.eye(16, dtype=torch.float64)
        covariance = 0.04 * torch.kron(smooth, smooth)
        return cls(torch.full((1, 16, 16), 0.5), covariance.float().reshape(n, n))


def eigen(covariance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors in float64. Raises ValueError if it is not a covariance of n values."""
    if covariance.shape != (n, n) or not torch.allclose(covariance, covariance.mT):
        raise ValueError(
            f"covariance must be symmetric, {n} x {n} for a mean of {n} values, got {tuple(covariance.shape)}"
        )
    eigenvalues, basis = torch.linalg.eigh(covariance.double())
    rounding = max(1e-8, 100 * torch.finfo(covariance.dtype).eps)  # of a covariance with fewer ranks than pixels
    if eigenvalues[0] < -rounding * eigenvalues[-1].abs():
        raise ValueError(f"covariance must be positive semi-definite, got an eigenvalue of {eigenvalues[0]:.3g}")
    return eigenvalues.clamp(min=0), basis
