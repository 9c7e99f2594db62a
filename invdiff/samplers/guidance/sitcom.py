"""Step-wise triple-consistent sampling (SITCOM): at each level the network's input is moved until its output fits y.

Paper       Alkhouri et al., SITCOM: Step-wise Triple-Consistent Diffusion Sampling for Inverse Problems, ICML 2025,
            arXiv:2410.04479, Algorithm 1.
Target      none that is known: three conditions hold at each level. The clean estimate is an output of the network
            (backward consistency), it fits y to the noise (measurement consistency), and the next x is that estimate
            and new noise of its level (forward consistency). Images that fit, spread by the noise of the levels; biased
            at any number of steps, on Gaussians too: on a blurred one of 16 pixels the variances are 0.4 to 1.6 of the
            truth and means up to 1.4 standard deviations off, at the default settings.
Needs       a differentiable operator and a differentiable prior; nonlinear operators and any noise.
Cost        per step and sample: `iterations` VJPs and one forward more than that; of the operator a call and a product
            with its Jacobian in each iteration. Rows that fit early stay as they are, and cost as much.
Form        v = x, then `iterations` steps of Adam on misfit(D(v)) + `penalty` |x - v|^2, until the misfit is 1;
            x_s = D(v) + sigma_s n.
Coordinates the paper's z = (x - centre) / sqrt(h^2 + sigma^2), with h = `prior.unit`: a step of Adam has the length
            learning_rate in z. The misfit is the mean of squares over their variance, and |x - v|^2 is of z.
Departures  the misfit stops each row by itself, theirs a batch of one image. Their code adds 0.001 to the noise level,
            which is in the unit of y, and clamps the clean estimate to the value range, which leaves saturated pixels
            without a gradient. Ours starts from noise about the centre of the prior.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.ranges import Count, NotNegative, Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import clean_estimate
from invdiff.samplers.optimisers import Adam
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_vjp


@dataclass(frozen=True, kw_only=True)
class SITCOM(Sampler):
    """Triple consistency: Adam on the input of the network until its output fits the data; any differentiable operator.

    The defaults are invdiff's own; `experiment=paper/sitcom_...` has the authors'.

    schedule       noise levels; published 20 of the DDPM grid
    iterations     steps of Adam at each level, a VJP each; published 20 to 40
    learning_rate  of Adam, of images on [-1, 1]; published 0.01 to 0.02
    penalty        weight of the distance to where x began; published 0 or 1e-4 on the sum of squares
    """

    requires = Needs(differentiable=True, smooth=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=5, sigma_max=10.0, sigma_min=0.02), "iterations": 5}

    schedule: Schedule = EDM(steps=20, sigma_max=10.0, sigma_min=0.01)
    iterations: Count = 20
    learning_rate: Positive = 0.02
    penalty: NotNegative = 0.0

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * (self.iterations + 1), vjps=self.num_steps * self.iterations)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = prior.denoise(self.consistent(problem, prior, x, sigma_t), sigma_t)
            x = x0 + sigma_s * rng.normal()
            yield Step(x, x0, sigma_s)

    def consistent(self, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        """v near x for which the misfit of D(v) is 1 or less, as far as the iterations go, (R, C, H, W)."""
        size = sqrt(prior.unit**2 + sigma**2)
        adam, v = Adam(x, self.learning_rate * size, betas=(0.9, 0.999)), x
        for _ in range(self.iterations):
            x0, pull = row_vjp(clean_estimate(prior, sigma, clip=False), v)
            misfit, product = row_vjp(problem.misfit, x0)
            gradient = pull(product(torch.ones_like(misfit))) + 2 * self.penalty / size**2 * (v - x)
            v = torch.where(per_row(misfit <= 1, v), v, adam.step(v, size * gradient))  # NaN moves on, and is seen
        return v
