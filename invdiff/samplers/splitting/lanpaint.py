"""LanPaint: inpainting by Langevin dynamics of known and unknown pixels together, at every noise level.

Paper       Zheng et al., LanPaint: Training-Free Diffusion Inpainting with Asymptotically Exact and Fast Conditional
            Sampling, TMLR 2025, arXiv:2502.03491: bidirectional guided score (BiG) and fast Langevin dynamics.
Target      p(x | y), as levels and inner steps grow: at every level known pixels k are held about y with the noise of
            that level, unknown ones u follow the score p_s(x_u | x_k), and as s falls to 0 both become p(x_u | y). The
            law of a level itself is only near N(x_k; y, s^2) p_s(x_u | x_k): with lam = 0 known pixels feel nothing of
            the unknown ones; with lam > 0 they are pushed away from what the network makes of them, so that they give
            way to the unknown ones, and all settle in fewer steps.
Needs       an inpainting operator; Gaussian noise with `known="noisy"`. No network VJP.
Cost        per step and sample: 1 + `inner_steps` forwards.
Coordinates the dynamics in units of s^2: dx = (c - a x) dt + s sqrt(2) dW, with a = 1, c = D(x) for unknown pixels and
            a = 1 + lam, c = (1 + lam) y - lam (D(x) - x) for known ones. It is solved exactly for constant c; from the
            second inner step on c is replaced halfway. `friction` g makes of it a damped oscillator with the damping
            5 g^2, the authors' form of that number.
Departures  clocks that differ between known and unknown pixels and the guidance scales of text are left out. Ours is
            `known="noisy"`, where the paper's y has no noise: y then is the known pixels at the level sigma_y of its
            noise. Above it they are held about y with variance s^2 - sigma_y^2; one level of each row is moved to
            sigma_y; below it they are denoised with the rest, and the dynamics of a level have the very law
            p_s(x) N(y; x_k, sigma_y^2 - s^2), that of all pixels given y.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.operators import GaussianNoise
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import ddim_step
from invdiff.schedules import EDM, Schedule
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class LanPaint(Sampler):
    """At every noise level put the measured pixels back, let all pixels settle together, and step down.

    The defaults are invdiff's own; `LanPaint.published()` has the authors' suggestions, in image units.

    schedule     noise levels
    inner_steps  steps of the dynamics at each level; published 5, for hard cases 10
    step_size    length of each, in units of the squared noise level; published 0.2
    lam          strength of the bidirectional guidance; published 5. 0: known pixels feel nothing of the unknown ones
    friction     of the dynamics with a velocity; published 15. None: without one, as in the authors' present code
    eta          noise of the step to the next level: 1 is the ancestral step, 0 follows the flow (published). Below the
                 noise of y only 1 draws known pixels anew, as it must be
    known        `noisy`: y has the noise that the problem says, where that is above the last level. `exact`: y is taken
                 for the pixels themselves, noise and all (published)
    """

    schedule: Schedule = EDM(steps=20, sigma_max=5.0, sigma_min=0.01)
    inner_steps: int = 4
    step_size: float = 0.5
    lam: float = 5.0
    friction: float | None = None
    eta: float = 1.0
    known: Literal["noisy", "exact"] = "noisy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_steps < 0 or not self.lam >= 0:
            raise ValueError(
                f"lanpaint: inner_steps and lam must not be negative, got {self.inner_steps} and {self.lam}"
            )
        for name in ("step_size", "friction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"lanpaint: {name} must be positive and finite, got {value}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"lanpaint: eta must lie in [0, 1], got {self.eta}")
        if self.known not in ("noisy", "exact"):
            raise ValueError(f"lanpaint: known must be noisy or exact, got {self.known!r}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(mask=True, gaussian_noise=self.known == "noisy")

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * (1 + self.inner_steps))

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=EDM(steps=6, sigma_max=5.0, sigma_min=0.02), inner_steps=2, lam=1.0)

    @classmethod
    def published(cls) -> Self:
        """The authors' defaults, in image units: 180 network calls."""
        return cls(schedule=EDM(steps=30), inner_steps=5, step_size=0.2, friction=15.0, eta=0.0, known="exact")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        nominal = self.schedule.sigmas().tolist()
        noise = rng.normal()  # of the known pixels, one and the same at every level
        known = Known.of(problem, noise, None if self.known == "exact" else nominal)
        sigmas = known.levels(nominal)
        x = known.put_back(sigmas[0] * rng.normal(), sigmas[0], noise)
        for (sigma, after), level in zip(pairwise(sigmas), nominal[1:], strict=True):
            x = self._settle(prior, x, sigma, known, rng)
            x0 = prior.denoise(x, sigma.flatten())
            x = known.put_back(ddim_step(x, x0, sigma, after, self.eta, rng.normal()), after, noise)
            yield Step(x, x0, level)

    def _settle(self, prior: Prior, x: Tensor, sigma: Tensor, known: "Known", rng: Streams) -> Tensor:
        """The inner steps: Langevin dynamics at one noise level, in units of its variance."""
        noise = sigma**2 - known.level**2  # of a held pixel about y; below the noise of y minus that of y about it
        held, freed = known.mask & (noise > 0), known.mask & (noise < 0)
        to_y = torch.where(held, (1 + self.lam) * sigma**2 / noise, torch.where(freed, -(sigma**2) / noise, 0))
        pull = torch.where(held, to_y, 1 + to_y)  # a
        time = torch.where(known.mask & (noise == 0), 0, torch.full_like(pull, self.step_size))  # there it is y
        full, half = (Relaxation.of(pull, t, sigma, self.friction) for t in (time, time / 2))

        def force(x: Tensor) -> Tensor:
            x0 = prior.denoise(x, sigma.flatten())
            return to_y * known.y + torch.where(held, -self.lam * (x0 - x), x0)  # c

        c, velocity = None, None if self.friction is None else sigma * rng.normal()
        for _ in range(self.inner_steps):
            if c is None:
                c = force(x)
                x, velocity = full(x, velocity, c, rng)
                continue
            x, velocity = half(x, velocity, c, rng)
            fresh = force(x)
            if velocity is None:
                x = x + (fresh - c) * time
            else:
                velocity = velocity + full.gamma**0.5 * (fresh - c) * time
            x, velocity = half(x, velocity, c, rng)
            c = fresh
        return x


@dataclass(frozen=True)
class Relaxation:
    """An exact step of dx = (c - a x) dt + s sqrt(2) dW, or of the oscillator dx = sqrt(G) v dt,
    dv = sqrt(G) (c - a x) dt - G v dt + s sqrt(2 G) dW, whose limit of large G it is.

    pull    a, shaped to multiply x
    gamma   G; 0 without a velocity
    turn    what is left of x - c / a and of v after the step: x of x, x of v, v of x, v of v
    spread  lower triangle of the square root of the covariance of what is added: xx, vx, vv
    """

    pull: Tensor
    gamma: float
    turn: tuple[Tensor, ...]
    spread: tuple[Tensor, ...]

    @classmethod
    def of(cls, pull: Tensor, time: Tensor, sigma: Tensor, friction: float | None) -> Self:
        if friction is None:
            spread = sigma * (-torch.expm1(-2 * pull * time) / pull) ** 0.5
            return cls(pull, 0.0, (torch.exp(-pull * time),), (spread,))
        gamma, (a, t) = 5 * friction**2, (pull.double(), time.double())
        # exp(t M) for M = ((0, sqrt G), (-a sqrt G, -G)), whose eigenvalues are -G/2 +- w, w real or imaginary
        w = torch.complex(gamma**2 / 4 - gamma * a, torch.zeros_like(a)).sqrt()
        w = torch.where(w == 0, 1e-6 * gamma, w)
        slow, fast = (-gamma * a * t / (w + gamma / 2)).exp(), (-(w + gamma / 2) * t).exp()
        even, odd = ((slow + fast) / 2).real, ((slow - fast) / (2 * w)).real
        xx, xv = even + gamma / 2 * odd, gamma**0.5 * odd
        vx, vv = -a * xv, even - gamma / 2 * odd
        # Of the law at rest, diag(1 / a, 1), what is not left over is added.
        var_x = ((1 - xx**2) / a - xv**2).clamp(min=0)
        var_v = (1 - vx**2 / a - vv**2).clamp(min=0)
        both = -(xx * vx / a + xv * vv)
        std_x = var_x**0.5
        along = torch.where(std_x > 0, both / std_x, 0)
        std_v = (var_v - along**2).clamp(min=0) ** 0.5
        turn, lower = (xx, xv, vx, vv), (std_x, along, std_v)
        return cls(pull, gamma, tuple(e.to(pull) for e in turn), tuple(sigma * e.to(pull) for e in lower))

    def __call__(self, x: Tensor, v: Tensor | None, c: Tensor, rng: Streams) -> tuple[Tensor, Tensor | None]:
        rest = c / self.pull
        if v is None:
            return rest + self.turn[0] * (x - rest) + self.spread[0] * rng.normal(), None
        (xx, xv, vx, vv), (std_x, along, std_v), n = self.turn, self.spread, rng.normal()
        moved = rest + xx * (x - rest) + xv * v + std_x * n
        return moved, vx * (x - rest) + vv * v + along * n + std_v * rng.normal()


@dataclass(frozen=True)
class Known:
    """What was measured.

    mask   (1 or R, 1, H, W) bool
    y      (R, C, H, W), 0 where nothing was measured
    level  (R, 1, 1, 1) standard deviation of its noise, 0 where y counts as exact
    """

    mask: Tensor
    y: Tensor
    level: Tensor

    @classmethod
    def of(cls, problem: InverseProblem, like: Tensor, nominal: list[float] | None) -> Self:
        """nominal  levels that will be walked; None: y is exact. Raises ValueError for a y noisier than the first."""
        mask = problem.observed
        assert mask is not None  # an inpainting operator always says what it measured
        level = like.new_zeros(len(like), 1, 1, 1)
        if nominal is not None:
            assert isinstance(problem.noise, GaussianNoise)  # `needs` made sure
            level = level + problem.noise.sigma.to(like).reshape(-1, 1, 1, 1)
            if not (level < nominal[0]).all():
                raise ValueError(
                    f"lanpaint: the noise of y, {float(level.max()):.3g}, is not below the first noise level, "
                    f"{nominal[0]:.3g}: raise schedule.sigma_max"
                )
            level = level.where(level >= nominal[-2], 0)
        return cls(mask, problem.residual(torch.zeros_like(like)).to(like), level)

    def levels(self, nominal: list[float]) -> list[Tensor]:
        """The noise levels of each row, (R, 1, 1, 1): the first that is not above the noise of y is moved up to it."""
        rows, before = [], torch.full_like(self.level, float("inf"))
        for sigma in nominal:
            here = torch.full_like(self.level, sigma)
            rows.append(torch.where((here <= self.level) & (self.level < before), self.level, here))
            before = here
        return rows

    def variance(self, sigma: Tensor) -> Tensor:
        """Of a known pixel about y at this level, 0 from the noise of y down."""
        return (sigma**2 - self.level**2).clamp(min=0)

    def put_back(self, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """x with the known pixels at y and the noise of the level, down to that of y."""
        return torch.where(self.mask & (sigma >= self.level), self.y + self.variance(sigma).sqrt() * noise, x)
