"""Score-based generation given a part of the image: predictor, corrector, and projection after each.

Paper       Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021,
            arXiv:2011.13456, Algorithms 2 and 4, appendix I.2 (inpainting and colourisation); Song et al., Solving
            Inverse Problems in Medical Imaging with Score-Based Generative Models, ICLR 2022, arXiv:2111.08005,
            for measured coordinates of an orthonormal transform (MRI).
Target      p(x | y), approximately: what is put in does not know the rest. The predictor alone stays biased at any
            number of levels; with more correctors the law becomes exact, noise of y included, as each draws from the
            joint law of both parts at its level. On Gaussian images of independent pixels, blurred, the variance is
            0.99 of the truth by default, and the mean off by 0.03 standard deviations.
Needs       an operator with its singular value decomposition, and Gaussian noise.
Cost        per step and sample: 1 forward and `corrections` more.
Coordinates the paper's, variance exploding. Of its images in [0, 1] nothing has a unit.
Departures  singular directions in the place of pixels, rotated colours or frequencies. y has noise: a direction is held
            with the noise that takes it from that of its measurement up to the level; below it is free, and drawn to y
            by the corrector; the last step ends at a misfit near 1, `moves.explained`; without noise that is the
            papers' rule. The authors' code takes the noisy image outside the mask in the end. The step of the corrector
            is 2 (snr sigma)^2, which theirs, 2 (snr |z| / |score|)^2 with norms that are means over the batch, comes to
            where the score is that of noise; of few pixels that ratio has no mean. The start is the prior's mean plus
            noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from invdiff.ranges import Positive, WholeNumber
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step, explained
from invdiff.samplers.projection.coordinates import Coordinates
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class ScoreSDE(Sampler):
    """Predictor and corrector steps, each followed by a projection onto the noised measurement.

    Energy score x 1000 of digits, inpainting, super-resolution, blur: 51, 63, 30; with snr 0.5 56, 71, 29; with 25
    levels of three correctors each 51, 64, 31. The defaults are invdiff's own, for fewer calls;
    `experiment=paper/scoresde_...` has the paper's.

    schedule     noise levels; published 2000, evenly spaced in the logarithm
    corrections  Langevin steps at each level; published 1
    snr          their length: the step is 2 (snr sigma)^2; published 0.16 (0.075 on 256x256 pixels)
    predictor    `ancestral`, or `reverse_diffusion` (published), noisier where levels are far apart
    """

    requires = Needs(linear=True, spectral=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=50, sigma_max=5.0, sigma_min=0.005)
    corrections: WholeNumber = 1
    snr: Positive = 0.7
    predictor: Literal["ancestral", "reverse_diffusion"] = "ancestral"

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * (1 + self.corrections))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        seen, sigmas = Coordinates.of(problem, prior), self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            for _ in range(self.corrections):
                score, noise = prior.score(x, sigma_t), rng.normal()
                size = 2 * (self.snr * sigma_t) ** 2
                x = seen.replaced(x + size * score + (2 * size) ** 0.5 * noise, sigma_t, rng.normal(), size)
            x0 = prior.denoise(x, sigma_t)
            if self.predictor == "ancestral" or sigma_s == 0:
                x = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal())
            else:
                fresh = sigma_t**2 - sigma_s**2
                x = x + fresh / sigma_t**2 * (x0 - x) + fresh**0.5 * rng.normal()
            x = seen.replaced(x, sigma_s, rng.normal())
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            yield Step(x, x0, sigma_s)
