"""Variational score prior: a Gaussian of independent pixels, fitted under the probability by the flow of the prior.

Paper       Feng et al., Score-Based Diffusion Models as Principled Priors for Inverse Imaging, ICCV 2023,
            arXiv:2304.11751, equation 7: the probability of an image by the flow of the prior, and the least
            Kullback-Leibler divergence of a family from the posterior.
Target      the Gaussian N(mu, diag(s^2)) of least divergence KL(q, p(x | y)), as updates and levels of the flow grow:
            for Gaussian images its mean is the posterior mean and s^2 one over the diagonal of the posterior's
            precision, which is too narrow where pixels depend on each other. Of several modes it takes one. On 4 pixels
            with 3 measured numbers the mean is off by 0.15 of its standard deviation at the default settings.
Needs       a differentiable operator without steps and a differentiable prior; nonlinear operators and other noise
            allowed; the operator's first guess, where there is one, as its start.
Cost        per update and sample: 4 forwards and 4 VJPs between two levels of the flow, 1 call of the operator and 1
            product with its Jacobian. By default that is 3,600 forwards and as many VJPs for a sample: small images.
Form        Adam on mu and log s along the gradient of nll(x) - log p(x) - sum log s at x = mu + s e, with new normal
            numbers e in each update; the rate falls linearly to 0. The probability is that at the lowest level.
Departures  the authors fit a normalising flow (RealNVP) and take steps of Dormand and Prince with 16 probes; ours are a
            Gaussian, Heun's steps and one probe, by differences, which takes no derivative of second order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.priors.ode import flow_log_prob
from invdiff.ranges import Count, Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.optimisers import Adam
from invdiff.samplers.variational.reddiff import start
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import row_gradient


@dataclass(frozen=True, kw_only=True)
class ScorePriorVI(Sampler):
    """Variational Gaussian under the exact probability of the prior: thousands of calls, small images.

    schedule       noise levels of the flow that gives the probability, image units
    updates        steps of Adam; published 20,000 with a normalising flow
    learning_rate  of Adam at the start: of the mean, image units, and of the logarithm of the standard deviation
    """

    requires = Needs(differentiable=True, smooth=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=4, sigma_max=2.0, sigma_min=0.05), "updates": 8}

    schedule: Schedule = EDM(steps=10, sigma_max=5.0, sigma_min=0.02)
    updates: Count = 100
    learning_rate: Positive = 0.05

    @property
    def num_steps(self) -> int:
        return self.updates

    def expected_cost(self) -> Cost:
        calls = 4 * (self.schedule.steps - 1) * self.updates
        return Cost(forwards=calls, vjps=calls)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        levels = self.schedule.levels(prior.scale)[-2::-1]
        mu = start(problem, prior)
        log_std = torch.full_like(mu, log(0.1 * prior.scale))
        adams = Adam(mu, 0.0), Adam(mu, 0.0)
        for i in range(self.updates):
            noise, probe = rng.normal(), rng.normal().sign()
            fluctuation = log_std.exp() * noise
            gradient = self._gradient(problem, prior, mu + fluctuation, levels, probe)
            for adam, unit in zip(adams, (prior.scale, 1.0), strict=True):
                adam.learning_rate = self.learning_rate * unit * (1 - i / self.updates)
            mu = adams[0].step(mu, gradient)
            log_std = adams[1].step(log_std, gradient * fluctuation - 1)
            if i + 1 < self.updates:
                yield Step(mu, mu, levels[0])
        yield Step(mu + log_std.exp() * rng.normal(), mu, 0.0)

    def _gradient(self, problem: InverseProblem, prior: Prior, x: Tensor, levels: list[float], probe: Tensor) -> Tensor:
        """Of minus the logarithm of the posterior density at x."""
        return problem.nll_gradient(x) - row_gradient(lambda x: flow_log_prob(prior, x, levels, probe), x)
