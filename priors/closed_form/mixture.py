"""Algebra of mixtures of Gaussians with low-rank plus isotropic covariances.

Model       sum_k w_k N(m_k, C_k), C_k = rest_k I + Q_k^T diag(variances_k - rest_k) Q_k with orthonormal rows Q_k.
            Dense components have all n directions, isotropic ones none.
Noise       x_sigma has the same form with C_k + sigma^2 I: no factorisation depends on sigma.
Score       -sum_k r_k (C_k + sigma^2 I)^-1 (x - m_k), with responsibilities r_k; D = x + sigma^2 score is computed from
            its own gains, C_k (C_k + sigma^2 I)^-1, and neither loses digits at any sigma.
Precision   parameters and arithmetic are float64 for images of any type: squared distances to the means are
            differences of large numbers, and the weights are exponentials of them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from .base import ClosedFormPrior

# Numbers held at a time where every row meets every component and every direction.
CHUNK = 1 << 24


class MixturePrior(ClosedFormPrior):
    """A mixture of K Gaussians; see the module's docstring.

    log_weights  logarithms of the weights, up to a constant, (K,)
    means        (K, C, H, W)
    directions  Q, (K, q, n), or (1, q, n) where all components share them
    variances   along the directions, (K, q) or (1, q)
    rest        of the directions' complement, (K,) or (1,); unused where q = n
    """

    means: Tensor
    log_weights: Tensor
    middle: Tensor
    offsets: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, log_weights: Tensor, means: Tensor, directions: Tensor, variances: Tensor, rest: Tensor) -> None:
        super().__init__()
        self.shape, self.channels = tuple(means.shape[1:]), means.shape[1]
        self.register_buffer("means", means)
        flat = means.flatten(1).double()
        log_weights = log_weights.double()
        self.register_buffer("log_weights", log_weights - log_weights.logsumexp(0))
        # Relative to their centre: an offset that all images share costs no digits.
        self.register_buffer("middle", self.weights.double() @ flat)
        self.register_buffer("offsets", flat - self.middle)
        self.register_buffer("directions", directions.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("rest", rest.double())
        self.singular = self.full and not bool((self.variances > 0).all())

    @property
    def components(self) -> int:
        return len(self.log_weights)

    @property
    def full(self) -> bool:
        """Whether the directions span all images."""
        return self.directions.shape[1] == self.directions.shape[2]

    @property
    def weights(self) -> Tensor:
        """(K,)."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        return self._image(self.middle)

    @property
    def std(self) -> Tensor:
        squares = self.directions.square()
        rest = torch.zeros_like(self.rest) if self.full else self.rest
        own = rest[:, None] + torch.einsum("kq,kqn->kn", self.variances - rest[:, None], squares)
        return self._image((self.weights @ (own.expand(self.components, -1) + self.offsets.square())).sqrt())

    def _image(self, flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *self.means.shape[1:]).to(self.means.dtype)

    # -- the contract --------------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self._rows(self._denoise, x, sigma)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self._rows(self._score, x, sigma)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        return self._rows(self._jvp, x, sigma, v)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        return self._rows(self._log_prob, x, sigma)

    def responsibilities(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Probability of each component given x_sigma = x, (B, C, H, W) -> (B, K), in float64.

        With sigma = 0 they are those of every posterior too: a measurement of a known image adds nothing. Raises
        ValueError where a covariance is singular and sigma = 0.
        """
        with self.exactly(x, sigma):
            flat = x.flatten(1).to(self.offsets) - self.middle
            variance = (sigma_per_row(sigma, flat) ** 2).expand(len(x), 1)
            self._refuse_singular(variance)
            rows = max(1, CHUNK // self._numbers_per_row())
            parts = zip(flat.split(rows), variance.split(rows), strict=True)
            return torch.cat([self._joint(*part)[0].softmax(1) for part in parts])

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self._image(self.middle + self._draw(self._choose(count, generator), generator))

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Components of `count` draws, (count,)."""
        return choose(self.weights, count, generator)

    def _draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of each of these components, relative to the centre, (count, n)."""
        z = standard_normal(len(chosen), self.offsets.shape[1], self.offsets, generator)
        x = torch.empty_like(z)
        for k in chosen.unique().tolist():
            rows, j = chosen == k, k if len(self.directions) > 1 else 0
            rest = 0.0 if self.full else self.rest[j].sqrt()
            along = (self.variances[j].sqrt() - rest) * (z[rows] @ self.directions[j].mT)
            x[rows] = self.offsets[k] + rest * z[rows] + along @ self.directions[j]
        return x

    # -- algebra, on rows (B, n) relative to the centre and noise variances (B, 1) -------------------------------------

    def _rows(self, function: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, *more: Tensor) -> Tensor:
        """A function of rows, in float64 and without autocast, on as many rows at a time as fit."""
        with self.exactly(x, sigma, *more):
            work = torch.promote_types(x.dtype, self.offsets.dtype)
            flat = x.flatten(1).to(work) - self.middle
            variance = (sigma_per_row(sigma, flat) ** 2).expand(len(x), 1) if len(x) else flat.new_zeros(0, 1)
            rows = max(1, CHUNK // self._numbers_per_row())
            parts = zip(
                flat.split(rows), variance.split(rows), *(m.flatten(1).to(work).split(rows) for m in more), strict=True
            )
            found = torch.cat([function(*part) for part in parts])
            return (found.reshape(x.shape) if found.dim() == 2 else found).to(x.dtype)

    def _numbers_per_row(self) -> int:
        return self.components * (self.directions.shape[1] + 1) + self.offsets.shape[1]

    def _denoise(self, x: Tensor, variance: Tensor) -> Tensor:
        known = variance == 0  # then the image is known, also along directions without variance
        variance = torch.where(known, 1, variance)
        joint, along = self._joint(x, variance)
        found = self.middle + self._gain(joint.softmax(1), x, along, variance)
        return torch.where(known, self.middle + x, found)

    def _gain(self, r: Tensor, x: Tensor, along: Tensor, variance: Tensor) -> Tensor:
        """sum_k r_k a_k with a_k = m_k + C_k (C_k + sigma^2 I)^-1 (x - m_k)."""
        gains = self.variances / (self.variances + variance[..., None])
        rest = self.rest / (self.rest + variance)
        return r @ self.offsets + self._combine(r, x, along, rest, gains)

    def _score(self, x: Tensor, variance: Tensor) -> Tensor:
        self._refuse_singular(variance)
        joint, along = self._joint(x, variance)
        return self._pull(joint.softmax(1), x, along, variance)

    def _pull(self, r: Tensor, x: Tensor, along: Tensor, variance: Tensor) -> Tensor:
        """-sum_k r_k (C_k + sigma^2 I)^-1 (x - m_k)."""
        return -self._combine(r, x, along, 1 / (self.rest + variance), 1 / (self.variances + variance[..., None]))

    def _log_prob(self, x: Tensor, variance: Tensor) -> Tensor:
        self._refuse_singular(variance)
        return self._joint(x, variance)[0].logsumexp(1)

    def _refuse_singular(self, variance: Tensor) -> None:
        if self.singular and not bool((variance > 0).all()):
            raise ValueError("a mixture with a singular covariance has no density at sigma = 0; give sigma > 0")

    def _jvp(self, x: Tensor, variance: Tensor, v: Tensor) -> Tensor:
        # J = sum_k r_k G_k + sigma^2 sum_k r_k (s_k - s)(s_k - s)^T, s_k the score of component k: nothing is divided
        # by a small sigma.
        known = variance == 0
        variance = torch.where(known, 1, variance)
        joint, along = self._joint(x, variance)
        r = joint.softmax(1)
        v_along = self._along(v)
        gains = self.variances / (self.variances + variance[..., None])
        rest = self.rest / (self.rest + variance)
        own = self._spread(r, v, v_along, rest, gains)
        slopes = self._slopes(x, along, variance, v, v_along)
        tilted = r * (slopes - (r * slopes).sum(1, keepdim=True))
        return torch.where(known, v, own + variance * self._pull(tilted, x, along, variance))

    def _slopes(self, x: Tensor, along: Tensor, variance: Tensor, v: Tensor, v_along: Tensor) -> Tensor:
        """<s_k, v> for the score s_k of each component, (B, K)."""
        slope, rest = 1 / (self.variances + variance[..., None]), self._rest(1 / (self.rest + variance))
        away = (x * v).sum(1, keepdim=True) - v @ self.offsets.mT
        return -(rest * away + ((slope - rest[..., None]) * along * v_along).sum(2))

    def _joint(self, x: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k + log N(x; m_k, C_k + sigma^2 I), (B, K), and Q_k (x - m_k), (B, K, q)."""
        n, q = self.offsets.shape[1], self.directions.shape[1]
        along = self._along(x) - self._means_along()
        total = self.variances + variance[..., None]
        squares, volume = (along.square() / total).sum(2), total.log().sum(2)
        if not self.full:
            rest = self.rest + variance
            beside = distances(x, self.offsets) - along.square().sum(2)
            squares, volume = squares + beside.clamp(min=0) / rest, volume + (n - q) * rest.log()
        return self.log_weights - 0.5 * (squares + volume + n * math.log(2 * math.pi)), along

    def _along(self, x: Tensor) -> Tensor:
        """Q_k x, (B, K or 1, q)."""
        return (x @ self.directions.flatten(0, 1).mT).unflatten(1, self.directions.shape[:2])

    def _means_along(self) -> Tensor:
        """Q_k m_k, (K, q)."""
        if len(self.directions) == 1:
            return self.offsets @ self.directions[0].mT
        return torch.einsum("kqn,kn->kq", self.directions, self.offsets)

    def _rest(self, factor: Tensor) -> Tensor:
        return torch.zeros_like(factor) if self.full else factor

    def _combine(self, r: Tensor, x: Tensor, along: Tensor, rest: Tensor, factors: Tensor) -> Tensor:
        """sum_k r_k M_k (x - m_k) for M_k = rest_k I + Q_k^T diag(factors_k - rest_k) Q_k."""
        rest = self._rest(rest)
        return self._spread(r, x, along, rest, factors) - (r * rest) @ self.offsets

    def _spread(self, r: Tensor, x: Tensor, along: Tensor, rest: Tensor, factors: Tensor) -> Tensor:
        """sum_k r_k M_k x with `along` in the place of Q_k x."""
        rest = self._rest(rest)
        return (r * rest).sum(1, keepdim=True) * x + self._back(r[..., None] * (factors - rest[..., None]) * along)

    def _back(self, along: Tensor) -> Tensor:
        """sum_k Q_k^T along_k, (B, K, q) -> (B, n)."""
        if len(self.directions) == 1:
            along = along.sum(1, keepdim=True)
        return along.flatten(1) @ self.directions.flatten(0, 1)


def distances(x: Tensor, points: Tensor) -> Tensor:
    """Squared distances in float64, (B, n) and (K, n) -> (B, K)."""
    return x.square().sum(1, keepdim=True) - 2 * x @ points.mT + points.square().sum(1)


def choose(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices drawn by weights (K,), on the device of the weights; the generator may be on another."""
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=weights.device)
    weighed = weights.to(generator.device)
    return torch.multinomial(weighed, count, replacement=True, generator=generator).to(weights.device)


def standard_normal(count: int, n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """(count, n) in the precision and on the device of `like`; the generator may be on another."""
    return torch.randn(count, n, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)


def checked_weights(weights: Tensor, means: Tensor) -> Tensor:
    """Logarithms of the weights. Raises ValueError unless they and the means, (K, C, H, W), describe a mixture."""
    if means.dim() != 4 or not len(means):
        raise ValueError(f"means of a mixture must be (K, C, H, W), got {tuple(means.shape)}")
    if not bool(means.isfinite().all()):
        raise ValueError("means of a mixture must be finite, got NaN or infinity")
    if weights.shape != means.shape[:1]:
        raise ValueError(f"weights of {len(means)} means must be ({len(means)},), got {tuple(weights.shape)}")
    total = float(weights.sum())
    if not bool((weights >= 0).all()) or not abs(total - 1) < 1e-3:
        raise ValueError(
            f"weights of a mixture must be >= 0 and sum to 1, got a minimum of {float(weights.min()):.3g} and a sum of "
            f"{total:.6g}"
        )
    return weights.double().log()
