"""Total variation restoration: the image of the least total variation that explains y, without a network.

Paper       Rudin, Osher and Fatemi, Nonlinear Total Variation Based Noise Removal Algorithms, Physica D 1992;
            the iteration is that of `primal_dual`. Space-variant: Morotti et al., Space-Variant Total Variation Boosted
            by Learning Techniques in Few-View Tomographic Imaging, arXiv:2404.16900.
Target      one image, no posterior: the minimiser of |y - A x|^2 / (2 sigma_y^2) + weight TV(x), the mode of a
            posterior under a prior without a network. Samples differ by their start alone, as far as the iterations
            have not converged, and their spread is no uncertainty. Where A and TV both leave a direction free, as the
            brightness that no measurement sees, the start remains, near the centre of the prior.
Needs       a linear operator and Gaussian noise. No network: of the prior it takes the centre and the range alone.
Cost        per step and sample: of the operator a call, an adjoint and a `solve`, or 30 iterations of conjugate
            gradients.
Coordinates the paper's own, with lambda = 1 / (weight sigma_y^2).
Departures  the paper's weight is chosen by hand for each noise level; this one is a property of images, so that the
            weight against |y - A x|^2 / 2 is weight sigma_y^2. TV of all channels together. Ours is `ratio`. The
            space-variant weights are the paper's with p = 0 and eta the mean of |D x|, divided by their mean; the first
            image is that of TV, the paper's best ones come from a network trained for the task.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.ranges import Count, Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.baselines.differences import NORM_SQUARED, back, differences, within
from invdiff.samplers.baselines.primal_dual import Penalty, descend


@dataclass(frozen=True, kw_only=True)
class TV(Sampler):
    """Total variation restoration without a network; one image, no posterior; linear operators, Gaussian noise.

    iterations  of the primal-dual algorithm
    weight      of TV in the negative logarithm of the posterior, for images of range 1: their differences have a mean
                of about 2 / weight; the weight against |y - A x|^2 / 2 is this times sigma_y^2. The default is best for
                digits in inpainting and blur; 5 gains 2 dB in CT and 0.4 dB in MRI, and loses 1 dB in blur
    ratio       step of the image, for images of range 1, over that of the dual field, for weight 1; their product is
                1 / |D|^2
    space_variant  the second half of the iterations has a weight for each pixel, low where the first half found edges.
                Digits lose 0.8 dB in inpainting and 0.6 in blur; the paper's gains are in CT
    """

    requires = Needs(linear=True, gaussian_noise=True, images=True)
    per_step = Cost(forwards=0)
    small: ClassVar = {"iterations": 20}

    iterations: Count = 300
    weight: Positive = 2.0
    ratio: Positive = 0.1
    space_variant: bool = False

    @property
    def num_steps(self) -> int:
        return self.iterations

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        start = prior.start(0.01 * prior.scale, rng.normal())
        first = self.iterations // 2 if self.space_variant else self.iterations
        step = self.ratio * prior.scale**2 / self.weight
        for x in descend(problem, start, total_variation(self.weight / prior.scale), step, first):
            yield Step(x, x, 0.0)
        if self.space_variant:
            weighted = total_variation(self.weight / prior.scale * flatness(x))
            for found in descend(problem, x, weighted, step, self.iterations - first):
                yield Step(found, found, 0.0)


def total_variation(weight: float | Tensor) -> Penalty:
    """The weight of each pixel, shaped to multiply a dual field, times the norm of the differences there."""
    return Penalty(differences, back, lambda p: within(p, weight), NORM_SQUARED)


def flatness(x: Tensor) -> Tensor:
    """1 / sqrt(1 + (|D x| / m)^2) of each pixel, m the mean of |D x|, over its mean: (R, 1, 1, H, W)."""
    size = torch.linalg.vector_norm(differences(x), dim=(1, 2), keepdim=True)
    typical = size.mean((3, 4), keepdim=True).clamp(min=1e-30)
    found = 1 / (1 + (size / typical) ** 2).sqrt()
    return found / found.mean((3, 4), keepdim=True)
