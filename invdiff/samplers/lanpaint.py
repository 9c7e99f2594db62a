"""LanPaint: inpainting by Langevin dynamics of known and unknown pixels together, at every noise level.

Paper       Zheng et al., LanPaint: Training-Free Diffusion Inpainting with Exact and Fast Conditional Inference, TMLR,
            arXiv:2502.03491, Algorithm 1, its dynamics in the overdamped form of the authors' code.
Target      p(x | y), approximately. With lam = 0 the dynamics of a level target N(x_k; y, s^2) p_s(x_u | x_k) for known
            pixels k and unknown ones u, which is right as s falls to 0; the levels in between only prepare it.
            With lam > 0 known pixels are also pushed against what the network makes of them, so that they listen to
            the unknown ones less and mix faster: no stationary law is known, and the result is biased.
Needs       an inpainting operator; Gaussian noise with `known="noisy"`. No network VJP.
Cost        per step and sample: 1 + `inner_steps` forwards.
Form        an inner step solves dx = (c - a x) dt + s sqrt(2) dW exactly for constant c: a = 1 and c = D(x) for unknown
            pixels, a = 1 + lam and c = (1 + lam) y - lam (D - x) for known ones, for a time `step_size` in units of
            s^2. From the second step on c is replaced halfway, as in the authors' code. A step of the flow follows.
Departures  their damped oscillator, which needs a friction, and their clocks that differ between known and unknown
            pixels are left out; the guidance scales of text have no meaning here. Ours is `known="noisy"`: their y has
            no noise. y itself is then a known pixel at level sigma_y. Above it, known pixels are held about y with
            variance s^2 - sigma_y^2; below it they are free and only unknown pixels move at a level, given them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.cost import Cost
from invdiff.moves import ddim_step
from invdiff.operators import GaussianNoise
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler, Step
from invdiff.schedules import EDM, Schedule
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class LanPaint(Sampler):
    """At every noise level put the measured pixels back, let all pixels settle together, and step down.

    The defaults are invdiff's own; `LanPaint.published()` has the authors' suggestions, in image units.

    schedule     noise levels
    inner_steps  steps of the dynamics at each level; published 5, for hard cases 10
    step_size    their length; published 0.2
    lam          strength of the pull on known pixels; published 4 to 10. 0: the dynamics have a known law
    eta          noise of the step to the next level: 1 is the ancestral step, 0 follows the flow (published)
    known        `noisy`: y has the noise that the problem says. `exact`: y is taken for the pixels themselves, noise
                 and all (published)
    """

    schedule: Schedule = EDM(steps=30, sigma_max=10.0, sigma_min=0.01)
    inner_steps: int = 5
    step_size: float = 0.2
    lam: float = 5.0
    eta: float = 1.0
    known: Literal["noisy", "exact"] = "noisy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_steps < 0 or not self.step_size > 0 or not self.lam >= 0:
            raise ValueError(
                "lanpaint: inner_steps and lam must not be negative and step_size positive, "
                f"got {self.inner_steps}, {self.lam} and {self.step_size}"
            )
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
        return cls(schedule=EDM(steps=6, sigma_max=5.0, sigma_min=0.02), inner_steps=2)

    @classmethod
    def published(cls) -> Self:
        """The authors' defaults, in image units."""
        return cls(schedule=EDM(steps=30), eta=0.0, known="exact")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.sigmas().tolist()
        x = sigmas[0] * rng.normal()
        known = Known.of(problem, x, self.known == "exact")
        if not (known.level <= sigmas[0]).all():
            raise ValueError(
                f"lanpaint: the noise of y, {float(known.level.max()):.3g}, is above the first noise level, "
                f"{sigmas[0]:.3g}: raise schedule.sigma_max"
            )
        noise = rng.normal()  # of the known pixels, one and the same at every level
        x = known.put_back(x, sigmas[0], noise)
        for sigma, after in pairwise(sigmas):
            x = self._settle(prior, x, sigma, known, rng)
            x0 = prior.denoise(x, sigma)
            # A known pixel that is held no more goes on from where it was measured: from y, at the level of its noise.
            freed = known.held(sigma) & ~known.held(after)
            level = torch.where(freed, known.level, sigma)
            x = ddim_step(torch.where(freed, known.y, x), x0, level, after, self.eta, rng.normal())
            x = known.put_back(x, after, noise)
            yield Step(x, x0, after)

    def _settle(self, prior: Prior, x: Tensor, sigma: float, known: "Known", rng: Streams) -> Tensor:
        """The inner steps: Langevin dynamics at one noise level, in units of its variance."""
        held = known.held(sigma)
        pull = torch.where(held, (1 + self.lam) * sigma**2 / known.variance(sigma), 1)  # a; y itself is held fast
        time = torch.where(known.mask & ~held, 0, torch.full_like(x, self.step_size))

        def drift(x: Tensor) -> Tensor:  # c without what pulls to y
            x0 = prior.denoise(x, sigma)
            return torch.where(held, -self.lam * (x0 - x), x0)

        def relax(x: Tensor, c: Tensor, time: Tensor) -> Tensor:
            """An exact step of dx = (a (y - x) + c) dt (held), dx = (c - x) dt (not held), with noise s sqrt(2) dW."""
            target = torch.where(held, known.y, 0) + c / pull
            spread = sigma * ((1 - torch.exp(-2 * pull * time)) / pull) ** 0.5
            return target + torch.exp(-pull * time) * (x - target) + spread * rng.normal()

        c = None
        for _ in range(self.inner_steps):
            if c is None:
                c = drift(x)
                x = relax(x, c, time)
                continue
            x = relax(x, c, time / 2)
            fresh = drift(x)
            x = relax(x + (fresh - c) * time, c, time / 2)
            c = fresh
        return x


@dataclass(frozen=True)
class Known:
    """What was measured.

    mask   (1 or R, 1, H, W) bool
    y      (R, C, H, W), 0 where nothing was measured
    level  (1, 1, 1, 1) or (R, 1, 1, 1) standard deviation of its noise, 0 where y counts as exact
    """

    mask: Tensor
    y: Tensor
    level: Tensor

    @classmethod
    def of(cls, problem: InverseProblem, x: Tensor, exact: bool) -> Self:
        mask = problem.observed
        assert mask is not None  # an inpainting operator always says what it measured
        level = torch.zeros(1, device=x.device)
        if not exact:
            assert isinstance(problem.noise, GaussianNoise)  # `needs` made sure
            level = problem.noise.sigma
        return cls(mask, problem.residual(torch.zeros_like(x)), level.to(x).reshape(-1, 1, 1, 1))

    def held(self, sigma: float) -> Tensor:
        """The pixels that are held about y at this level: all that were measured, down to the noise of y."""
        return self.mask & (sigma >= self.level)

    def variance(self, sigma: float) -> Tensor:
        """Of a held pixel about y."""
        return (sigma**2 - self.level**2).clamp(min=0)

    def put_back(self, x: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """x with the held pixels at y and the noise of the level."""
        return torch.where(self.held(sigma), self.y + self.variance(sigma).sqrt() * noise, x)
