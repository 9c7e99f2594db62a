"""Plug-and-play restoration along a diffusion: DiffPIR, as somebody outside the package writes it.

Paper       Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, arXiv:2305.08995, Alg. 1.
Target      p(x | y), approximately: a proximal step instead of a draw.
Needs       a linear operator and Gaussian noise.
Cost        per step and sample: 1 forward and 1 solve.
Departures  EDM noise levels instead of the DDPM grid; `sampler=diffpir` is the package's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from invdiff.ranges import Positive, Share
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row


@dataclass(frozen=True, kw_only=True)
class PlugAndPlay(Sampler):
    """Denoising with a proximal step on the data: plug-and-play restoration along a DDIM path.

    lam   weight of the prior in the proximal step
    zeta  share of new noise in the noise of a step: 0 deterministic, 1 fresh
    """

    requires = Needs(linear=True, gaussian_noise=True)
    small: ClassVar = {"schedule": EDM(steps=6, sigma_max=5.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=20, sigma_max=10.0, sigma_min=0.02)
    lam: Positive = 7.0
    zeta: Share = 0.3

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        operator, sigmas = problem.linear_operator, self.schedule.levels(prior.scale)
        data = operator.adjoint(problem.y)
        x = prior.start(sigmas[0], rng.normal())
        for sigma, sigma_next in pairwise(sigmas):
            rho = self.lam * problem.noise_variance / sigma**2
            x0 = operator.solve(data + per_row(rho, x) * prior.denoise(x, sigma), rho)
            noise = (1 - self.zeta) ** 0.5 * (x - x0) / sigma + self.zeta**0.5 * rng.normal()
            x = x0 + sigma_next * noise
            yield Step(x, x0, sigma_next)
