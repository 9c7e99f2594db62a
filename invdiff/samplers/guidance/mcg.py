"""Manifold-constrained gradient (MCG): guidance along the data manifold, and a projection onto the measurement.

Paper       Chung et al., Improving Diffusion Models for Inverse Problems using Manifold Constraints, NeurIPS 2022,
            arXiv:2206.00941, equations 14 and 15 (not MCGdiff, which is a particle filter).
Target      p(x | A x = y), approximately, for a measurement (almost) without noise: the likelihood is taken at the
            posterior mean, and the projection knows no noise. Biased at any number of steps, on Gaussians too.
Needs       a linear operator and a differentiable prior.
Cost        per step and sample: 1 forward, 1 VJP; of the operator 2 calls, an adjoint and a pseudo-inverse; by default
            4 calls, 2 adjoints and a `solve`, or 30 iterations of conjugate gradients.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), see `dps.py`: the gradient carries the same factor C.
Departures  the replaced part has the noise of the level that the step leads to; the authors' code has that of the level
            before, one step too noisy. The noise put on y is A n, the measurement of image noise, as it must be where
            A A^T is not the identity. Published for masks, colours and CT; the pseudo-inverse makes the same step of
            every linear operator, and keeps the guidance to the null space. Ours are `projection="damped"`, which
            weighs y by its noise, in the guidance too (`moves.longest_step`), and `project_above`; both stop copying
            that noise into the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

import torch

from invdiff.ranges import NotNegative
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step, clean_estimate, longest_step, mean_variance, operator_norm, put_back
from invdiff.schedules import EDM, VP, Schedule
from invdiff.shapes import nonzero, per_row, row_norm, row_vjp


@dataclass(frozen=True, kw_only=True)
class MCG(Sampler):
    """Manifold-constrained gradient: guidance in the null space, projection onto the data; linear operators.

    The defaults are invdiff's own, for fewer steps and noisy data; `experiment=paper/mcg_...` has the paper's.

    schedule       noise levels; the published one is the 1000-step DDPM grid. Fewer steps want a larger zeta
    zeta           guidance weight on the gradient of |W (y - A x0)|, image units; published 0.5 for masks. 0 is plain
                   replacement
    weight         W: `identity` (masks), here over the norm of the operator, so that zeta does not depend on the unit
                   of y, or `pinv`, the pseudo-inverse (the paper's filtered back-projection for CT)
    projection     `exact`: A x = y + sigma A n, the paper's; it amplifies the noise of y where A is badly conditioned.
                   `damped`: towards it as far as y can be trusted, A^+ replaced by (A^T A + rho)^-1 A^T with
                   rho = (sigma_y / sigma)^2; the same where y has no noise
    project_above  noise level, image units, below which the projection is left out and the gradient is no longer kept
                   to the null space. 0: the paper's; with `exact` the result then fits y, noise included
    clip           clamp the clean estimate to the value range
    """

    requires = Needs(linear=True, differentiable_prior=True)
    per_step = Cost(forwards=1, vjps=1)
    small: ClassVar = {"schedule": VP(steps=10), "zeta": 0.3}

    schedule: Schedule = EDM(steps=100, sigma_max=3.0, sigma_min=0.003)
    zeta: NotNegative = 2.0
    weight: Literal["identity", "pinv"] = "identity"
    projection: Literal["damped", "exact"] = "damped"
    project_above: NotNegative = 0.0
    clip: bool = True

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        operator = problem.linear_operator
        half, zeta = prior.unit, self.zeta * prior.scale
        size = operator_norm(problem, prior) if self.weight == "identity" else 1.0  # A^+ r has the unit of images
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0, pull = row_vjp(clean_estimate(prior, sigma_t, clip=self.clip), x)
            residual = problem.residual(x0)
            # Gradient of |W r| by x0: A^T r / |r|, and A^+ r / |A^+ r| for W = A^+, as A^T W^T W r = A^+ r.
            back = operator.adjoint(residual) if self.weight == "identity" else operator.pinv(residual)
            norm = row_norm(residual if self.weight == "identity" else back)
            # The norm has no gradient where it is 0: that image is guided no further.
            slope = -(back / per_row(nonzero(norm), back))
            gradient = pull(slope)
            chain = sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2))
            x, noise = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal()), rng.normal()
            step = torch.full_like(norm, zeta) / size
            if self.projection == "damped" and self.weight == "identity":
                longest = longest_step(problem, sigma_t, x0, norm, slope, gradient, prior.scale)
                step = torch.minimum(step, longest)
            x = x - per_row(chain * step, x) * gradient
            if sigma_s >= self.project_above * prior.scale and (sigma_s > 0 or self.projection == "exact"):
                rho = mean_variance(problem) / sigma_s**2 if self.projection == "damped" else None
                x = put_back(problem, x, sigma_s, noise, rho)
            yield Step(x, x0, sigma_s)
