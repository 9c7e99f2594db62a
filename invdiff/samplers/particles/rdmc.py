"""Reverse diffusion Monte Carlo (RDMC): the reverse process of the posterior itself, whose denoiser is found by chains.

Paper       Huang, Dong, Hao, Ma and Zhang, Reverse Diffusion Monte Carlo, ICLR 2024, arXiv:2307.02037, Algorithm 1.
Target      p(x | y), exactly as the chains get longer and `smoothing` goes to 0: nothing about the likelihood at noise
            is guessed. A reference where no closed form exists. On a Gaussian of 16 pixels the mean is right and the
            variance 0.9 to 1.2 of the truth at default settings.
Needs       a differentiable operator without steps; any noise. No network VJP.
Cost        per step and chain: `inner` forwards, as many calls of the operator and products with its Jacobian, and four
            times as much of the operator for the step size.
Form        at level s the clean image is N(x0; x, s^2) p(x0) p(y | x0), whose draws a chain from those of the level
            above gives. The score of p is the network's at the level `smoothing` s, at least the last one.
Departures  the mean of `chains` draws takes the place of the denoiser in an ancestral step, which with one chain is the
            exact step of the reverse process, and loses the spread of the draws with more; the paper integrates with
            means of many. Chains are of Langevin or damped dynamics with measured steps and no error on Gaussians
            (`chains.splitting`), theirs unadjusted Langevin; and go on from level to level, theirs begin from
            importance samples. The target's score is given there; the smoothed one of a network is ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.ranges import Count, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.chains import Conditional, bounded, splitting, stiffness
from invdiff.samplers.moves import ancestral_step
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row


@dataclass(frozen=True, kw_only=True)
class RDMC(Sampler):
    """Reverse diffusion Monte Carlo: ancestral steps with clean images drawn by chains from prior and likelihood.

    schedule   noise levels, image units
    chains     behind each sample, averaged
    inner      steps of each chain at each level
    momentum   share of its velocity that a step keeps; 0 is Langevin
    smoothing  the prior's score in a chain is that of this share of the level; published 0, the last level throughout.
               2 digits, 30 % of the pixels: energy score x 1000 70 with 0.3, 47 with 0.15, 68 with 0.08
    """

    requires = Needs(differentiable=True, smooth=True)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=2.0, sigma_min=0.05), "inner": 6}

    schedule: Schedule = EDM(steps=40, sigma_max=10.0, sigma_min=0.02)
    chains: Count = 1
    inner: Count = 20
    momentum: Share = 0.8
    smoothing: Share = 0.15

    @property
    def particles(self) -> int:
        return self.chains

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.chains * self.inner * self.num_steps)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        def noise() -> Tensor:
            return rng.normal((self.chains, *problem.image_shape)).flatten(0, 1)

        sigmas = self.schedule.levels(prior.scale)
        many = problem.select(torch.arange(problem.images).repeat_interleave(self.chains))
        x, probe = prior.start(sigmas[0], rng.normal()), noise()
        draws = prior.start(prior.unit / 2, noise())
        for sigma, after in pairwise(sigmas):
            level = max(self.smoothing * sigma, sigmas[-2])
            target = Conditional(many, x.repeat_interleave(self.chains, 0), sigma)
            steepest, probe = stiffness(target.data_gradient, draws, probe, 0.01 * prior.scale)
            # A quarter of what is stable.
            eta = per_row(1 / (steepest + 1 / sigma**2 + 1 / level**2), x)

            def slope(x0: Tensor, target: Conditional = target, level: float = level, eta: Tensor = eta) -> Tensor:
                return bounded(target.gradient(x0), eta) - prior.score(x0, level)

            draws = splitting(draws, slope, eta, self.momentum, self.inner, noise)
            x0 = draws.unflatten(0, (-1, self.chains)).mean(1)
            x = ancestral_step(x, x0, sigma, after, rng.normal())
            yield Step(x, x0, after)
