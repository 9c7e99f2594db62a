"""P2L: the embedding of the text is tuned to the data at each level; codes follow the data and stay codes of images.

Paper       Chung, Ye, Milanfar and Delbracio, Prompt-tuning Latent Diffusion Models for Inverse Problems, ICML 2024,
            arXiv:2310.01110, Algorithm 1.
Target      none that is known: the likelihood is taken at E[z0 | z], and the text that suits y best stands for the
            given one. On a Gaussian image of 16 pixels with an exact codec the variances are 0.09 to 1.1 times the
            truth, 0.57 on average, and means up to 0.5 standard deviations off, at the default settings.
Needs       a latent prior with an embedding of text or one that was learned (`Prior.embedding`), a linear operator and
            Gaussian noise.
Cost        per step and sample: `tuned` + 1 forwards and VJPs, and as many decodings, calls of the operator and
            products with both Jacobians; every `every` steps a decoding, an encoding and a `solve` more.
Coordinates the step of codes is as in `psld`; codes of images at each `every` step as in `latino`. The embedding has no
            unit: Adam moves each number by about `learning_rate`.
Departures  the authors published no code; the loss |y - A decode(z0)| of the embedding, its Adam and the order of the
            steps are those of the re-implementation by the authors of LATINO. The step of codes is as long as the noise
            of y warrants (`moves.longest_step`), theirs a number; the image is drawn to y by the noise of y, theirs
            with a weight of 1 on [-1, 1]; steps with noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import hypot
from typing import ClassVar, cast

import torch
from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.latent import coded
from invdiff.ranges import Count, NotNegative, Positive, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.latent.latino import drawn_to_data
from invdiff.samplers.moves import longest_step
from invdiff.samplers.optimisers import Adam
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_gradient, row_norm, row_vjp


@dataclass(frozen=True, kw_only=True)
class P2L(Sampler):
    """Prompt tuning: the text that suits the data, guidance on codes, and images that have codes; linear operators.

    The defaults are invdiff's own; `experiment=paper/p2l_...` has the authors'.

    schedule       noise levels; published the 1000-step chain of the prior
    tuned          steps of the embedding at each level; published 1 to 5
    learning_rate  of its Adam; published 1e-4
    rate           of the step of codes: 1 is all that y warrants
    every          levels from one encoding of the image to the next; published 8
    width          of the image about decode(z0), in units of half the range of images
    eta            share of the noise of the ancestral step; published 0
    """

    requires = Needs(codec=True, embedding=True, linear=True, gaussian_noise=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=3.0, sigma_min=0.02), "every": 3}

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.01)
    tuned: Count = 1
    learning_rate: Positive = 1e-4
    rate: NotNegative = 1.0
    every: Count = 8
    width: Positive = 1.0
    eta: Share = 1.0

    def expected_cost(self) -> Cost:
        calls = self.num_steps * (self.tuned + 1)
        return Cost(forwards=calls, vjps=calls)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        z = prior.start(sigmas[0], rng.normal())
        embedding = cast(Tensor, prior.embedding).to(z).expand(len(z), -1, -1)
        adam = Adam(embedding, self.learning_rate, betas=(0.9, 0.999))

        def misfit(z0: Tensor) -> Tensor:
            return row_norm(problem.residual(z0))

        for k, (sigma_t, sigma_s) in enumerate(pairwise(sigmas), 1):
            for _ in range(self.tuned):
                gradient = row_gradient(lambda e: misfit(prior.denoise_with(z, sigma_t, e)), embedding)  # noqa: B023
                embedding = adam.step(embedding, gradient)
            z0, pull = row_vjp(lambda z: prior.denoise_with(z, sigma_t, embedding), z)  # noqa: B023
            value, product = row_vjp(misfit, z0)
            slope = product(torch.ones_like(value))
            gradient = pull(slope)
            length = longest_step(problem, sigma_t, z0, value, slope, gradient, prior.scale)
            if k % self.every == 0:
                z0 = drawn_to_data(coded(problem), z0, self.width * sigma_t / hypot(prior.unit, sigma_t))
            z = ddim_step(z, z0, sigma_t, sigma_s, self.eta, rng.normal())
            z = z - per_row(self.rate * length, z) * gradient
            yield Step(z, z0, sigma_s)
