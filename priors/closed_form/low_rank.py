"""Mixtures of probabilistic principal component analysers, with exact posteriors at image size.

Paper       Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, Neural Computation 11(2).
Model       sum_k w_k N(m_k, F_k F_k^T + s_k^2 I), F_k with few columns.
Cost        a denoiser call is two products of the images with all K r directions.
Posterior   component k is N(m_k, C_k) given U^T w = T x + n (`whitening.py`), where S_k = T C_k T^T + I is diagonal
            plus rank r: diag(1 + psi_k values) + F_k^T Lambda_k F_k, F_k = Q_k T^T. Woodbury: r x r systems only.
Form        not again a `LowRankMixturePrior`: along the measured directions C_k - C_k T^T S_k^-1 T C_k shrinks by as
            many different factors as there are measured numbers. The prior and the measurement are kept instead.
Draws       Matheron's rule: a draw x of the prior, moved by C_k T^T S_k^-1 (w - T x - n) with fresh noise n.
Noise       x_sigma is one more measurement, isotropic: it narrows C_k to psi' = psi sigma^2 / (psi + sigma^2), and
            likewise along Q_k, the same directions. So E[x0 | x_sigma, y] and its Jacobian are exact too.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from ..weights_file import interval, read_weights, write_weights
from .base import ClosedFormPrior, Problem
from .mixture import MixturePrior, checked_weights, choose, standard_normal
from .whitening import Decomposed, DenseTransform, decompose

KIND = "low_rank_mixture"

# Numbers held at a time.
CHUNK = 1 << 24


class LowRankMixturePrior(MixturePrior):
    """sum_k weights_k N(means_k, factors_k factors_k^T + noise_std_k^2 I).

    weights      (K,), >= 0, sum 1
    means        (K, C, H, W), image units
    factors      (K, n, r), n = C H W, pixels in the order of `means.flatten(1)`, r at most n
    noise_std    (K,), positive, image units
    value_range  range of clean images

    Raises ValueError if these do not fit together.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        factors: Tensor,
        noise_std: Tensor,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        log_weights = checked_weights(weights, means)
        count, n = len(means), means[0].numel()
        if factors.dim() != 3 or factors.shape[:2] != (count, n) or factors.shape[2] > n:
            raise ValueError(
                f"factors of {count} means of {n} values must be ({count}, {n}, r <= {n}), got {tuple(factors.shape)}"
            )
        if not bool(factors.isfinite().all()):
            raise ValueError("factors must be finite, got NaN or infinity")
        if noise_std.shape != (count,) or not bool((noise_std > 0).all() and noise_std.isfinite().all()):
            raise ValueError(f"noise_std must be {count} positive numbers, got {noise_std.tolist()}")
        # By QR and not by the Gram matrix: columns that depend on each other, or are zero, get a basis all the same.
        basis, triangle = torch.linalg.qr(factors.double())
        turn, singular, _ = torch.linalg.svd(triangle)
        noise = noise_std.double() ** 2
        directions = (basis @ turn).mT.contiguous()
        super().__init__(log_weights, means, directions, singular**2 + noise[:, None], noise)
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.unit = (self.value_range[1] - self.value_range[0]) / 2  # of pictures

    @property
    def factors(self) -> Tensor:
        """(K, n, r), with orthogonal columns, strongest first."""
        excess = (self.variances - self.rest[:, None]).clamp(min=0).sqrt()
        return (self.directions * excess[..., None]).mT.to(self.means.dtype)

    @property
    def noise_std(self) -> Tensor:
        """(K,)."""
        return self.rest.sqrt().to(self.means.dtype)

    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        self.check(problem)
        posterior = LowRankMixturePosterior(self, decompose(problem, self.offsets.device))
        return posterior, posterior.evidence

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write one `.safetensors` file, which `load` reads: units of the value range, means and factors in `dtype`."""
        header = {"kind": KIND, "shape": self.shape, "value_range": self.value_range}
        low, high = self.value_range
        tensors = {
            "weights": self.weights.float(),
            "means": ((self.means - low) / (high - low)).to(dtype),
            "factors": (self.factors / (high - low)).to(dtype),
            "noise_std": (self.noise_std / (high - low)).float(),
        }
        write_weights(path, header, tensors)

    def in_units(self, value_range: tuple[float, float]) -> "LowRankMixturePrior":
        """The same prior of images whose value range is mapped to another one."""
        zoom = (value_range[1] - value_range[0]) / (self.value_range[1] - self.value_range[0])
        means = value_range[0] + zoom * (self.means - self.value_range[0])
        return LowRankMixturePrior(
            self.weights, means, zoom * self.factors, zoom * self.noise_std, value_range=value_range
        )

    @classmethod
    def load(cls, path: str | Path) -> "LowRankMixturePrior":
        """Read a file written by `save`. Raises ValueError where it is missing, damaged or not of this kind."""
        header, tensors = read_weights(path, KIND)
        try:
            weights, means, factors, noise_std = (tensors[k] for k in ("weights", "means", "factors", "noise_std"))
            if tuple(means.shape[1:]) != tuple(header["shape"]):
                raise ValueError(f"means must have the shape {tuple(header['shape'])}, got {tuple(means.shape[1:])}")
            value_range = interval("value_range", header["value_range"])
            prior = cls(weights, means, factors, noise_std)
            prior = prior if value_range == prior.value_range else prior.in_units(value_range)
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"prior weights do not fit their header: {path}: {str(error).splitlines()[0]}") from error
        return prior.eval()

    @classmethod
    def example(cls) -> "LowRankMixturePrior":
        return _example()


def _example() -> LowRankMixturePrior:
    generator = torch.Generator().manual_seed(0)
    wave = torch.linspace(0, 3.14, 16)
    patterns = torch.stack([torch.outer((i * wave).cos(), (j * wave).cos()) for i in range(1, 4) for j in range(4)])
    means = 0.5 + 0.1 * patterns[:3, None]
    factors = 0.02 * torch.randn(3, 4, 12, generator=generator) @ patterns.flatten(1)
    return LowRankMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, factors.mT, torch.tensor([0.03, 0.05, 0.04]))


class LowRankMixturePosterior(ClosedFormPrior):
    """p(x | y) under a `LowRankMixturePrior`; made by its `posterior`.

    evidence  log p(y), with all constants
    """

    evidence: Tensor
    log_weights: Tensor
    seen_centre: Tensor
    seen_means: Tensor
    seen_directions: Tensor
    solved: Tensor

    def __init__(self, prior: MixturePrior, measurement: Decomposed) -> None:
        super().__init__()
        self.prior, self.measurement = prior, measurement
        self.shape, self.channels = prior.shape, prior.channels
        self.sigma_range, self.value_range, self.unit = prior.sigma_range, prior.value_range, prior.unit
        self._std: Tensor | None = None
        with torch.no_grad():
            flat = prior.directions.flatten(0, 1)
            self.register_buffer("seen_centre", measurement(prior.middle[None])[0])
            self.register_buffer("seen_means", measurement(prior.offsets))
            self.register_buffer("seen_directions", measurement(flat).unflatten(0, prior.directions.shape[:2]))
            solver = self._solver()
            residuals = measurement.data - self.seen_centre - self.seen_means
            self.register_buffer("solved", solver.solve(residuals[None])[0])  # S_k^-1 (U^T w - T m_k), (K, p)
            joint = prior.log_weights - 0.5 * ((residuals * self.solved).sum(1) + solver.volume)
            self.register_buffer("log_weights", joint.log_softmax(0))
            self.register_buffer("evidence", joint.logsumexp(0) - 0.5 * measurement.outside + measurement.constant)

    def _solver(self) -> "Solver":
        return Solver(self.measurement.values, self.seen_directions, self.prior.rest, self._excess())

    def _excess(self) -> Tensor:
        """Variances along the directions minus the rest, (K, r)."""
        return (self.prior.variances - self.prior.rest[:, None]).clamp(min=0)

    @property
    def weights(self) -> Tensor:
        """Responsibilities of the components for y, (K,)."""
        return self.log_weights.exp()

    # -- moments and draws ---------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        return self.prior._image(self.prior.middle + self.weights @ self._means())

    def _means(self) -> Tensor:
        """Posterior means of the components, relative to the centre of the prior, (K, n)."""
        prior = self.prior
        along = self._excess() * torch.einsum("krp,kp->kr", self.seen_directions, self.solved)
        isotropic = prior.rest[:, None] * self.measurement.backward(self.solved)
        return prior.offsets + isotropic + torch.einsum("kr,krn->kn", along, prior.directions)

    @property
    def std(self) -> Tensor:
        """The first access takes seconds at image size: every component has its own variances."""
        if self._std is None:
            with torch.no_grad():
                means, own = self._means(), self._variances()
                away = means - self.weights @ means
                self._std = self.prior._image((self.weights @ (own + away.square())).clamp(min=0).sqrt())
        return self._std

    def _variances(self) -> Tensor:
        """Diagonals of the components' posterior covariances, (K, n); zero where the weight is zero."""
        prior, measurement, solver = self.prior, self.measurement, self._solver()
        values, n = measurement.values, prior.offsets.shape[1]
        squares = torch.zeros_like(prior.offsets)  # sum_p T_pi^2 / (1 + psi_k values_p), some rows of T at a time
        step = max(1, CHUNK // n)
        for index in torch.arange(len(values), device=values.device).split(step) if len(values) else ():
            squares += solver.inverse[:, index] @ measurement.rows(index).square()
        found = torch.zeros_like(prior.offsets)
        shrunk = self.seen_directions * solver.inverse[:, None]
        crosses = measurement.backward(shrunk.flatten(0, 1)).unflatten(0, shrunk.shape[:2])
        for k in self.log_weights.isfinite().nonzero()[:, 0].tolist():
            psi, excess = prior.rest[k], self._excess()[k, :, None]
            spread = excess * prior.directions[k]
            gram, cross = shrunk[k] @ self.seen_directions[k].mT, crosses[k]
            # S_k^-1 is its diagonal part less one of rank r; both act on T C_k.
            diagonal = psi**2 * squares[k] + (spread * (2 * psi * cross + gram @ spread)).sum(0)
            inner = excess.sqrt() * (psi * cross + gram @ spread)
            low_rank = torch.linalg.solve_triangular(solver.inner[k], inner, upper=False).square().sum(0)
            found[k] = psi + (spread * prior.directions[k]).sum(0) - diagonal + low_rank
        return found

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        prior, measurement, solver = self.prior, self.measurement, self._solver()
        chosen = choose(self.weights, count, generator)
        x = prior._draw(chosen, generator)
        noise = standard_normal(count, len(measurement.values), x, generator)
        missing = measurement.data - self.seen_centre - measurement(x) - noise
        rest, along = torch.empty_like(missing), torch.empty_like(x)
        for k in chosen.unique().tolist():
            rows = chosen == k
            solved = solver.solve(missing[rows][:, None], slice(k, k + 1))[:, 0]
            rest[rows] = prior.rest[k] * solved
            along[rows] = (solved @ self.seen_directions[k].mT * self._excess()[k]) @ prior.directions[k]
        return prior._image(prior.middle + x + measurement.backward(rest) + along)

    # -- with noise ----------------------------------------------------------------------------------------------------

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x_sigma = x, y]."""
        return self._rows(self._denoise, x, sigma)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        # Not from the denoiser: D - x loses its digits where sigma is small.
        return self._rows(self._score, x, sigma)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Log-density of x_sigma given y, (B,)."""
        return self._rows(self._log_prob, x, sigma)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        return self._rows(self._jvp, x, sigma, v)

    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        raise ValueError("a posterior cannot take a second measurement; stack the operators and condition the prior")

    def _rows(self, function: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, *more: Tensor) -> Tensor:
        """A function of rows with one noise variance, (B, n) relative to the centre: level by level."""
        with self.exactly(x, sigma, *more):
            work = torch.promote_types(x.dtype, self.prior.offsets.dtype)
            flat = [x.flatten(1).to(work) - self.prior.middle, *(m.flatten(1).to(work) for m in more)]
            variance = (sigma_per_row(sigma, flat[0]) ** 2).expand(len(x), 1)[:, 0]
            rows = max(1, CHUNK // (self.prior.components * max(1, len(self.measurement.values))))
            parts, places = [], []
            for level in variance.unique() if len(x) else variance.new_ones(1):
                solver = Narrowed(self, level)
                for place in (variance == level).nonzero()[:, 0].split(rows):
                    parts.append(function(solver, *(f[place] for f in flat)))
                    places.append(place)
            found = torch.cat(parts)[torch.cat(places).argsort()]
            return (found.reshape(x.shape) if found.dim() == 2 else found).to(x.dtype)

    def _denoise(self, level: "Narrowed", x: Tensor) -> Tensor:
        joint, along, solved = level.condition(x)
        r = joint.softmax(1)
        moved = level.variance * level.spread(r, solved)
        return self.prior.middle + self.prior._gain(r, x, along, level.variance) + moved

    def _score(self, level: "Narrowed", x: Tensor) -> Tensor:
        joint, along, solved = level.condition(x)
        r = joint.softmax(1)
        return self.prior._pull(r, x, along, level.variance) + level.spread(r, solved)

    def _log_prob(self, level: "Narrowed", x: Tensor) -> Tensor:
        # p(x | y) = p(x) p(y | x) / p(y); factors that do not depend on x cancel in the quotient.
        joint, _, _ = level.condition(x)
        measured = self.evidence + 0.5 * self.measurement.outside - self.measurement.constant
        return joint.logsumexp(1) - measured

    def _jvp(self, level: "Narrowed", x: Tensor, v: Tensor) -> Tensor:
        # As for the prior, in units of sigma^2 throughout: nothing is divided by a small sigma.
        prior, variance = self.prior, level.variance
        if variance == 0:
            return v
        joint, along, solved = level.condition(x)
        r, v_along = joint.softmax(1), prior._along(v)
        # T C' v / sigma^2 of every component, (B, K, p).
        seen = level.rest[:, None] * self.measurement(v)[:, None] + torch.einsum(
            "bkr,krp->bkp", level.excess * v_along, self.seen_directions
        )
        own = prior._spread(r, v, v_along, level.rest, level.rest[:, None] + level.excess)
        own = own - level.spread(r, level.solver.solve(variance * seen))
        slopes = prior._slopes(x, along, variance, v, v_along) + (seen * solved).sum(2)
        tilted = r * (slopes - (r * slopes).sum(1, keepdim=True))
        return own + variance * (prior._pull(tilted, x, along, variance) + level.spread(tilted, solved))

    @classmethod
    def example(cls) -> "LowRankMixturePosterior":
        """Every other row of an image is measured."""
        n = 16 * 16
        seen = torch.arange(0, n, 32)
        matrix = torch.zeros(len(seen), n, dtype=torch.float64)
        matrix[torch.arange(len(seen)), seen] = 1
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        transform = DenseTransform(matrix, matrix.sum(1))
        return cls(LowRankMixturePrior.example(), Decomposed(transform, 10 * one, 5 * matrix.sum(1), zero, zero))


class Solver:
    """S_k^-1 and log det S_k for S_k = diag(1 + rest_k values) + F_k^T diag(excess_k) F_k, all components at once.

    values      (p,)
    directions  F, (K, r, p)
    rest        (K,)
    excess      (K, r), >= 0
    """

    def __init__(self, values: Tensor, directions: Tensor, rest: Tensor, excess: Tensor) -> None:
        self.inverse = 1 / (1 + rest[:, None] * values)
        self.factors = excess.sqrt()[..., None] * directions
        identity = torch.eye(directions.shape[1], dtype=directions.dtype, device=directions.device)
        self.inner = torch.linalg.cholesky(identity + (self.factors * self.inverse[:, None]) @ self.factors.mT)
        log_inner = self.inner.diagonal(dim1=1, dim2=2).log().sum(1)
        self.volume = 2 * log_inner - self.inverse.log().sum(1)  # log det S_k, (K,)

    def solve(self, e: Tensor, chosen: slice = slice(None)) -> Tensor:
        """S_k^-1 e_k for the chosen components, all by default, (B, K, p) -> (B, K, p)."""
        inverse, factors = self.inverse[chosen], self.factors[chosen]
        e = inverse * e
        inner = torch.cholesky_solve(torch.einsum("krp,bkp->krb", factors, e), self.inner[chosen])
        return e - inverse * torch.einsum("krp,krb->bkp", factors, inner)


class Narrowed:
    """The components given x_sigma and y, at one noise level.

    variance      sigma^2, a scalar
    rest, excess  of C_k (C_k + sigma^2 I)^-1, the covariances given x_sigma alone in units of sigma^2, (K,) and (K, r)
    """

    def __init__(self, posterior: LowRankMixturePosterior, variance: Tensor) -> None:
        prior = posterior.prior
        self.posterior, self.variance = posterior, variance
        self.rest = prior.rest / (prior.rest + variance)
        self.excess = posterior._excess() * variance / (prior.variances + variance) / (prior.rest + variance)[:, None]
        self.solver = Solver(
            posterior.measurement.values, posterior.seen_directions, variance * self.rest, variance * self.excess
        )

    def condition(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For rows (B, n): log w_k p_k(x) p_k(y | x) up to a constant in x and k, (B, K); Q_k (x - m_k);
        S_k^-1 (U^T w - T a_k) with a_k the denoised image of component k, (B, K, p).
        """
        posterior, prior = self.posterior, self.posterior.prior
        joint, along = prior._joint(x, self.variance.expand(len(x), 1))
        means = posterior.seen_means
        away = posterior.measurement(x)[:, None] - means
        moved = torch.einsum("bkr,krp->bkp", self.excess * along, posterior.seen_directions)
        residual = posterior.measurement.data - posterior.seen_centre - means - self.rest[:, None] * away - moved
        solved = self.solver.solve(residual)
        return joint - 0.5 * ((residual * solved).sum(2) + self.solver.volume), along, solved

    def spread(self, r: Tensor, solved: Tensor) -> Tensor:
        """sum_k r_k C'_k T^T u_k / sigma^2, for (B, K) and (B, K, p)."""
        posterior = self.posterior
        isotropic = torch.einsum("bk,bkp->bp", r * self.rest, solved)
        seen = torch.einsum("krp,bkp->bkr", posterior.seen_directions, solved)
        along = posterior.prior._back(r[..., None] * self.excess * seen)
        return posterior.measurement.backward(isotropic) + along
