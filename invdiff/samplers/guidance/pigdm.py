"""Pseudo-inverse guided diffusion (PiGDM, also written with the Greek letter).

Paper       Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023, Algorithm 1.
Target      p(x | y), approximately: x0 given x is taken for N(D, r^2 I), r^2 = sigma^2 s^2 / (sigma^2 + s^2). Exact as
            steps grow, with the weight `posterior`, where the images are Gaussian with independent pixels of standard
            deviation s. The published weight does not converge: what it draws depends on the number of steps.
Needs       a linear operator, Gaussian noise and a differentiable prior.
Cost        per step and sample: 1 forward, 1 VJP; of the operator 2 calls (`published`: 1), an adjoint and a `solve`,
            or 30 iterations of conjugate gradients where it has no singular value decomposition.
Form        the pull g = J^T A^T (A A^T + (sigma_y / r)^2 I)^-1 (y - A D), with J the Jacobian of D; the limit, without
            noise, of what stands before (y - A D) is J^T times the pseudo-inverse. `posterior` moves the clean
            estimate, D + (sigma / r)^2 g, which is E[x0 | x, y] under the assumption, and takes a DDIM step with it;
            `published` takes the step with D and adds g to where it leads.
Coordinates the authors' z = x / sqrt(1 + (sigma / h)^2), with h = `prior.unit`, see `dps.py`.
            Their code (`algos/pgdm.py` of NVlabs/RED-diff, as it comes) adds sqrt(alpha_s alpha_t) grad_z <r, D> to
            z_s, which is g added to x_s.
Departures  with `posterior` x moves no further than the least residual asks for: the Jacobian of a network at high
            noise exceeds r^2 / sigma^2 by far along the brightness of an image, and the full change diverged on images
            of 128x128 pixels. For white images it is the full one. Starts from noise, not from the noised
            pseudo-inverse of y. Their code knows no noise in y; here it has the paper's weights for it. Linear
            operators only: the pseudo-inverses of compression and quantisation, and what the code does besides for
            single tasks, are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from invdiff.integrators import ddim_step
from invdiff.ranges import Positive, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import clean_estimate, damped_solve, warranted_share
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_vjp


@dataclass(frozen=True, kw_only=True)
class PiGDM(Sampler):
    """Pseudo-inverse guidance: the residual through a regularised pseudo-inverse; linear operators.

    The defaults are invdiff's own; `experiment=paper/pigdm_...` has the authors'.

    schedule   noise levels
    prior_std  s, how far the images scatter, image units; published 0.5, which is 1 on [-1, 1]
    weight     of the pull: `posterior` as Bayes' rule has it, or `published`
    eta        noise of a step: 1 is the ancestral step (published), 0 none
    """

    requires = Needs(linear=True, gaussian_noise=True, differentiable_prior=True)
    per_step = Cost(forwards=1, vjps=1)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.003)
    prior_std: Positive = 0.25
    weight: Literal["posterior", "published"] = "posterior"
    eta: Share = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        operator, prior_std = problem.linear_operator, self.prior_std * prior.scale
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            variance = (sigma_t * prior_std) ** 2 / (sigma_t**2 + prior_std**2)  # r^2
            x0, vjp = row_vjp(clean_estimate(prior, sigma_t, clip=False), x)
            residual = problem.residual(x0)
            # A^T (A A^T + c I)^-1 = (A^T A + c I)^-1 A^T
            pull = vjp(damped_solve(problem, operator.adjoint(residual), problem.noise_variance / variance, 30))
            if self.weight == "posterior":
                change = sigma_t**2 / variance * pull
                moved = 1 - (sigma_s / sigma_t) ** 2  # of the way to x0 that x goes in this step
                share = warranted_share(problem, x0, residual, change, prior.scale) / moved
                x0 = x0 + per_row(share.clamp(max=1), x) * change
                x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal())
            else:
                x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal()) + pull
            yield Step(x, x0, sigma_s)
