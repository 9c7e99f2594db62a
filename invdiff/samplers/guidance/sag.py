"""Symplectic adjoint guidance (SAG): the data pull through a short flow to the clean image, not through one call.

Paper       Pan et al., Towards Accurate Guided Diffusion Sampling through Symplectic Adjoint Method, CVPR 2024,
            arXiv:2312.12030, Algorithm 1.
Target      p(x | y), approximately: the likelihood is taken at X, where the flow leads x in a few steps of Euler, in
            place of DPS's posterior mean: an image, not an average of images. Not averaged over p(x0 | x) either:
            biased at any number of steps, on Gaussians too: on a blurred one of 16 pixels the variances are 0.16 to
            0.89 of the truth and means up to 0.4 standard deviations off, at the default settings.
Needs       a differentiable operator and a differentiable prior; nonlinear operators allowed.
Cost        per step and sample: 2 `calls` forwards, `calls` VJPs; of the operator a call, a product with its Jacobian,
            and 2 calls for the length of the step. Memory of one call of the network, whatever `calls`.
Coordinates the paper's z = (x - centre) / sqrt(h^2 + sigma^2), with h = `prior.unit`: its z_s -= rho grad_z |r| is
            x_s -= rho C grad_x |r|, with C = sqrt((1 + (sigma_t / h)^2) (1 + (sigma_s / h)^2)), as of DPS.
Departures  rho is no number but as long as the noise of y warrants, `moves.longest_step`; theirs is made for text to
            image: 0.2 of the strength of their text guidance, in units of the gradient, in the middle steps alone, each
            of which is taken twice. Ancestral steps, theirs are DDIM's. With a linear operator the last step ends at a
            misfit near 1, `moves.explained`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch

from invdiff.integrators.adjoint import flow
from invdiff.ranges import Count
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step, explained, longest_step, weighted_norm
from invdiff.schedules import EDM, Schedule, karras
from invdiff.shapes import per_row, row_vjp


@dataclass(frozen=True, kw_only=True)
class SAG(Sampler):
    """Symplectic adjoint guidance: gradients through a few steps of the flow; any differentiable operator.

    The defaults are invdiff's own: the paper has no inverse problems.

    schedule  noise levels
    calls     of the network from x to the clean image, at levels evenly spaced in sigma^(1/7) down to the lowest one of
              the schedule; published 4, and 1 is the gradient of DPS
    """

    requires = Needs(differentiable=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=10.0, sigma_min=0.02), "calls": 2}

    schedule: Schedule = EDM(steps=40, sigma_max=5.0, sigma_min=0.01)
    calls: Count = 3

    def expected_cost(self) -> Cost:
        calls = self.calls * (self.num_steps - 1) + 1  # the last level leads to the clean image in one call
        return Cost(forwards=2 * calls, vjps=calls)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            levels = [*karras(sigma_t, sigmas[-2], self.calls).tolist(), 0.0] if sigma_s > 0 else [sigma_t, 0.0]
            path, pull = flow(prior.denoise, x, levels)
            x0 = x + sigma_t / (sigma_t - levels[1]) * (path[0] - x)  # what the first call said
            misfit, product = row_vjp(lambda clean: weighted_norm(problem, problem.residual(clean)), path[-1])
            slope = product(torch.ones_like(misfit))
            gradient = pull(slope)
            longest = longest_step(problem, sigma_t, path[-1], misfit, slope, gradient, prior.scale)
            chain = sqrt((1 + (sigma_t / prior.unit) ** 2) * (1 + (sigma_s / prior.unit) ** 2))
            x = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal()) - per_row(chain * longest, x) * gradient
            if sigma_s == 0 and problem.operator.linear:
                x = explained(problem, x, prior.scale)
            yield Step(x, path[-1], sigma_s)
