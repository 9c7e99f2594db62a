"""DDIM: steps of first order, with a share of the noise of the ancestral step.

Paper   Song et al., Denoising Diffusion Implicit Models, ICLR 2021, arXiv:2010.02502, equation 12, in
        variance-exploding coordinates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from invdiff.integrators.base import Denoiser, Integrator, Noise, Walked
from invdiff.ranges import Share


@dataclass(frozen=True, kw_only=True)
class DDIM(Integrator):
    """First order: eta = 1 is the ancestral step of DDPM, eta = 0 Euler's on the flow.

    eta  share of the noise of the ancestral step
    """

    eta: Share = 1.0

    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        for sigma, after in pairwise(sigmas):
            x0 = denoise(x, sigma)
            x = ddim_step(x, x0, sigma, after, self.eta, noise() if self.eta > 0 else 0.0)
            yield x, x0, after


def ddim_step(
    x: Tensor, x0: Tensor, sigma: float | Tensor, sigma_next: float | Tensor, eta: float, noise: Tensor | float
) -> Tensor:
    """From sigma to sigma_next: eta times the noise of the ancestral step, the rest kept from x.

    At sigma_next = 0 it returns x0. Both levels may be one for every pixel, broadcastable to x.
    """
    fresh = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    return x0 + (sigma_next**2 - fresh**2) ** 0.5 / sigma * (x - x0) + fresh * noise
