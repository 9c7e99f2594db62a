"""Second-order Tweedie sampler from surrogate loss (STSL): few levels, several descents at each, from the encoded data.

Paper       Rout et al., Beyond First-Order Tweedie: Solving Inverse Problems using Latent Diffusion, CVPR 2024,
            arXiv:2312.00852, Algorithm 1.
Target      none that is known: the likelihood is taken at E[z0 | z], and a surrogate of the trace of the Hessian of
            log p_sigma, which the paper's bound on the second-order term holds, descends with it. Of a Gaussian prior
            that trace does not depend on z and its gradient is 0. On a Gaussian image of 16 pixels with an exact codec
            the variances are 0.07 to 0.83 times the truth, 0.48 on average, and means up to 0.5 standard deviations
            off, at the default settings.
Needs       a latent prior and a differentiable operator; an operator with a first guess starts from its codes.
Cost        per step and sample: `inner` times 2 forwards and 2 VJPs, and 1 forward.
Coordinates the paper's unit perturbation of z = (x - centre) / (h sqrt(1 + (sigma / h)^2)) is h sqrt(1 + (sigma / h)^2)
            here. Scores times h sqrt(1 + (sigma / h)^2) are the paper's.
Departures  the authors published no code, and the paper neither the unit of lambda: the data term descends by `rate`
            times the step that the noise of y warrants (`moves.longest_step`), and the trace term by eta over the
            dimension times h^2 (1 + (sigma / h)^2), the square of that unit. The start is the noised code of the first
            guess, as theirs by inversion of the sampler. Levels start at 10 of the prior's scale, not at the end of
            the chain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.ranges import Count, NotNegative, Positive, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import clean_estimate, longest_step
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_dot, row_gradient, row_norm, row_vjp


@dataclass(frozen=True, kw_only=True)
class STSL(Sampler):
    """Second-order surrogate: the data and the curvature of log p descend on codes at few levels.

    The defaults are invdiff's own; `experiment=paper/stsl_...` has the authors'.

    schedule  noise levels; published 50
    inner     descents at each level; published 5
    rate      of the data term: 1 is all that y warrants
    eta       weight of the trace term; published 0.02
    noise     share of the noise of the ancestral step
    """

    requires = Needs(codec=True, differentiable=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=6, sigma_max=10.0, sigma_min=0.02), "inner": 2}

    schedule: Schedule = EDM(steps=30, sigma_max=10.0, sigma_min=0.01)
    inner: Count = 3
    rate: Positive = 1.0
    eta: NotNegative = 0.02
    noise: Share = 1.0

    def expected_cost(self) -> Cost:
        trace = 2 if self.eta > 0 else 0
        each = Cost(forwards=self.inner * (1 + trace) + 1, vjps=self.inner * (1 + trace))
        return Cost(forwards=self.num_steps * each.forwards, vjps=self.num_steps * each.vjps)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        guess = problem.first_guess
        z = prior.start(sigmas[0], rng.normal()) if guess is None else guess + sigmas[0] * rng.normal()
        for sigma_t, sigma_s in pairwise(sigmas):
            for _ in range(self.inner):
                z = self.descended(problem, prior, z, sigma_t, rng)
            z0 = prior.denoise(z, sigma_t)
            z = ddim_step(z, z0, sigma_t, sigma_s, self.noise, rng.normal())
            yield Step(z, z0, sigma_s)

    def descended(self, problem: InverseProblem, prior: Prior, z: Tensor, sigma: float, rng: Streams) -> Tensor:
        """z after one descent of both terms, (R, c, h, w)."""
        z0, pull = row_vjp(clean_estimate(prior, sigma, clip=False), z)
        value, product = row_vjp(lambda z0: row_norm(problem.residual(z0)), z0)
        slope = product(torch.ones_like(value))
        gradient = pull(slope)
        length = longest_step(problem, sigma, z0, value, slope, gradient, prior.scale)
        moved = z - per_row(self.rate * length, z) * gradient
        if self.eta == 0:
            return moved
        size = sqrt(prior.unit**2 + sigma**2)
        return moved - self.eta / z[0].numel() * size**2 * trace_gradient(prior, z, sigma, size, rng.normal())


def trace_gradient(prior: Prior, z: Tensor, sigma: float, size: float, e: Tensor) -> Tensor:
    """Gradient by z of the surrogate <e, s(z + size e) - s(z)> of the trace of the Hessian, s the score times `size`.

    e  standard normal, (R, c, h, w)
    """

    def surrogate(z: Tensor) -> Tensor:
        change = prior.denoise(z + size * e, sigma) - prior.denoise(z, sigma) - size * e
        return row_dot(e, change) * size / sigma**2

    return row_gradient(surrogate, z)
