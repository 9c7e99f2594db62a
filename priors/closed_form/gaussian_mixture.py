"""Mixtures of Gaussians with any covariances: the priors of which multimodal posteriors are known exactly.

Model       sum_k weights_k N(means_k, covariances_k); the posterior of a linear measurement is one again.
Shapes      dense: covariances are (n, n) with n = C H W, so small images only. `isotropic` stores none, and its
            posterior one basis with as many directions as were measured, which all components share.
Benchmark   Cardoso et al. 2024, Monte Carlo guided denoising diffusion models for Bayesian linear inverse problems,
            ICLR, section 5: 25 isotropic components in up to 800 dimensions.
"""

import torch
from torch import Tensor

from ..base import Prior
from .base import ClosedFormPrior, Problem
from .gaussian import eigen
from .mixture import MixturePrior, checked_weights
from .whitening import condition, whiten


class GaussianMixturePrior(MixturePrior):
    """sum_k weights_k N(means_k, covariances_k).

    weights      (K,), >= 0, sum 1
    means        (K, C, H, W)
    covariances  (K, n, n), symmetric and positive semi-definite, pixels in the order of `means.flatten(1)`

    Raises ValueError if these do not fit together.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        log_weights = checked_weights(weights, means)
        count, n = len(means), means[0].numel()
        if covariances.shape != (count, n, n):
            raise ValueError(
                f"covariances of {count} means of {n} values must be {(count, n, n)}, got {tuple(covariances.shape)}"
            )
        parts = [eigen(covariance, n) for covariance in covariances]
        directions = torch.stack([basis.mT for _, basis in parts])
        variances = torch.stack([eigenvalues for eigenvalues, _ in parts])
        super().__init__(log_weights, means, directions, variances, torch.ones_like(variances[:, 0]))
        self._set_ranges()

    @classmethod
    def isotropic(cls, weights: Tensor, means: Tensor, std: float) -> "GaussianMixturePrior":
        """sum_k weights_k N(means_k, std^2 I), without a matrix."""
        log_weights = checked_weights(weights, means)
        if not 0 < std < float("inf"):
            raise ValueError(f"std of an isotropic mixture must be positive and finite, got {std}")
        n = means[0].numel()
        return cls._of(
            log_weights,
            means,
            means.new_zeros(1, 0, n),
            means.new_zeros(1, 0),
            torch.tensor([std**2], dtype=torch.float64),
        )

    @classmethod
    def benchmark(cls, dimension: int = 8, seed: int = 0) -> "GaussianMixturePrior":
        """The prior of the mixture benchmark: 25 components of unit covariance in an even dimension d, as (1, 1, d).

        Centres (-8 i, -8 j) repeated d / 2 times, i and j from -2 to 2; weights the squares of normal numbers,
        normalised, drawn from `seed`.
        """
        if dimension < 2 or dimension % 2:
            raise ValueError(f"dimension of the mixture benchmark must be an even integer >= 2, got {dimension}")
        rng = torch.Generator().manual_seed(seed)
        weights = torch.randn(25, generator=rng).square()
        corners = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)])
        means = corners.repeat(1, dimension // 2).reshape(25, 1, 1, dimension)
        prior = cls.isotropic(weights / weights.sum(), means, 1.0)
        prior.unit = 1.0  # the authors': their networks see these numbers as they are
        return prior

    @classmethod
    def _of(
        cls, log_weights: Tensor, means: Tensor, directions: Tensor, variances: Tensor, rest: Tensor
    ) -> "GaussianMixturePrior":
        """From decomposed covariances, without the checks of the constructor."""
        prior = cls.__new__(cls)
        MixturePrior.__init__(prior, log_weights, means, directions, variances, rest.to(means.device))
        prior._set_ranges()
        return prior

    def _set_ranges(self) -> None:
        largest = torch.cat([self.variances.flatten(), *([] if self.full else [self.rest])]).max()
        spread = 10 * max(float(largest), 1e-12) ** 0.5
        low, high = float(self.means.min()), float(self.means.max())
        self.value_range = (low - spread, high + spread)
        # Exact at every level; below and above these the denoiser hardly changes.
        self.sigma_range = (1e-4 * spread, 10 * spread + 10 * (high - low))

    @property
    def covariances(self) -> Tensor:
        """(K, n, n); made at every access."""
        n = self.offsets.shape[1]
        rest = torch.zeros_like(self.rest) if self.full else self.rest
        excess = self.variances - rest[:, None]
        own = (self.directions.mT * excess[:, None]) @ self.directions
        own = own + rest[:, None, None] * torch.eye(n, dtype=own.dtype, device=own.device)
        return own.expand(self.components, n, n).to(self.means.dtype)

    @torch.no_grad()
    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        self.check(problem)
        matrix, w, constant = whiten(problem, self.offsets.device)
        residuals = w - matrix @ self.middle - self.offsets @ matrix.mT
        if len(self.directions) == 1:
            found = [self._condition(0, matrix, residuals)]
        else:
            found = [self._condition(k, matrix, residuals[k : k + 1]) for k in range(self.components)]
        shifts, directions, variances, evidence = zip(*found, strict=True)
        joint = self.log_weights + torch.cat(evidence)
        means = self._image(self.middle + self.offsets + torch.cat(shifts))
        posterior = self._of(joint, means, torch.stack(directions), torch.stack(variances), self.rest)
        return posterior, joint.logsumexp(0) + constant

    def _condition(self, k: int, matrix: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Covariance k given whitened measurements: shifts of the means, directions, variances, log-evidences."""
        # Outside the span of its own directions and the rows of the matrix nothing changes.
        span = self.directions[k] if self.full else _span(torch.cat([self.directions[k], matrix]))
        along = span @ self.directions[k].mT
        rest = 0.0 if self.full else self.rest[k]
        covariance = (along * (self.variances[k] - rest)) @ along.mT + rest * torch.eye(
            len(span), dtype=span.dtype, device=span.device
        )
        variances, basis = torch.linalg.eigh(covariance)
        shifts, root, evidence = condition(basis * variances.clamp(min=0).sqrt(), matrix @ span.mT, residuals)
        # Of the root and not of its square, which would lose the smallest variances.
        turn, singular, _ = torch.linalg.svd(root)
        return shifts @ span, turn.mT @ span, singular**2, evidence

    @classmethod
    def example(cls) -> "GaussianMixturePrior":
        rows = torch.arange(16, dtype=torch.float64)
        near = torch.exp(-(((rows[:, None] - rows) / 3) ** 2) / 2) + 1e-2 * torch.eye(16, dtype=torch.float64)
        smooth = torch.kron(near, near)
        wave = (rows / 3).sin()
        means = 0.5 + 0.3 * torch.stack([torch.outer(wave, wave), -torch.outer(wave, wave), wave.expand(16, 16)])
        covariances = torch.stack([0.01 * smooth, 0.02 * smooth, 0.03 * smooth])
        return cls(torch.tensor([0.5, 0.3, 0.2]), means[:, None].float(), covariances)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        example = cls.example()
        return {"example": example, "isotropic": cls.isotropic(example.weights.float(), example.means, 0.2)}


def _span(rows: Tensor) -> Tensor:
    """Orthonormal rows that span these, (m, n) -> (at most m, n)."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    rounding = torch.finfo(rows.dtype).eps * max(rows.shape)
    return right[singular > rounding * singular[0]] if len(singular) else right
