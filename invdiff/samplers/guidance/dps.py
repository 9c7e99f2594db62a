"""Diffusion posterior sampling (DPS).

Paper       Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023, arXiv:2209.14687,
            Algorithm 1.
Target      p(x | y), approximately: the likelihood is taken at the posterior mean, E[x0 | x], not averaged over
            p(x0 | x); biased at any number of steps.
Needs       a differentiable operator and a differentiable prior; nonlinear operators allowed.
Cost        per step and sample: 1 forward, 1 VJP, 1 call of the operator and 1 product with its Jacobian; 2 calls more
            with `guidance="norm"`.
Coordinates the paper's z = (x - centre) / (h sqrt(1 + (sigma / h)^2)), with h = `prior.unit` (its images live in
            [-1, 1]). Its update z_s -= zeta grad_z |r| is x_s -= zeta C grad_x |r| here, with
            C = sqrt((1 + (sigma_t / h)^2) (1 + (sigma_s / h)^2)); without C there would be no guidance at high noise.
Departures  `guidance="norm"`: zeta over the norm of the operator, and a step no longer than the noise of y warrants,
            `moves.longest_step`: without that the last steps copy noise, or miss data whose noise is small (misfit 222
            on CT of digits at noise 0.015, 2.6 with it). With `published`, as the authors' code, whose `scale`
            multiplies the gradient of the norm (the paper's formula squares it: scale = 2 zeta'); published scales are
            halved for [0, 1]. Besides: the start is the prior's mean plus noise where the mean is known, theirs is grey
            plus noise; the variance of a step is fixed ("fixed-small") unless `variance="learned"`, which is theirs;
            unmeasured entries of y carry no noise, theirs do, which makes their norm 1.8 times larger at 70 % missing
            pixels, so that the same zeta guides that much harder here. Norms are of one sample, never of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.ranges import NotNegative
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step, clean_estimate, longest_step, operator_norm, weighted_norm
from invdiff.schedules import EDM, VP, Schedule
from invdiff.shapes import per_row, row_vjp


@dataclass(frozen=True, kw_only=True)
class DPS(Sampler):
    """Diffusion posterior sampling: ancestral steps pulled towards the data; any differentiable operator.

    The defaults are invdiff's own, for fewer steps; `experiment=paper/dps_...` has the paper's.

    schedule  noise levels; the published one is the 1000-step DDPM grid. Fewer steps want a larger zeta, about
              in proportion. Those above 3 cost steps and change little where y shows how bright the image is: energy
              score x 1000 of inpainted digits 48, over the whole grid 60
    zeta      guidance weight on the gradient of |y - A(x0)|, image units; published 0.15 (blur, super-resolution) and
              0.25 (inpainting) at 1000 steps
    guidance  `norm`: the paper's, over the norm of the operator, so that zeta does not depend on the unit of y, and no
              step longer than the noise of y warrants. `published`: without either. `likelihood`: the gradient of the
              negative log-likelihood times sigma_t^2 - sigma_s^2, zeta unused: "theory DPS", whose law on Gaussian
              problems is known in closed form
    variance  of the noise of a step: `fixed` is that of known clean images, `learned` that of the network, as published
    clip      clamp the clean estimate to the value range, as the authors' code does
    """

    requires = Needs(differentiable=True, differentiable_prior=True)
    per_step = Cost(forwards=1, vjps=1)
    small: ClassVar = {"schedule": VP(steps=10), "zeta": 0.3}

    schedule: Schedule = EDM(steps=100, sigma_max=3.0, sigma_min=0.003)
    zeta: NotNegative = 2.0
    guidance: Literal["norm", "published", "likelihood"] = "norm"
    variance: Literal["fixed", "learned"] = "fixed"
    clip: bool = True

    def needs(self) -> Needs:
        return replace(self.requires, step_variance=self.variance == "learned")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        half, zeta = prior.unit, self.zeta * prior.scale

        def misfit(x0: Tensor) -> Tensor:
            return problem.nll(x0) if self.guidance == "likelihood" else weighted_norm(problem, problem.residual(x0))

        bound = zeta / operator_norm(problem, prior) if self.guidance == "norm" else None
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            shares: list[Tensor] | None = [] if self.variance == "learned" else None
            x0, pull = row_vjp(clean_estimate(prior, sigma_t, clip=self.clip, shares=shares), x)  # lines 3-5
            value, product = row_vjp(misfit, x0)
            slope = product(torch.ones_like(value))
            gradient = pull(slope)
            chain = sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2))
            if self.guidance == "likelihood":
                weight: float | Tensor = sigma_t**2 - sigma_s**2
            elif bound is not None:
                longest = longest_step(problem, sigma_t, x0, value, slope, gradient, prior.scale)
                weight = per_row(chain * torch.minimum(bound, longest), x)
            else:
                weight = chain * zeta
            share = shares[0] if shares else None
            step = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal(), share=share, unit=half)
            x = step - weight * gradient  # lines 6 and 7
            yield Step(x, x0, sigma_s)
