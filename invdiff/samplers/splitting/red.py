"""Regularisation by denoising (RED).

Paper       Romano, Elad and Milanfar, The Little Engine that Could: Regularization by Denoising, SIAM Journal on
            Imaging Sciences 2017, arXiv:1611.02862, section 4.2: steepest descent and fixed point.
Target      one image with A^T (A x - y) / sigma_y^2 + lam / sigma^2 (x - D(x, sigma)) = 0, where sigma ends: near a
            mode of p(x | y). Samples differ by their start alone, and their spread is no uncertainty. On
            Gaussian images of independent pixels it ends at the posterior mean of a prior that is wider by the level.
Needs       a linear operator and Gaussian noise.
Cost        per step and sample: 1 forward; of the operator a call, an adjoint and a `solve`, or 30 iterations of
            conjugate gradients; `form="gradient"`: a call and a Jacobian product, and 40 of both before the first step.
Coordinates the paper's own; its lam for images in [0, 255] and one level is lam / sigma^2 here.
Departures  the level falls, from one at which nothing but the centre of the prior is known; the paper has one
            (3.25 of 255), and starts from y. Its step is 2 / (1 / sigma_y^2 + lam), here 1 over the largest curvature.
            The result ends at a misfit near 1 at the most, `moves.explained`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from invdiff.ranges import Count, Positive
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained, largest_curvature, proximal
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row


@dataclass(frozen=True, kw_only=True)
class RED(Sampler):
    """Regularisation by denoising at falling levels; one image, no posterior; linear operators.

    The defaults are invdiff's own; `experiment=paper/red_...` has the paper's.

    schedule    noise levels of the denoiser; published one, 0.013 or 0.016 (3.25 or 4.1 of 255)
    iterations  steps at each level; published 200, 1500 with `gradient`
    lam         weight of the regulariser, over sigma^2; published 0.21 and 0.17 (0.02 and 0.01 for images in [0, 255])
    form        `fixed_point`, with a linear system at each step, or `gradient`
    """

    requires = Needs(linear=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=5, sigma_max=1.0, sigma_min=0.02), "iterations": 2}

    schedule: Schedule = EDM(steps=20, sigma_max=1.0, sigma_min=0.02)
    iterations: Count = 2
    lam: Positive = 1.0
    form: Literal["fixed_point", "gradient"] = "fixed_point"

    @property
    def num_steps(self) -> int:
        return self.schedule.steps * self.iterations

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        curvature = largest_curvature(problem, prior) if self.form == "gradient" else None
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            for n in range(self.iterations):
                x0, weight = prior.denoise(x, sigma_t), self.lam / sigma_t**2
                if curvature is None:
                    x = proximal(problem, x0, weight * problem.noise_variance)
                else:
                    gradient = problem.nll_gradient(x) + weight * (x - x0)
                    x = x - gradient / per_row(curvature + weight, x)
                last = n + 1 == self.iterations
                if last and sigma_s == 0:
                    x = explained(problem, x, prior.scale)
                yield Step(x, x0, sigma_s if last else sigma_t)
