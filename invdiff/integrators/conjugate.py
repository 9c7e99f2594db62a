"""A conjugate integrator: the flow of a Gaussian is taken out of that of the images, the rest is integrated.

Paper       Pandey, Rudolph and Mandt, Efficient Integrators for Diffusion Generative Models, ICLR 2024,
            arXiv:2310.07894, section 3 with B = 0 and the preconditioning of Karras et al. 2022; Zhang and Chen,
            arXiv:2204.13902, for the multistep form.
Form        with images of standard deviation c about 0, v = (D - c^2 / (c^2 + sigma^2) x) sqrt(c^2 + sigma^2)
            / (c sigma), the output of a network of Karras et al., and the angle a = arctan(sigma / c), the flow is
            d(x / sqrt(c^2 + sigma^2)) / da = -v. v is 0 for Gaussian images of that deviation: one step is exact.
Departures  the paper searches for a number B for each number of steps; here c is a property of the images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import atan, hypot
from typing import Literal

from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.integrators.deis import adams_bashforth
from invdiff.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class Conjugate(Integrator):
    """Multistep, one call a step: a polynomial through the last values of v, in the angle, is integrated exactly.

    order   1 to 3; the first steps are of a lower one
    spread  c, standard deviation of the images about the centre of the prior, for pictures in [0, 1]
    """

    order: Literal[1, 2, 3] = 2
    spread: Positive = 0.25

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        angles: list[float] = []  # the newest first, as the values of v
        found: list[Tensor] = []
        c = self.spread
        for sigma, after in pairwise(sigmas):
            x0, width = denoise(x, sigma), hypot(c, sigma)
            v = (x0 - (c / width) ** 2 * x) * width / (c * sigma)
            angles, found = [atan(sigma / c), *angles][: self.order], [v, *found][: self.order]
            weights = adams_bashforth(angles, atan(after / c))
            moved = x / width - sum(w * v for w, v in zip(weights, found, strict=True))
            x = x0 if after == 0 else hypot(c, after) * moved
            yield x, x0, after
