"""The core of every particle filter: weights, resampling, evidence, and the cloud that comes out.

R chains of N particles each, (R, N, C, H, W); a chain never sees another. Weights are kept as logarithms in float64 and
normalised by logsumexp, whatever the precision of the network. They are never clamped: a chain whose weights are all
zero, or one of whose weights is not a number, is lost, and its samples are NaN.

Resampling  systematic, one uniform number a chain, where the effective number of particles has fallen below a fraction.
Evidence    the logarithm of the integral of p(x) exp(-nll(x)), of which exp is an unbiased estimate at any N (for
            methods whose weights are exact in discrete time); constants that `Noise.nll` drops are dropped here too.
"""

import math

import torch
from torch import Tensor

from invdiff.streams import Streams


class Weights:
    """The log-weights of R chains of N particles, the evidence that they have given up so far, and their history.

    resample_below  a chain is resampled when its effective number of particles is below this fraction of N: 1 always,
                    0 never

    log_weights   (R, N) float64, unnormalised, since the last resampling
    resamplings   (R,) how often each chain was resampled
    """

    def __init__(self, rows: int, count: int, resample_below: float, device: torch.device | str = "cpu") -> None:
        self.resample_below = resample_below
        self.log_weights = torch.zeros(rows, count, dtype=torch.float64, device=device)
        self.resamplings = torch.zeros(rows, dtype=torch.long, device=device)
        self._given_up = torch.zeros(rows, dtype=torch.float64, device=device)
        self._trace: list[Tensor] = []

    def multiply(self, log_factor: Tensor) -> None:
        """Multiply the weights by factors with these logarithms, (R, N) or (R, 1); call it as often as there are."""
        self.log_weights = self.log_weights + log_factor.double()

    @property
    def normalised(self) -> Tensor:
        """(R, N), each chain's sum 1; NaN in a chain that is lost."""
        return normalised(self.log_weights)

    @property
    def lost(self) -> Tensor:
        """(R,) bool: chains that hold no weight, or one that is no number."""
        return ~self.normalised.isfinite().all(1)

    @property
    def log_evidence(self) -> Tensor:
        """(R,) the log of the mean weight, of this stretch and of all before it."""
        return self._given_up + log_mean_exp(self.log_weights)

    @property
    def ess(self) -> Tensor:
        """(R, T) effective numbers of particles, as found at each of the T calls of `resample`."""
        rows = len(self.log_weights)
        return torch.stack(self._trace, 1) if self._trace else self.log_weights.new_zeros(rows, 0)

    def resample(self, rng: Streams) -> Tensor:
        """Resample the chains that need it; returns the ancestor of each particle, (R, N), for `take` to gather.

        The weights of those chains are 1 again and their evidence is kept. A random number is drawn whether or not a
        chain needs it, so that its stream does not depend on the answer.
        """
        u = uniform(rng, self.log_weights)
        weights = self.normalised
        count = weights.shape[1]
        ess = effective(weights)
        self._trace.append(ess)
        tired = ess < self.resample_below * count  # false in a lost chain, which stays lost
        own = torch.arange(count, device=weights.device).expand_as(weights)
        ancestors = torch.where(tired[:, None], systematic(weights, u), own)
        self._given_up = self._given_up + torch.where(tired, log_mean_exp(self.log_weights), 0.0)
        self.log_weights = torch.where(tired[:, None], 0.0, self.log_weights)
        self.resamplings = self.resamplings + tired
        return ancestors

    def draw(self, rng: Streams) -> Tensor:
        """One particle of each chain, drawn by weight: its index, (R, 1)."""
        return inverse_cdf(self.normalised, uniform(rng, self.log_weights)[:, None])

    def heaviest(self) -> Tensor:
        """The particle of most weight in each chain: its index, (R, 1)."""
        return self.log_weights.argmax(1, keepdim=True)


def normalised(log_weights: Tensor) -> Tensor:
    """Weights of sum 1 along the last axis; NaN all along where none is positive or one is not a number."""
    # exp(-inf - (-inf)) is NaN by itself; one bad weight among good ones spoils the sum and with it the whole chain.
    return (log_weights - log_weights.logsumexp(-1, keepdim=True)).exp()


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """(..., N) -> (...)."""
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def effective(weights: Tensor) -> Tensor:
    """Effective number of particles (ESS) of normalised weights, (..., N) -> (...): N where all are alike."""
    return 1 / weights.square().sum(-1)


def systematic(weights: Tensor, u: Tensor, count: int | None = None) -> Tensor:
    """Systematic resampling: particle n comes K w_n times, rounded up or down. (R, N), u (R,) in [0, 1) -> (R, K).

    count  K; None: as many as there are particles
    """
    count = count or weights.shape[1]
    points = (torch.arange(count, dtype=weights.dtype, device=weights.device) + u[:, None]) / count
    return inverse_cdf(weights, points)


def inverse_cdf(weights: Tensor, points: Tensor) -> Tensor:
    """Particles on which points in [0, 1) fall when weights of sum 1 are laid end to end: (R, N), (R, K) -> (R, K)."""
    ends = weights.cumsum(1)
    # By rounding the last end may lie below a point, which then belongs to the last particle that has any weight.
    index = torch.searchsorted(ends, points.contiguous(), right=True)
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).to(torch.uint8).argmax(1, keepdim=True)
    return torch.minimum(index, last)


def uniform(rng: Streams, like: Tensor) -> Tensor:
    """A uniform number of each chain in [0, 1), (R,)."""
    u = torch.special.ndtr(rng.normal((1,), dtype=torch.float64)).flatten().to(like.device)
    return u.clamp(max=1 - 2**-53)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Whatever is kept per particle, of these particles: (R, N, ...), (R, K) -> (R, K, ...)."""
    return values.gather(1, index.reshape(*index.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:]))
