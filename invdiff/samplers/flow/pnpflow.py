"""PnP-Flow: plug-and-play along a flow: a step towards the data, noise, and the mean of a few denoised images.

Paper       Martin et al., PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, ICLR 2025, arXiv:2410.02423,
            Algorithm 3.
Target      one image, near the posterior mean: noise is averaged away. The spread of its samples is that of the noise
            of `average` draws, and no uncertainty: on a blurred Gaussian image of 16 pixels the variance is 0.23 of the
            truth, and means are up to 0.2 standard deviations off. Badly conditioned data stay unexplained in part: a
            misfit of 3.2 on sums along the rows of digits.
Needs       a linear operator and Gaussian noise.
Cost        per step and sample: `average` forwards, 1 call of the operator and 1 adjoint.
Coordinates a flow's z = t x + (1 - t) noise, with the image at 1: a level of z / t is sigma = h (1 - t) / t, with
            h = `prior.unit`, and D takes any denoiser.
Departures  the step towards the data is over the square of the norm of the operator, theirs has operators of norm 1. It
            begins at the centre of the prior at t > 0, theirs at A^T 1 at t = 0, where D knows nothing of it. The last
            image is moved to a misfit near 1, `moves.explained`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from invdiff.operators.noise.base import masked
from invdiff.ranges import Count, NotNegative, Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained, operator_norm
from invdiff.schedules import Schedule, Straight
from invdiff.shapes import per_row


@dataclass(frozen=True, kw_only=True)
class PnPFlow(Sampler):
    """Plug-and-play along a flow: data step, noise, average of denoised images; one image, linear operators.

    schedule  noise levels; published 100 even times
    average   denoised images in a mean; published 5
    rate      of the data step, 1 is the longest that is safe; published 1
    alpha     the step falls like (1 - t)^alpha; published 0.01 to 1, by task
    """

    requires = Needs(linear=True, gaussian_noise=True)
    small: ClassVar = {"schedule": Straight(steps=10)}

    schedule: Schedule = Straight(steps=50)
    average: Count = 2
    rate: Positive = 1.0
    alpha: NotNegative = 0.5

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * self.average)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas, h = self.schedule.levels(prior.scale), prior.unit
        operator, norm = problem.linear_operator, operator_norm(problem, prior)
        x = prior.start(0.0, rng.normal())
        for sigma, after in pairwise(sigmas):
            step = self.rate * (sigma / (h + sigma)) ** self.alpha  # 1 - t = sigma / (h + sigma)
            residual = masked(problem.residual(x), problem.observed)
            moved = x + per_row(step / norm**2, x) * operator.adjoint(residual)
            noised = [moved + sigma * rng.normal() for _ in range(self.average)]
            x = torch.stack([prior.denoise(z, sigma) for z in noised]).mean(0)
            x0 = x
            if after == 0:
                x = explained(problem, x, prior.scale)
            yield Step(x, x0, after)
