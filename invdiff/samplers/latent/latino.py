"""LATINO: decode the denoised codes, draw the image to the data in closed form, encode it and add noise again.

Paper       Spagnoletti, Prost, Almansa, Papadakis and Pereyra, LATINO-PRO: LAtent consisTency INverse sOlver with
            PRompt Optimization, ICCV 2025, arXiv:2503.12615, Algorithm 1.
Target      none that is known: each step draws the image to the minimum of |y - A x|^2 / (2 sigma_y^2) +
            |x - decode(z0)|^2 / (2 nu^2), a mode where the exact step is a draw. On a Gaussian image of 16 pixels with
            an exact codec the variances are 0.37 to 0.48 of the truth, and means up to 0.1 standard deviations off, at
            the default settings.
Needs       a latent prior, a linear operator and Gaussian noise; a prior without gradients.
Cost        per step and sample: 1 forward, 1 decoding, 1 encoding, a `solve` and 2 calls of the operator.
Coordinates the paper's variance of the image given z_t is delta (1 - abar) on [-1, 1], h = `prior.unit` and
            abar = 1 / (1 + (sigma / h)^2): nu = width u sigma / (h^2 + sigma^2)^(1/2), u image units per unit of
            [-1, 1], and width = delta^(1/2).
Departures  theirs is a consistency model (DMD2 of SDXL, or Stable Diffusion with the LCM adapter), which maps z to a
            draw; ours any denoiser, whose D is a mean. delta is one number, in their code one of each problem and half
            of the levels, for some times |y - A x|. Images are not clipped, and codes start at the centre of the
            prior, theirs at the encoded A^T y. The prompt is not tuned (LATINO-PRO): see `p2l`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.latent import CodedProblem, coded
from invdiff.ranges import Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import proximal
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class LATINO(Sampler):
    """Splitting through the codec: linear operators, no VJP of network or decoder, few levels.

    The defaults are invdiff's own; `experiment=paper/latino_...` has the authors'.

    schedule  noise levels; published 8
    width     of the image about decode(z0) at high levels, in units of half the range of images
    """

    requires = Needs(codec=True, linear=True, gaussian_noise=True)
    per_step = Cost(forwards=1)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=1.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=30, sigma_max=10.0, sigma_min=0.01)
    width: Positive = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        z = prior.start(sigmas[0], rng.normal())
        for sigma, after in pairwise(sigmas):
            share = self.width * sigma / hypot(prior.unit, sigma)
            z0 = drawn_to_data(coded(problem), prior.denoise(z, sigma), share)
            z = z0 + after * rng.normal()
            yield Step(z, z0, after)


def drawn_to_data(problem: CodedProblem, z0: Tensor, width: float) -> Tensor:
    """Codes of the image that minimises |y - A x|^2 / sigma_y^2 + |x - decode(z0)|^2 / (width u)^2, (R, c, h, w)."""
    image, codec = problem.of_images, problem.codec
    low, high = codec.value_range
    rho = image.noise_variance / (width * (high - low) / 2) ** 2
    return codec.encode(proximal(image, codec.decode(z0), torch.as_tensor(rho)))
