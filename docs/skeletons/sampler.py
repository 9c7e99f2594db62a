"""One line: the name of the method.

Paper       Authors, title, venue, year, arXiv number, algorithm number.
Target      What the samples are draws of: p(x | y), exactly or approximately, and where the bias comes from.
Needs       A linear operator and Gaussian noise.
Cost        Per step and sample: 1 forward, 1 `solve`, 2 calls of the operator.
Coordinates The paper's own; or the factors between its coordinates and image units.
Departures  Every difference from the paper, its start and its noise on unmeasured entries included; or "none".

Copy this file to my_sampler.py; the example below denoises, fits the data and adds noise again. Check it and use it:

    invdiff check-sampler sampler=callable sampler.file=my_sampler.py:MySampler
    invdiff reconstruct sampler=callable sampler.file=my_sampler.py:MySampler sampler.settings.prior_std=0.1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from invdiff.engine.step import Step
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.ranges import Positive
from invdiff.samplers import Needs, Sampler
from invdiff.schedules import EDM, Schedule
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class MySampler(Sampler):
    """What it does, in one sentence.

    schedule   noise levels
    prior_std  standard deviation of x0 given x_sigma at high noise

    Both are for pictures in [0, 1]; `prior.scale` scales them for other images.
    """

    requires = Needs(linear=True, gaussian_noise=True)
    per_step = Cost(forwards=1)  # the default; a VJP through the network adds vjps=1
    small: ClassVar = {"schedule": EDM(steps=5, sigma_max=5.0, sigma_min=0.05)}  # a few steps, for the contract rules

    schedule: Schedule = EDM(steps=40, sigma_max=5.0, sigma_min=0.02)
    prior_std: Positive = 0.1

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        operator = problem.linear_operator
        sigmas = self.schedule.levels(prior.scale)  # the last one is 0
        prior_std = self.prior_std * prior.scale
        x = prior.start(sigmas[0], rng.normal())  # random numbers come from `rng` alone
        for sigma, sigma_next in pairwise(sigmas):
            x0 = prior.denoise(x, sigma)
            # Least squares: |y - A x0|^2 over the variance of the noise, plus the squared change of x0 over its own.
            variance = 1 / (1 / sigma**2 + 1 / prior_std**2)
            x0 = x0 + operator.solve(operator.adjoint(problem.residual(x0)), problem.noise_variance / variance)
            x = x0 + sigma_next * rng.normal()
            yield Step(x, x0, sigma_next)
