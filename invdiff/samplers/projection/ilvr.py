"""Iterative latent variable refinement (ILVR): unconditional steps, projected onto the noised measurement.

Paper       Choi et al., ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models, ICCV 2021,
            arXiv:2108.02938, Algorithm 1.
Target      p(x | y), approximately: what is put back does not know the rest. Biased at any number of levels:
            on Gaussian images of independent pixels, blurred, the variance is 0.62 of the truth by default.
Needs       a linear operator.
Cost        per step and sample: 1 forward; of the operator a call, an adjoint and a `solve`, or 30 iterations of
            conjugate gradients. No VJP.
Form        the paper's x + phi(y_s) - phi(x), with phi a low-pass filter and y_s the noised reference image, for any
            linear operator: phi = A^+ A, the projection onto what A sees, so that phi(y_s) = A^+ (y + s A n). It is
            `mcg` without the gradient through the network.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), with h = `prior.unit`; steps are the same in x.
Departures  the paper's phi halves and doubles an image by bicubic resizing, which is no projection: its samples
            fit the reference in part only. Its aim is variety, ours the data. y has noise: a step that removes the
            variance v of x puts it back by the share v / (v + sigma_y^2), so that y does not count once for every
            level; noise that is not Gaussian counts with its mean variance. The last step ends at a misfit near 1,
            `moves.explained`; without noise that is the projection. The start is the prior's mean plus noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from invdiff.integrators import ddim_step
from invdiff.ranges import NotNegative, Share
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained, mean_variance, put_back
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class ILVR(Sampler):
    """Iterative refinement: unconditional steps, each projected onto the noised measurement; linear operators.

    Energy score x 1000 of digits, inpainting, super-resolution, blur, CT: 80, 64, 32, 18; 20 levels 82, 68, 32, 19. The
    defaults are invdiff's own; `experiment=paper/ilvr_...` has the paper's.

    schedule  noise levels; published 1000, or 250 of them
    eta       noise of a step: 1 is the ancestral step (published), 0 none
    down_to   noise level, image units, below which nothing is put back; published 0 (the full range)
    """

    requires = Needs(linear=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=50, sigma_max=5.0, sigma_min=0.005)
    eta: Share = 1.0
    down_to: NotNegative = 0.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = prior.denoise(x, sigma_t)
            x, noise = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal()), rng.normal()
            if sigma_s >= self.down_to * prior.scale:
                x = put_back(problem, x, sigma_s, noise, mean_variance(problem) / (sigma_t**2 - sigma_s**2))
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            yield Step(x, x0, sigma_s)
