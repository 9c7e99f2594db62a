"""Schedules of networks: the scale of the input and the time value at a noise level, and the clean image of the output.

A network was trained on x_t = alpha_t x0 + s_t eps. In the variance-exploding convention that is x_t = alpha_t x_sigma
with sigma = s_t / alpha_t, so a time is identified by its sigma. Every class maps sigma to the scale alpha and to the
time t that the network takes as input, and turns the output F of the network into the clean image (`denoised`). Scale
and formula use the true sigma at any level; the time is that of the nearest level in `sigma_range`, the levels of the
training. All levels are in the units of the network's own images.

Papers  DDPM, arXiv:2006.11239 (`DiscreteTime.linear`); improved DDPM, arXiv:2102.09672 (`cosine`); latent diffusion,
        arXiv:2112.10752 (`scaled_linear`); score SDEs, arXiv:2011.13456 (`VPTime`, `VETime`); progressive distillation,
        arXiv:2202.00512 (`v`); rectified flow, arXiv:2209.03003, and flow matching, arXiv:2210.02747 (`FlowTime`); EDM,
        arXiv:2206.00364 (`EDMTime`); consistency models, arXiv:2303.01469 (`consistency`); Bayesian flow networks,
        arXiv:2308.07037, equations 72 and 80 (`BayesianFlowTime`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

Rule = Literal["interpolate", "nearest"]
Parametrisation = Literal["epsilon", "x0", "v", "score", "flow", "edm", "consistency"]


class NetworkTime(ABC):
    """Base class.

    sigma_range       levels s_t / alpha_t of the training, lowest first
    parametrisations  outputs that `denoised` can interpret
    """

    sigma_range: tuple[float, float]
    parametrisations: ClassVar[tuple[Parametrisation, ...]] = ("epsilon", "x0", "score")

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """alpha of the true level, shape of `sigma`."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """Time input of the network at levels inside `sigma_range`, shape of `sigma`."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, t) at the levels `sigma` (B,); outside `sigma_range` t is that of the nearest level inside."""
        return self.scale(sigma), self.time(sigma.clamp(*self.sigma_range))

    def denoised(self, parametrisation: str, z: Tensor, out: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        """The clean image z0 of the noisy image z = x_t / alpha and the output F of the network at x_t, (B, ...).

        parametrisation  one of `parametrisations`
        alpha, s         scale and noise level, broadcastable to z
        """
        if parametrisation == "epsilon":
            return z - s * out
        if parametrisation == "score":
            # x_t has the noise alpha s and the mean alpha z0: Tweedie gives alpha z0 = x_t + (alpha s)^2 F.
            return z + alpha * s**2 * out
        return out


class VariancePreserving(NetworkTime):
    """alpha^2 + s_t^2 = 1."""

    parametrisations: ClassVar[tuple[Parametrisation, ...]] = ("epsilon", "x0", "v", "score")

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def denoised(self, parametrisation: str, z: Tensor, out: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        if parametrisation == "v":
            # v = alpha eps - (alpha s) z0 and alpha^2 (1 + s^2) = 1.
            return alpha**2 * z - alpha * s * out
        return super().denoised(parametrisation, z, out, alpha, s)


@dataclass(frozen=True)
class DiscreteTime(VariancePreserving):
    """Time steps 0 ... T-1 of a variance-preserving chain, x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) eps.

    alphas_cumprod  abar_k, decreasing, in (0, 1); a last step of pure noise, abar = 0, has no finite sigma and no level
    rule            between two steps: "interpolate" gives a fractional step, linear in ln sigma; "nearest" the integer
                    step whose sigma is closest
    """

    alphas_cumprod: tuple[float, ...]
    rule: Rule = "interpolate"

    def __post_init__(self) -> None:
        if self.rule not in ("interpolate", "nearest"):
            raise ValueError(f"rule must be 'interpolate' or 'nearest', got {self.rule!r}")
        abar = self._with_finite_levels()
        if len(abar) < 2 or not all(1 > a > b > 0 for a, b in pairwise(abar)):
            raise ValueError("alphas_cumprod must hold at least two values that decrease strictly between 1 and 0")

    def _with_finite_levels(self) -> tuple[float, ...]:
        """abar_k without a last step of pure noise."""
        abar = tuple(self.alphas_cumprod)
        return abar[:-1] if abar[-1:] == (0,) else abar

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self.levels[0]), float(self.levels[-1])

    @cached_property
    def levels(self) -> Tensor:
        """sigma_k = sqrt((1 - abar_k) / abar_k), float64, (T,)."""
        abar = torch.tensor(self._with_finite_levels(), dtype=torch.float64)
        return ((1 - abar) / abar).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        # Neighbouring levels differ by less than float32 resolves after a logarithm; MPS has no float64.
        wide = torch.float32 if sigma.device.type == "mps" else torch.float64
        levels, wanted = self.levels.to(sigma.device, wide), sigma.to(wide)
        upper = torch.searchsorted(levels, wanted.contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[upper - 1], levels[upper]
        if self.rule == "nearest":
            return torch.where(wanted - low <= high - wanted, upper - 1, upper)
        step = (wanted / low).log() / (high / low).log()
        return (upper - 1 + step.clamp(0, 1)).to(sigma.dtype)

    @classmethod
    def of_betas(cls, betas: Sequence[float], rule: Rule = "interpolate") -> "DiscreteTime":
        """From the beta_k of the chain: abar_k is the product of 1 - beta_j up to k."""
        return cls(tuple((1 - torch.tensor(list(betas), dtype=torch.float64)).cumprod(0).tolist()), rule)

    @classmethod
    def linear(
        cls,
        steps: int = 1000,
        first: float | None = None,
        last: float | None = None,
        rule: Rule = "interpolate",
    ) -> "DiscreteTime":
        """beta rises linearly, by default from 0.1 / T to 20 / T (1e-4 to 0.02 at T = 1000)."""
        first, last = 0.1 / steps if first is None else first, 20 / steps if last is None else last
        return cls.of_betas(torch.linspace(first, last, steps, dtype=torch.float64).tolist(), rule)

    @classmethod
    def scaled_linear(
        cls,
        steps: int = 1000,
        first: float = 0.00085,
        last: float = 0.012,
        rule: Rule = "interpolate",
    ) -> "DiscreteTime":
        """sqrt(beta) rises linearly (latent diffusion)."""
        roots = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64)
        return cls.of_betas((roots**2).tolist(), rule)

    @classmethod
    def cosine(cls, steps: int = 1000, rule: Rule = "interpolate") -> "DiscreteTime":
        """abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), u = k / T, with beta at most 0.999."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return cls.of_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999).tolist(), rule)


@dataclass(frozen=True)
class CosineTime(VariancePreserving):
    """x_t = cos(t pi / 2) x0 + sin(t pi / 2) eps (v-diffusion).

    time_input  "t" in [0, 1], or "log_snr", ln(alpha^2 / s_t^2)
    """

    sigma_min: float = 1e-3
    sigma_max: float = 1e3
    time_input: Literal["t", "log_snr"] = "t"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")
        if self.time_input not in ("t", "log_snr"):
            raise ValueError(f"time_input must be 't' or 'log_snr', got {self.time_input!r}")

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.sigma_min, self.sigma_max

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.atan() * 2 / math.pi if self.time_input == "t" else -2 * sigma.log()


@dataclass(frozen=True)
class BayesianFlowTime(NetworkTime):
    """Bayesian flow networks of continuous data: x_t = g x0 + sqrt(g (1 - g)) eps with g = 1 - sigma_1^(2 t).

    The network takes the belief x_t and t in [t_min, 1], and predicts eps ("epsilon") or the clean image ("x0").
    """

    sigma_1: float = 0.02
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.sigma_1 < 1 and 0 < self.t_min < 1):
            raise ValueError(f"sigma_1 and t_min must lie between 0 and 1, got {self.sigma_1} and {self.t_min}")

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        low, high = (1 / math.sqrt(self.sigma_1 ** (-2 * t) - 1) for t in (1.0, self.t_min))
        return low, high

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma**2)

    def time(self, sigma: Tensor) -> Tensor:
        return -(sigma**-2).log1p() / (2 * math.log(self.sigma_1))


@dataclass(frozen=True)
class VPTime(VariancePreserving):
    """The continuous variance-preserving process: beta(t) = beta_min + t (beta_max - beta_min), t in [t_min, 1].

    time_scale  the input of the network is time_scale * t
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    time_scale: float = 999.0

    def __post_init__(self) -> None:
        if not (0 < self.beta_min < self.beta_max and 0 < self.t_min < 1):
            raise ValueError(
                f"0 < beta_min < beta_max and 0 < t_min < 1 must hold, got beta_min={self.beta_min}, "
                f"beta_max={self.beta_max}, t_min={self.t_min}"
            )

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        low, high = (
            math.sqrt(math.expm1(0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t))
            for t in (self.t_min, 1.0)
        )
        return low, high

    def time(self, sigma: Tensor) -> Tensor:
        # -2 ln alpha = rise t^2 / 2 + beta_min t, solved for t in the form that loses no digits near 0.
        total, rise = self._decay(sigma), self.beta_max - self.beta_min
        t = 2 * total / (self.beta_min + (self.beta_min**2 + 2 * rise * total).sqrt())
        return self.time_scale * t

    def _decay(self, sigma: Tensor) -> Tensor:
        """-2 ln alpha."""
        return (sigma**2).log1p()


@dataclass(frozen=True)
class SubVPTime(VPTime):
    """The sub-VP process: alpha_t of the VP process with less noise, s_t = 1 - alpha_t^2."""

    parametrisations: ClassVar[tuple[Parametrisation, ...]] = ("epsilon", "x0", "score")  # no `v`: no unit variance

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        low, high = (sigma**2 / math.sqrt(1 + sigma**2) for sigma in super().sigma_range)
        return low, high

    def scale(self, sigma: Tensor) -> Tensor:
        return (-self._decay(sigma) / 2).exp()

    def _decay(self, sigma: Tensor) -> Tensor:
        return 2 * (sigma / 2).asinh()  # sigma = 1 / alpha - alpha = 2 sinh(-ln alpha)


@dataclass(frozen=True)
class VETime(NetworkTime):
    """The variance-exploding process: the network takes x_sigma unscaled.

    time_input  what the network takes as time: "sigma", "log" (ln sigma), "t" in [0, 1], linear in ln sigma from
                sigma_min to sigma_max, or "step" from 0 at sigma_max to steps - 1 at sigma_min
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    time_input: Literal["sigma", "log", "t", "step"] = "sigma"
    steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")
        if self.time_input not in ("sigma", "log", "t", "step"):
            raise ValueError(f"time_input must be 'sigma', 'log', 't' or 'step', got {self.time_input!r}")

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.sigma_min, self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        if self.time_input == "sigma":
            return sigma
        if self.time_input == "log":
            return sigma.log()
        t = (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)
        return t if self.time_input == "t" else (self.steps - 1) * (1 - t)


@dataclass(frozen=True)
class FlowTime(NetworkTime):
    """The straight path between image and noise.

    data_at     the t of the image: 0 where x_t = (1 - t) x0 + t eps (Stable Diffusion 3), 1 where x_t = t x0 +
                (1 - t) eps (rectified flow, flow matching). It sets the sign of the velocity dx_t / dt
    margin      t of the training lies in [margin, 1 - margin]
    time_scale  the input of the network is time_scale * t
    noise       standard deviation of eps
    """

    data_at: Literal[0, 1] = 0
    margin: float = 1e-3
    time_scale: float = 1.0
    noise: float = 1.0
    parametrisations = ("epsilon", "x0", "score", "flow")

    def __post_init__(self) -> None:
        if self.data_at not in (0, 1):
            raise ValueError(f"data_at, the t of the image, must be 0 or 1, got {self.data_at!r}")
        if not 0 < self.margin < 0.5:
            raise ValueError(f"margin must lie between 0 and 0.5, got {self.margin}")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {self.noise}")

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        share = self.margin / (1 - self.margin)
        return self.noise * share, self.noise / share

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma / self.noise)

    def time(self, sigma: Tensor) -> Tensor:
        ratio = sigma / self.noise
        return self.time_scale * (ratio / (1 + ratio) if self.data_at == 0 else 1 / (1 + ratio))

    def denoised(self, parametrisation: str, z: Tensor, out: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        if parametrisation == "flow":
            # alpha = 1 - tau and alpha s = tau at the distance tau from the image; the velocity away from it is
            # eps - z0; in units of the noise, s = tau / (1 - tau).
            away = out if self.data_at == 0 else -out
            return alpha * (z - s / self.noise * away)
        return super().denoised(parametrisation, z, out, alpha, s)


@dataclass(frozen=True)
class EDMTime(NetworkTime):
    """EDM's preconditioning: the network takes x_sigma at unit variance and time_scale ln(sigma) / 4."""

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    time_scale: float = 1.0
    parametrisations = ("epsilon", "x0", "score", "edm", "consistency")

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0 and 0 < self.sigma_min < self.sigma_max < math.inf):
            raise ValueError(
                f"sigma_data > 0 and 0 < sigma_min < sigma_max must hold, got sigma_data={self.sigma_data}, "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.sigma_min, self.sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self.time_scale * sigma.log() / 4

    def denoised(self, parametrisation: str, z: Tensor, out: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        if parametrisation == "edm":
            # alpha = c_in; c_skip = (sigma_data c_in)^2 and c_out = s sigma_data c_in.
            return (self.sigma_data * alpha) ** 2 * z + s * self.sigma_data * alpha * out
        if parametrisation == "consistency":
            # The same with D = z at sigma_min, where the flow ends; below it the image stays.
            above = (s - self.sigma_min).clamp(min=0)
            skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
            return skip * z + above * self.sigma_data * alpha * out
        return super().denoised(parametrisation, z, out, alpha, s)
