"""Diffusion posterior sampling (DPS).

Paper       Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023, arXiv:2209.14687,
            Algorithm 1.
Target      p(x | y), approximately: the likelihood is taken at the posterior mean, E[x0 | x], not averaged over
            p(x0 | x); biased at any number of steps.
Needs       a differentiable operator and a differentiable prior; nonlinear operators allowed.
Cost        per step and sample: 1 forward, 1 VJP, 1 call of the operator and 1 product with its Jacobian.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), with h half the width of the value range (its images live in
            [-1, 1]). Its update z_s -= zeta grad_z |r| is x_s -= zeta C grad_x |r| here, with
            C = sqrt((1 + (sigma_t / h)^2) (1 + (sigma_s / h)^2)); without C there would be no guidance at high noise.
Departures  none from the authors' code, whose `scale` multiplies the gradient of the norm (the paper's formula squares
            it: scale = 2 zeta'); published scales are halved for [0, 1]. Norms are of one sample, never of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.operators import GaussianNoise
from invdiff.operators.noise.base import masked
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import ancestral_step, mean_variance
from invdiff.schedules import VP, Schedule
from invdiff.shapes import per_row, row_norm
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class DPS(Sampler):
    """Ancestral sampling, pulled towards the data by the gradient of the misfit of the clean estimate.

    The defaults are invdiff's own, for fewer steps; `DPS.published()` has the paper's for inpainting.

    schedule  noise levels; the published one is the 1000-step DDPM grid. Fewer steps want a larger zeta, about
              in proportion
    zeta      guidance weight on the gradient of |y - A(x0)|, image units; published 0.15 (blur, super-resolution) and
              0.25 (inpainting) at 1000 steps
    guidance  `norm`: the paper's. `likelihood`: the gradient of the negative log-likelihood times
              sigma_t^2 - sigma_s^2, zeta unused: "theory DPS", whose law on Gaussian problems is known in closed form
    clip      clamp the clean estimate to the value range, as the authors' code does
    """

    schedule: Schedule = VP(steps=100)
    zeta: float = 2.0
    guidance: Literal["norm", "likelihood"] = "norm"
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zeta < 0:
            raise ValueError(f"dps: zeta must not be negative, got {self.zeta}")
        if self.guidance not in ("norm", "likelihood"):
            raise ValueError(f"dps: guidance must be norm or likelihood, got {self.guidance!r}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(differentiable=True, differentiable_prior=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps, vjps=self.num_steps)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=VP(steps=10), zeta=0.3)

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for inpainting, in image units."""
        return cls(schedule=VP(steps=1000), zeta=0.25)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.sigmas().tolist()
        half = (prior.value_range[1] - prior.value_range[0]) / 2
        x = sigmas[0] * rng.normal()
        for sigma_t, sigma_s in pairwise(sigmas):
            x0, gradient = self._estimate(problem, prior, x, sigma_t)  # lines 3-5 and the gradient of line 7
            if self.guidance == "norm":
                weight = self.zeta * sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2))
            else:
                weight = sigma_t**2 - sigma_s**2
            x = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal()) - weight * gradient  # lines 6 and 7
            yield Step(x, x0, sigma_s)

    def _estimate(self, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The clean estimate and the gradient of its misfit with respect to x: one network call gives both."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = prior.denoise(x, sigma)
            if self.clip:
                x0 = x0.clamp(*prior.value_range)
            misfit = weighted_norm(problem, x0) if self.guidance == "norm" else problem.nll(x0)
            (gradient,) = torch.autograd.grad(misfit.sum(), x)  # rows are independent: the sum mixes nothing
        return x0.detach(), gradient


def weighted_norm(problem: InverseProblem, x0: Tensor) -> Tensor:
    """|y - A(x0)| of each row, its entries weighted by how noisy they are: (R,).

    The weights are sqrt(mean variance / variance), as y tells them: one for Gaussian noise, and for photon counts the
    paper's norm with Lambda = diag(1 / 2y), in the unit of the measurement.
    """
    residual = problem.residual(x0)
    if isinstance(problem.noise, GaussianNoise):
        return row_norm(residual)
    y = masked(problem.y, problem.observed)
    weight = (per_row(mean_variance(problem), y) / problem.noise.variance(y)).sqrt()
    return row_norm(weight * residual)
