"""Posterior sampling with latent diffusion (PSLD): guidance on codes, and a term that glues measured to other pixels.

Paper       Rout et al., Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models,
            NeurIPS 2023, arXiv:2307.00619, Algorithm 1.
Target      none that is known: the likelihood is taken at E[z0 | z], as in DPS, and the gluing makes codes of the
            autoencoder's images more likely than others. On a Gaussian image of 16 pixels with an exact codec the
            variances are 0.0004 to 1.07 times the truth, 0.55 on average, and means up to 0.5 standard deviations off,
            at the default settings.
Needs       a latent prior and a linear operator.
Cost        per step and sample: 1 forward, 2 VJPs, 2 decodings, 1 encoding and their VJPs, and with `bounded` 2
            decodings more; a call of the operator and a product with its transpose for each.
Coordinates the paper's z = (x - centre) / (h sqrt(1 + (sigma / h)^2)), with h = `prior.unit`; its images live in
            [-1, 1]. With C = sqrt((1 + (sigma_t / h)^2) (1 + (sigma_s / h)^2)) and u image units per unit of
            [-1, 1], its update is x_s -= C (omega h^2 / u grad |r| + gamma h grad |g|) here.
Departures  r is y - A decode(z0), the authors' code adds noise of y to A decode(z0) at every step; A^T is the adjoint,
            theirs the identity for blurs and masks; codes are the encoder's mean, theirs drawn. `bounded`: omega over
            the norm of the operator and a step no longer than the noise of y warrants (`moves.longest_step`), A^T over
            the square of that norm, and steps with noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.latent import coded
from invdiff.priors import Codec
from invdiff.ranges import NotNegative, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import clean_estimate, longest_step, norm_about, operator_norm
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_norm, row_vjp


@dataclass(frozen=True, kw_only=True)
class PSLD(Sampler):
    """Latent guidance with gluing: codes follow the data and stay codes of images; linear operators.

    The defaults are invdiff's own; `experiment=paper/psld_...` has the authors'.

    schedule  noise levels; published the 1000-step chain of the prior
    omega     weight of the gradient of |y - A decode(z0)|; published 1 for Stable Diffusion, 0.1 to 0.9 for LDM
    gamma     weight of the gradient of |encode(A^T y + (I - A^T A) decode(z0)) - z0|; published 0.1
    step      of the data term: `bounded` by the noise of y, or as `published`
    eta       share of the noise of the ancestral step; published 0
    """

    requires = Needs(codec=True, linear=True, differentiable_prior=True)
    per_step = Cost(forwards=1, vjps=2)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.01)
    omega: NotNegative = 1.0
    gamma: NotNegative = 0.1
    step: Literal["bounded", "published"] = "bounded"
    eta: Share = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        image, codec = coded(problem).of_images, coded(problem).codec
        half = prior.unit
        low, high = codec.value_range
        omega = self.omega * half**2 * 2 / (high - low)
        bounded = self.step == "bounded"
        norm = operator_norm(problem, prior) if bounded else torch.ones_like(problem.y.real.flatten(1)[:, 0])
        middle = torch.tensor((low + high) / 2)
        damping = norm_about(image, middle, high - low) ** -2 if bounded else norm

        def misfit(z0: Tensor) -> Tensor:
            return row_norm(problem.residual(z0))

        z = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            z0, pull = row_vjp(clean_estimate(prior, sigma_t, clip=False), z, again=True)
            value, product = row_vjp(misfit, z0)
            slope = product(torch.ones_like(value))
            gradient = pull(slope)
            chain = sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2))
            weight = chain * omega / norm
            if bounded:
                longest = longest_step(problem, sigma_t, z0, value, slope, gradient, prior.scale)
                weight = torch.minimum(weight, longest)
            apart, product = row_vjp(lambda z0: unglued(image, codec, z0, damping), z0)
            glue = pull(product(torch.ones_like(apart)))
            z = ddim_step(z, z0, sigma_t, sigma_s, self.eta, rng.normal())
            z = z - per_row(weight, z) * gradient - chain * self.gamma * half * glue
            yield Step(z, z0, sigma_s)


def unglued(image: InverseProblem, codec: Codec, z0: Tensor, damping: Tensor) -> Tensor:
    """|encode(decode(z0) + damping A^T (y - A decode(z0))) - z0| of each row, (R,): 0 where codes explain y."""
    decoded = codec.decode(z0)
    back = image.linear_operator.adjoint(image.residual(decoded))
    return row_norm(codec.encode(decoded + per_row(damping, back) * back) - z0)
