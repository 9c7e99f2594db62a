"""Denoising diffusion for plug-and-play restoration (DiffPIR).

Paper       Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, CVPR workshops 2023,
            arXiv:2305.08995, Algorithm 1.
Target      p(x | y), approximately: x0 given x is taken for N(D, sigma^2 / lam I), and its mode given y for a draw.
            Biased: on Gaussian images of independent pixels, blurred, the variance is 0.32 of the truth by default.
Needs       a linear operator and Gaussian noise.
Cost        per step and sample: 1 forward; of the operator a call, an adjoint and a `solve`, or 30 iterations of
            conjugate gradients.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), with h = `prior.unit`; steps are the same in x. Here sigma_y
            and sigma have one unit; the authors' code has sigma_y for [0, 1] and sigma for [-1, 1]: its lam is 4 times
            that of here, and so is that of deepinv.
Departures  starts from noise, theirs from the noised first guess; the last step is the data step and ends at a misfit
            near 1, `moves.explained`, theirs is the clean estimate. Levels follow Karras et al., theirs are even in the
            square root of DDPM's time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from invdiff.ranges import Positive, Share
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained, proximal
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class DiffPIR(Sampler):
    """Plug-and-play restoration along a diffusion: denoise, fit the data, add noise again; linear operators.

    Energy score x 1000 of digits, inpainting, super-resolution, blur: 69, 75, 31; lam 0.25 69, 74, 35. The defaults are
    invdiff's own; `experiment=paper/diffpir_...` has the paper's.

    schedule  noise levels
    lam       weight of the clean estimate against the data, sigma_y^2 / sigma^2 times it; published 1 in the authors'
              code, which is 0.25 here
    zeta      share of new noise in the variance of the noise of a step; published 0.1 (deblurring), 0.25
              (super-resolution) and 1 (inpainting)
    """

    requires = Needs(linear=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=20, sigma_max=3.0, sigma_min=0.005, rho=3.0)
    lam: Positive = 0.5
    zeta: Share = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = proximal(problem, prior.denoise(x, sigma_t), self.lam * problem.noise_variance / sigma_t**2)
            noise = (1 - self.zeta) ** 0.5 * (x - x0) / sigma_t + self.zeta**0.5 * rng.normal()
            x = x0 + sigma_s * noise
            if sigma_s == 0:
                x = explained(problem, x, prior.scale)
            yield Step(x, x0, sigma_s)
