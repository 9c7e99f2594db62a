"""Diffusion posterior sampling (DPS).

Paper       Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023, arXiv:2209.14687,
            Algorithm 1.
Target      p(x | y), approximately: the likelihood is taken at the posterior mean, E[x0 | x], not averaged over
            p(x0 | x); biased at any number of steps.
Needs       a differentiable operator and a differentiable prior; nonlinear operators allowed.
Cost        per step and sample: 1 forward, 1 VJP, 1 call of the operator and 1 product with its Jacobian.
Coordinates the paper's z = (x - centre) / (h sqrt(1 + (sigma / h)^2)), with h = `prior.unit` (its images live in
            [-1, 1]). Its update z_s -= zeta grad_z |r| is x_s -= zeta C grad_x |r| here, with
            C = sqrt((1 + (sigma_t / h)^2) (1 + (sigma_s / h)^2)); without C there would be no guidance at high noise.
Departures  the norm of the operator (`guidance="norm"`). With `published`, as the authors' code, whose `scale`
            multiplies the gradient of the norm (the paper's formula squares it: scale = 2 zeta'); published scales are
            halved for [0, 1]. Besides: the start is the prior's mean plus noise where the mean is known, theirs is grey
            plus noise; the variance of a step is fixed ("fixed-small"), their networks learn it; unmeasured entries of
            y carry no noise, theirs do, which makes their norm 1.8 times larger at 70 % missing pixels, so that the
            same zeta guides that much harder here. Norms are of one sample, never of the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

from torch import Tensor

from invdiff.ranges import NotNegative
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step, clean_estimate, operator_norm, weighted_norm
from invdiff.schedules import VP, Schedule
from invdiff.shapes import per_row, row_gradient, row_vjp


@dataclass(frozen=True, kw_only=True)
class DPS(Sampler):
    """Diffusion posterior sampling: ancestral steps pulled towards the data; any differentiable operator.

    The defaults are invdiff's own, for fewer steps; `experiment=paper/dps_...` has the paper's.

    schedule  noise levels; the published one is the 1000-step DDPM grid. Fewer steps want a larger zeta, about
              in proportion
    zeta      guidance weight on the gradient of |y - A(x0)|, image units; published 0.15 (blur, super-resolution) and
              0.25 (inpainting) at 1000 steps
    guidance  `norm`: the paper's, over the norm of the operator, so that zeta does not depend on the unit of y.
              `published`: without that. `likelihood`: the gradient of the negative log-likelihood times
              sigma_t^2 - sigma_s^2, zeta unused: "theory DPS", whose law on Gaussian problems is known in closed form
    clip      clamp the clean estimate to the value range, as the authors' code does
    """

    requires = Needs(differentiable=True, differentiable_prior=True)
    per_step = Cost(forwards=1, vjps=1)
    small: ClassVar = {"schedule": VP(steps=10), "zeta": 0.3}

    schedule: Schedule = VP(steps=100)
    zeta: NotNegative = 2.0
    guidance: Literal["norm", "published", "likelihood"] = "norm"
    clip: bool = True

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        half, zeta = prior.unit, self.zeta * prior.scale
        misfit = problem.nll if self.guidance == "likelihood" else partial(weighted_norm, problem)
        norm = operator_norm(problem, prior) if self.guidance == "norm" else 1.0
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0, pull = row_vjp(clean_estimate(prior, sigma_t, clip=self.clip), x)  # lines 3-5
            gradient = pull(row_gradient(misfit, x0))
            if self.guidance == "likelihood":
                weight: float | Tensor = sigma_t**2 - sigma_s**2
            else:
                weight = per_row(zeta * sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2)) / norm, x)
            x = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal()) - weight * gradient  # lines 6 and 7
            yield Step(x, x0, sigma_s)
