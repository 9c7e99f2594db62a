"""The core of every particle filter: weights, resampling, evidence, and the cloud that comes out.

R chains of N particles each, (R, N, C, H, W); a chain never sees another. Weights are kept as logarithms in float64 and
normalised by logsumexp, whatever the precision of the network. They are never clamped: a chain whose weights are all
zero, or one of whose weights is not a number, is lost and says so.

Resampling  systematic, one uniform number a chain, where the effective number of particles has fallen below a fraction.
Evidence    the logarithm of the integral of p(x) exp(-nll(x)), of which exp is an unbiased estimate at any N (for
            methods whose weights are exact in discrete time); constants that `Noise.nll` drops are dropped here too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.moves import nonzero, row_norm
from invdiff.operators import GaussianNoise, SpectralOperator
from invdiff.operators.base import as_rows
from invdiff.operators.noise import masked
from invdiff.problem import InverseProblem
from invdiff.streams import Streams

# -- weights -----------------------------------------------------------------------------------------------------------


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


# -- particles through network and operator ----------------------------------------------------------------------------


def parts_of(x: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All particles (R, N, C, H, W), at most `at_once` at a time: the chain of each, (n,), and the images (n, C, H, W).

    The chains are what `InverseProblem.select` and `Operator.select` want.
    """
    rows = torch.arange(x.shape[0]).repeat_interleave(x.shape[1])
    yield from zip(rows.split(at_once), x.flatten(0, 1).split(at_once), strict=True)


def each_particle(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
    """Apply a function of chains and images (see `parts_of`) to every particle: (R, N, ...) -> (R, N, ...)."""
    return torch.cat([function(index, part) for index, part in parts_of(x, at_once)]).unflatten(0, x.shape[:2])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each particle in float64, (R, N, ...) -> (R, N)."""
    return (a.double() * b.double()).flatten(2).sum(2)


def per_chain(value: Tensor, like: Tensor) -> Tensor:
    """One value per chain, (R,) or (R, 1), shaped to multiply particles (R, N, ...), in their precision."""
    return value.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def largest_curvature(problem: InverseProblem, value_range: tuple[float, float], iterations: int = 20) -> Tensor:
    """Largest curvature of the negative log-likelihood of each image about mid-grey, (B,) float64.

    Power iteration with differences of gradients over a tenth of the value range, which are exact where the likelihood
    is Gaussian and the operator linear.
    """
    low, high = value_range
    shape = (1, *problem.image_shape)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(problem.y.device, problem.y.real.dtype)
    direction = start.expand(problem.images, *problem.image_shape)
    grey = torch.full_like(direction, (low + high) / 2)
    reach = 0.1 * (high - low) * math.sqrt(start.numel())
    size = grey.new_zeros(problem.images)
    for _ in range(iterations):
        direction = reach * direction / as_rows(nonzero(row_norm(direction)), direction)
        direction = problem.nll_gradient(grey + direction) - problem.nll_gradient(grey - direction)
        size = row_norm(direction) / (2 * reach)
    return size.double()


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A linear problem with Gaussian noise in the coordinates of its singular value decomposition, one row per chain.

    With c = V^T x and u = U^T y, direction i was measured as u_i = s_i c_i + noise of this variance.

    values       s, (R, 1, C, H, W), zero where the operator sees nothing, or next to nothing
    data         u, (R, 1, C, H, W), zero there
    variance     of the noise, (R, 1, 1, 1, 1): that of one real number
    unexplained  (R,) float64: what no image can change of the negative log-likelihood
    """

    values: Tensor
    data: Tensor
    variance: Tensor
    unexplained: Tensor

    @classmethod
    def of(cls, problem: InverseProblem) -> Self:
        operator, noise = problem.operator, problem.noise
        assert isinstance(operator, SpectralOperator)  # `needs` made sure of both
        assert isinstance(noise, GaussianNoise)
        y = masked(problem.y, problem.observed)  # y may hold anything where nothing was measured
        data = operator.ut(y)
        values = operator.singular_values(data).expand_as(data)
        largest = values.flatten(1).amax(1)
        seen = ~(values <= operator.cutoff * as_rows(largest, values))  # NaN is seen, and shows
        values, data = (torch.where(seen, part, 0).unsqueeze(1) for part in (values, data))
        # The unknown is real: where y is complex each of its two parts has half the variance.
        variance = noise.sigma.to(data).reshape(-1).expand(len(data)) ** 2 / (2 if y.is_complex() else 1)
        rest = y.abs().double().square().flatten(1).sum(1) - data.double().square().flatten(1).sum(1)
        unexplained = rest.clamp(min=0) / (2 * variance.double())  # below zero by rounding only
        # Comparisons let NaN pass for a direction that nobody measured: the likelihood has to show it.
        unexplained = torch.where(values.flatten(1).isfinite().all(1), unexplained, torch.nan)
        return cls(values, data, variance.reshape(-1, 1, 1, 1, 1), unexplained)


# -- what comes out ----------------------------------------------------------------------------------------------------


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
