"""RePaint: unconditional steps, the known part pasted in at every level, and resampling.

Paper       Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, CVPR 2022,
            arXiv:2201.09865, Algorithm 1, with the jumps of appendix B.
Target      p(x | y), approximately: what is pasted in does not know the rest. Biased without resampling at any number
            of levels; repeated down and up steps between two levels draw nearer to the joint law of known and unknown.
            Biased: on Gaussian images of independent pixels, blurred, the variance is 0.67 of the truth by default.
Needs       an operator with its singular value decomposition (a mask, as published, is one), and Gaussian noise.
Cost        per step and sample: 1 forward, many times more with `repeats`.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), with h = `prior.unit`; steps are the same in x.
Departures  singular directions in the place of pixels, which are those of a mask. y has noise: a direction is held with
            the noise that takes it from that of its measurement up to the level, and is free below, where resampling
            draws it to y; the last step ends at a misfit near 1, `moves.explained`; without noise that is the paper's
            rule. One draw of noise for a jump of several levels.
            The start is the prior's mean plus noise. The variance of a step is fixed ("fixed-small"), the authors'
            network learns it; they clamp the clean estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from invdiff.integrators import ddim_step
from invdiff.ranges import Count, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import descents, explained, time_travel
from invdiff.samplers.projection.coordinates import Coordinates
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class RePaint(Sampler):
    """Unconditional steps with the measured part pasted in, repeated until both parts fit to each other.

    Energy score x 1000 of digits, inpainting, super-resolution, blur: 53, 68, 32; 100 levels without resampling, as
    many calls: 80, 71, 30; 25 levels, jumps of 4, 121 calls: 55, 67, 32. The defaults are invdiff's own, for fewer
    calls; `experiment=paper/repaint_...` has the paper's.

    schedule  noise levels
    length    levels of a jump back up; published 10 of 250
    repeats   how often the levels of a jump are walked; published 10. 1: plain replacement
    eta       noise of a step: 1 is the ancestral step (published), 0 none
    """

    requires = Needs(linear=True, spectral=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02), "length": 3, "repeats": 2}

    schedule: Schedule = EDM(steps=20, sigma_max=5.0, sigma_min=0.005)
    length: Count = 1
    repeats: Count = 5
    eta: Share = 1.0

    def expected_cost(self) -> Cost:
        return Cost(forwards=descents(self.num_steps, self.length, self.repeats))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        seen, sigmas = Coordinates.of(problem, prior), self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s, new in time_travel(sigmas, self.length, self.repeats):
            if sigma_s > sigma_t:
                x = x + (sigma_s**2 - sigma_t**2) ** 0.5 * rng.normal()
                continue
            x0 = prior.denoise(x, sigma_t)
            x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal())
            x = seen.replaced(x, sigma_s, rng.normal(), 0.0 if new else sigma_t**2 - sigma_s**2)
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            if new:
                yield Step(x, x0, sigma_s)
