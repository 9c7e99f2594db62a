"""Weighted particles that came out of a filter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.samplers.particles.weights import inverse_cdf, normalised, take


@dataclass(frozen=True, eq=False)
class Cloud:
    """Weighted particles of R independent chains; row r is chain r % chains of image r // chains.

    particles     (R, N, C, H, W), image units
    log_weights   (R, N) float64, unnormalised; NaN in a chain that is lost
    log_evidence  (R,) float64: estimate of the log of the integral of p(x) exp(-nll(x)), constants of the likelihood
                  dropped. For M real measurements with Gaussian noise, log p(y) is this minus M log(2 pi sigma^2) / 2
    ess           (R, T) effective number of particles before each decision whether to resample. Where it falls to a
                  few, the cloud says little about the posterior, however many particles there are
    resamplings   (R,) how often each chain was resampled

    The particles of a chain have ancestors in common: use whole clouds for expectations, and one draw of each of many
    chains where independent samples are wanted (as `ParticleSampler.sample` does).
    """

    particles: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor
    resamplings: Tensor

    @property
    def weights(self) -> Tensor:
        """(R, N), each chain's sum 1; NaN in a chain that is lost."""
        return normalised(self.log_weights)

    @property
    def lost(self) -> Tensor:
        """(R,) bool: chains whose weights are all zero or no numbers; their means, variances and draws are NaN."""
        return ~self.weights.isfinite().all(1)

    @property
    def mean(self) -> Tensor:
        """Weighted mean of each chain, (R, C, H, W), in float64."""
        return torch.einsum("rn,rn...->r...", self.weights, self.particles.double())

    @property
    def var(self) -> Tensor:
        """Weighted variance of each chain, pixel by pixel, (R, C, H, W), in float64."""
        away = self.particles.double() - self.mean[:, None]
        return torch.einsum("rn,rn...->r...", self.weights, away.square())

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Particles of each chain drawn by weight, with replacement, (R, count, C, H, W)."""
        points = torch.rand(len(self.weights), count, generator=generator, dtype=torch.float64)
        drawn = take(self.particles, inverse_cdf(self.weights, points.to(self.weights.device)))
        return torch.where(self.lost.reshape(-1, *[1] * (drawn.dim() - 1)), torch.nan, drawn)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @classmethod
    def cat(cls, clouds: Sequence[Self]) -> Self:
        """The chains of several clouds of as many particles; histories of a run that ended early go on as NaN."""
        length = max(cloud.ess.shape[1] for cloud in clouds)
        pad = [
            torch.nn.functional.pad(cloud.ess, (0, length - cloud.ess.shape[1]), value=torch.nan) for cloud in clouds
        ]
        others = ("particles", "log_weights", "log_evidence")
        particles, log_weights, log_evidence = (torch.cat([getattr(c, name) for c in clouds]) for name in others)
        return cls(particles, log_weights, log_evidence, torch.cat(pad), torch.cat([c.resamplings for c in clouds]))
