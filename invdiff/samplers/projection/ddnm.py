"""Denoising diffusion null-space models (DDNM+).

Paper       Wang, Yu and Zhang, Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, ICLR 2023,
            arXiv:2212.00490, Algorithm 3 with the decomposition of appendix I.
Target      p(x | y), approximately: y replaces the range-space part of D, x0 given x is taken for the result. What it
            draws depends on the number of levels. Biased: on Gaussian images of independent pixels, blurred, the
            variance is 0.28 of the truth by default.
Needs       an operator with its singular value decomposition, and Gaussian noise.
Cost        per step and sample: 1 forward, more with `repeats`; of the operator the decomposition alone.
Form        D' = D + A^+ L (y - A D), L a weight for each singular direction: 1 above the noise of its measurement,
            s sqrt(1 - eta^2) / t below it, with s the next noise level and t that of the measurement; the noise
            then added fills each direction up to s. This is DDRM's step with eta_b = 1. For A A^+ = I the scalar form
            of the paper is that of one singular value.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), with h = `prior.unit`; steps are the same in x.
Departures  y always has noise here, at the least that of `NoNoise`; without any, the authors' code keeps a share
            sqrt(1 - eta^2) of the old noise in measured directions too. Measured directions are those above the
            operator's cutoff. The last step ends at a misfit near 1, `moves.explained`, theirs at the clean estimate.
            Levels follow Karras et al., the authors' 100 are even in DDPM's time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from invdiff.ranges import Count, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import descents, explained, time_travel
from invdiff.samplers.projection.coordinates import Coordinates
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class DDNM(Sampler):
    """Null-space restoration: the measured part of the clean estimate is replaced, with time travel.

    Energy score x 1000 of digits, inpainting, super-resolution, blur: 58, 72, 36 in 52 calls; jumps of 10 levels, 40
    calls: 65, 67, 35; of 1, 58 calls: 72, 81, 39. The defaults are invdiff's own; `experiment=paper/ddnm_...` has the
    authors'.

    schedule  noise levels
    eta       share of new noise where y does not determine a direction; published 0.85
    length    of a time travel, levels
    repeats   how often each of them is walked; 1: no time travel (the authors' default)
    """

    requires = Needs(linear=True, spectral=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02), "length": 3, "repeats": 2}

    schedule: Schedule = EDM(steps=20, sigma_max=5.0, sigma_min=0.005)
    eta: Share = 0.85
    length: Count = 4
    repeats: Count = 3

    def expected_cost(self) -> Cost:
        return Cost(forwards=descents(self.num_steps, self.length, self.repeats))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        seen, sigmas = Coordinates.of(problem, prior), self.schedule.levels(prior.scale)
        x = x0 = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s, new in time_travel(sigmas, self.length, self.repeats):
            if sigma_s > sigma_t:
                x = x0 + sigma_s * rng.normal()
                continue
            x0 = prior.denoise(x, sigma_t)
            x = seen.step(x, x0, sigma_t, sigma_s, self.eta, 1.0, rng.normal())
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            if new:
                yield Step(x, x0, sigma_s)
