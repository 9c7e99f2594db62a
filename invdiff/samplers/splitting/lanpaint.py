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
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.problem import Unsupported
from invdiff.ranges import NotNegative, Positive, Share, WholeNumber
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.relaxation import Relaxation
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class LanPaint(Sampler):
    """Inpainting by Langevin dynamics at every noise level: known and unknown pixels settle together; no VJP.

    The defaults are invdiff's own; `experiment=paper/lanpaint_inpainting` has the authors'.

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

    small: ClassVar = {"schedule": EDM(steps=6, sigma_max=5.0, sigma_min=0.02), "inner_steps": 2, "lam": 1.0}

    schedule: Schedule = EDM(steps=20, sigma_max=5.0, sigma_min=0.003)
    inner_steps: WholeNumber = 4
    step_size: Positive = 0.5
    lam: NotNegative = 5.0
    friction: Positive | None = None
    eta: Share = 1.0
    known: Literal["noisy", "exact"] = "noisy"

    def needs(self) -> Needs:
        return Needs(mask=True, gaussian_noise=self.known == "noisy")

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * (1 + self.inner_steps))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        nominal = self.schedule.levels(prior.scale)
        noise = rng.normal()  # of the known pixels, one and the same at every level
        known = Known.of(problem, noise, None if self.known == "exact" else nominal)
        sigmas = known.levels(nominal)
        x = known.put_back(prior.start(sigmas[0], rng.normal()), sigmas[0], noise)
        for (sigma, after), level in zip(pairwise(sigmas), nominal[1:], strict=True):
            score = Score.of(known, sigma, self.lam)
            time = known.clock(sigma, self.step_size)
            full, half = (Relaxation.of(score.pull, t, sigma, self.friction) for t in (time, time / 2))
            velocity = None if self.friction is None else sigma * rng.normal()
            for n in range(self.inner_steps):  # Langevin dynamics at one noise level, in units of its variance
                if n == 0:
                    c = score(prior, x)
                    x, velocity = full(x, velocity, c, rng)
                else:  # c is replaced halfway
                    x, velocity = half(x, velocity, c, rng)
                    before, c = c, score(prior, x)
                    x, velocity = full.corrected(x, velocity, c - before)
                    x, velocity = half(x, velocity, before, rng)
            x0 = prior.denoise(x, sigma.flatten())
            x = known.put_back(ddim_step(x, x0, sigma, after, self.eta, rng.normal()), after, noise)
            yield Step(x, x0, level)


@dataclass(frozen=True)
class Score:
    """The bidirectional guided score in units of the squared level, c - a x.

    pull  a
    to_y  share of y in c
    held  pixels held about y; the others follow the prior
    """

    known: "Known"
    sigma: Tensor
    lam: float
    pull: Tensor
    to_y: Tensor
    held: Tensor

    @classmethod
    def of(cls, known: "Known", sigma: Tensor, lam: float) -> Self:
        noise = sigma**2 - known.level**2  # of a held pixel about y; below the noise of y minus that of y about it
        held, freed = known.mask & (noise > 0), known.mask & (noise < 0)
        to_y = torch.where(held, (1 + lam) * sigma**2 / noise, torch.where(freed, -(sigma**2) / noise, 0))
        return cls(known, sigma, lam, torch.where(held, to_y, 1 + to_y), to_y, held)

    def __call__(self, prior: Prior, x: Tensor) -> Tensor:
        """c at x: one network call."""
        x0 = prior.denoise(x, self.sigma.flatten())
        return self.to_y * self.known.y + torch.where(self.held, -self.lam * (x0 - x), x0)


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
        if mask is None:
            raise Unsupported(f"{type(problem.operator).__name__} has no mask of pixels")
        level = like.new_zeros(len(like), 1, 1, 1)
        if nominal is not None:
            level = level + problem.noise_std.to(like).reshape(-1, 1, 1, 1)
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

    def clock(self, sigma: Tensor, step_size: float) -> Tensor:
        """Length of an inner step for every pixel; 0 for known pixels at the level of the noise of y, which are y."""
        still = self.mask & (sigma**2 - self.level**2 == 0)
        return torch.where(still, 0, torch.full_like(sigma, step_size))
