"""Plug-and-play restoration by half-quadratic splitting (DPIR).

Paper       Zhang et al., Plug-and-Play Image Restoration with Deep Denoiser Prior, TPAMI 2021, arXiv:2008.13751,
            Algorithm 1.
Target      one image, near the mode of p(x | y): samples differ by their start alone, and their spread is no
            uncertainty. On Gaussian images of independent pixels, blurred, it is off the posterior mean by 0.10
            standard deviations by default.
Needs       a linear operator and Gaussian noise.
Cost        per step and sample: 1 forward; of the operator a call, an adjoint and a `solve`, or 30 iterations of
            conjugate gradients, and 40 calls and Jacobian products before the first step for its norm.
Coordinates the paper's own, images in [0, 1].
Departures  starts from noise, theirs from y or its interpolation. The last level is the noise of y over the norm of the
            operator, the paper's for operators of norm 1, at most the first one; the first is higher than theirs.
            The result ends at a misfit near 1, `moves.explained`, theirs is the denoised image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from invdiff.ranges import Positive, Range
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained, operator_norm, proximal


@dataclass(frozen=True, kw_only=True)
class DPIR(Sampler):
    """Plug-and-play restoration in a few calls: fit the data, denoise, at falling levels; one image, no posterior.

    The defaults are invdiff's own; `experiment=paper/dpir_...` has the paper's.

    steps      denoising steps, their levels evenly spaced in the logarithm; published 8
    sigma_max  the first level, image units; published 0.19 (49 of 255)
    lam        weight of the denoised image against the data, sigma_y^2 / sigma^2 times it; published 0.23
    """

    requires = Needs(linear=True, gaussian_noise=True)
    small: ClassVar = {"steps": 6}

    steps: Annotated[int, Range(low=2)] = 8
    sigma_max: Positive = 1.0
    lam: Positive = 0.23

    @property
    def num_steps(self) -> int:
        return self.steps

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        top = self.sigma_max * prior.scale
        last = (problem.noise_variance.sqrt() / operator_norm(problem, prior)).clamp(max=top)  # (R,)
        x0 = prior.start(top, rng.normal())
        for k in range(self.steps):
            sigma = top * (last / top) ** (k / (self.steps - 1))
            x = proximal(problem, x0, self.lam * problem.noise_variance / sigma**2)
            x0 = prior.denoise(x, sigma)
            # The highest of all rows; NaN of one row must not hide the others.
            if k + 1 == self.steps:
                x0 = explained(problem, x0, prior.scale)
            yield Step(x0, x0, 0.0 if k + 1 == self.steps else float(sigma.nan_to_num().amax()))
