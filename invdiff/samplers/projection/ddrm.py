"""Denoising diffusion restoration models (DDRM).

Paper       Kawar et al., Denoising Diffusion Restoration Models, NeurIPS 2022, arXiv:2201.11793, equations 4 to 8.
Target      p(x | y), approximately: each singular direction is filled in by itself, and x0 given x is taken for D. What
            it draws depends on the number of levels: with more of them y is trusted too much. Biased: on
            Gaussian images of independent pixels, blurred, the variance is 0.27 of the truth by default.
Needs       an operator with its singular value decomposition, and Gaussian noise.
Cost        per step and sample: 1 forward; of the operator the decomposition alone.
Coordinates the paper's, variance exploding.
Departures  measured directions are those above the operator's cutoff; weaker ones count as unmeasured, where the
            authors' rule divides by them. The last step ends at a misfit near 1, `moves.explained`, theirs at the clean
            estimate. Levels follow Karras et al., the authors' 20 are even in DDPM's time. Their operator for blurs
            orders its singular values wrongly and loses a tap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from invdiff.ranges import Share
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained
from invdiff.samplers.projection.coordinates import Coordinates
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class DDRM(Sampler):
    """Restoration in the singular directions of the operator: each is held to its measurement above its own noise.

    The defaults are the authors' but for the levels; `experiment=paper/ddrm_...` has those. Energy score x 1000 of
    digits, inpainting, super-resolution, blur: 76, 73, 34; eta 1 71, 75, 34; eta 0.5 86, 71, 39; 100 steps 60, 66, 41.
    20 even levels from 1 to 0.05 are better on 8 digits (inpainting 72 to 67, MRI 66 to 62), worse on 2 brains (29.1 to
    29.7 of MRI).

    schedule  noise levels
    eta       share of new noise in directions without a measurement, or below its noise; published 0.85
    eta_b     share of the measurement in a direction above its noise; published 1
    """

    requires = Needs(linear=True, spectral=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=20, sigma_max=3.0, sigma_min=0.005, rho=3.0)
    eta: Share = 0.85
    eta_b: Share = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        seen, sigmas = Coordinates.of(problem, prior), self.schedule.levels(prior.scale)
        x = seen.replaced(prior.start(sigmas[0], rng.normal()), sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = prior.denoise(x, sigma_t)
            x = seen.step(x, x0, sigma_t, sigma_s, self.eta, self.eta_b, rng.normal())
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            yield Step(x, x0, sigma_s)
