"""ReSample: hard data consistency of codes by optimisation, then a draw between the result and the state.

Paper       Song et al., Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency, ICLR 2024,
            arXiv:2307.08123, Algorithms 1 and 2.
Target      none that is known: the optimised codes explain y to its noise, and `resample` draws from the product of
            two Gaussians about them and the state; the width of the first is a setting. On a Gaussian image of 16
            pixels with an exact codec the variances are 0.73 to 2.3 times the truth, 1.1 on average, and means up to
            1.2 standard deviations off, at the default settings.
Needs       a latent prior, and a differentiable operator without steps.
Cost        per step and sample: 1 forward; where codes are made consistent up to `iterations` decodings, calls of the
            operator and products with both Jacobians.
Coordinates the paper's variance of z = (x - centre) / (h sqrt(1 + (sigma_s / h)^2)) is v, h = `prior.unit`, times
            h^2 (1 + (sigma_s / h)^2) here.
Departures  Adam without weight decay stops where the misfit is that of the noise, their AdamW at a mean square of 1e-6,
            below the noise, on at most 500 steps, or 2000 in pixels. E[z0 | z] is Tweedie's, which their code
            scales by another factor. Between the optimisations the state takes plain steps, theirs also a step of DPS.
            They run in pixels in the second third of the levels; ours in codes alone, at `every` level from
            `from_sigma` down, and without look-ahead.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.ranges import Count, Positive, Share
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.optimisers import explained_by_descent
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class ReSample(Sampler):
    """Hard consistency: codes are optimised until they explain y, and drawn again at their noise level.

    The defaults are invdiff's own; `experiment=paper/resample_...` has the authors'.

    schedule       noise levels; published 500
    every          levels from one optimisation to the next; published 10
    from_sigma     level below which they begin, units of the prior's scale
    iterations     most steps of Adam at one level
    learning_rate  of Adam, units of the prior's scale; published 0.005 of codes
    gamma          width of `resample`: v = gamma (sigma_s / sigma_t)^2 (sigma_t^2 - sigma_s^2); published 40
    eta            share of the noise of the ancestral step of the other levels; published 0
    """

    requires = Needs(codec=True, differentiable=True, smooth=True)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=10.0, sigma_min=0.02), "every": 2, "iterations": 10}

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.01)
    every: Count = 5
    from_sigma: Positive = 3.0
    iterations: Count = 50
    learning_rate: Positive = 0.02
    gamma: Positive = 1.0
    eta: Share = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        z = prior.start(sigmas[0], rng.normal())
        for k, (sigma_t, sigma_s) in enumerate(pairwise(sigmas), 1):
            z0 = prior.denoise(z, sigma_t)
            z = ddim_step(z, z0, sigma_t, sigma_s, self.eta, rng.normal())
            if sigma_s == 0 or (sigma_t <= self.from_sigma * prior.scale and k % self.every == 0):
                z0 = explained_by_descent(problem, z0, self.learning_rate * prior.scale, self.iterations)
                z = self.resampled(z, z0, sigma_t, sigma_s, rng.normal())
            yield Step(z, z0, sigma_s)

    def resampled(self, z: Tensor, z0: Tensor, sigma_t: float, sigma_s: float, noise: Tensor) -> Tensor:
        """A draw from N(z0, sigma_s^2) times N(z, v), v of this step."""
        v = self.gamma * (sigma_s / sigma_t) ** 2 * (sigma_t**2 - sigma_s**2)
        total = v + sigma_s**2
        if total == 0:
            return z0
        return (v * z0 + sigma_s**2 * z) / total + sqrt(v * sigma_s**2 / total) * noise
