"""FLAIR: a mean that follows the flow and explains the data, noised in part by the flow's own noise.

Paper       Erbach, Narnhofer, Dombos, Schiele, Lenssen and Schindler, Solving Inverse Problems with FLAIR, NeurIPS
            2025, arXiv:2506.02680, Algorithm 1.
Target      none that is known: the mean of a variational Gaussian, pulled to D without a Jacobian and then optimised
            until it explains y. On a blurred Gaussian image of 16 pixels variances are 0.55 to 2.2 times the truth,
            0.95 on average, and means up to 1.0 standard deviations off, at the default settings.
Needs       a differentiable operator without steps; any noise, and a prior without gradients.
Cost        per step and sample: 1 forward, and up to `iterations` calls of the operator and products with its
            Jacobian.
Coordinates a flow's x_t = (1 - t) m + t n; x_t / (1 - t) is at level sigma = h t / (1 - t), h = `prior.unit`. With v
            the velocity and u = n - m, v - u = (m - D) / t: the step m - lambda (v - u) is m + (lambda / t) (D - m)
            here, and x_t + (1 - t) v, the end of the flow in noise, is (x - D) / sigma. D takes any denoiser.
Departures  lambda is `rate` times t, the paper's row without calibration; theirs is 1 over errors that were measured
            for Stable Diffusion 3. The misfit is optimised by Adam with a falling rate until it is that of the noise,
            five times longer at the end, and there `moves.explained` moves what a linear operator still leaves;
            theirs by gradient descent for a number of steps. The mean starts at the centre of the prior, theirs at
            A^T y, encoded, which is dark where little was measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

from invdiff.ranges import Count, Positive, Share
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained
from invdiff.samplers.optimisers import explained_by_descent
from invdiff.schedules import Schedule, Straight

# Of the descent: its last learning rate over the first, and how many times longer the one at the end is.
SLOWEST, LAST = 0.05, 5


@dataclass(frozen=True, kw_only=True)
class FLAIR(Sampler):
    """Flow-driven variational mean with hard consistency; no VJP of the network.

    The defaults are invdiff's own; `experiment=paper/flair_...` has the paper's.

    schedule       noise levels; published 50 even times
    until          times below it are left out, at which networks of flows err most
    rate           share of the way to D at each level, lambda / t
    iterations     of the descent to the data at each level, at most
    learning_rate  of its Adam, of pictures in [0, 1]
    """

    requires = Needs(differentiable=True, smooth=True)
    per_step = Cost(forwards=1)
    small: ClassVar = {"schedule": Straight(steps=10), "iterations": 10}

    schedule: Schedule = Straight(steps=50)
    until: Share = 0.2
    rate: Positive = 1.0
    iterations: Count = 20
    learning_rate: Positive = 0.02

    @property
    def num_steps(self) -> int:
        return len(self._levels(1.0)) - 1

    def _levels(self, scale: float) -> list[float]:
        """Those whose time t is `until` or later, the first one always, and 0."""
        first, *rest = self.schedule.levels(scale)[:-1]
        h = scale / 2
        return [first, *(sigma for sigma in rest if sigma / (h + sigma) >= self.until), 0.0]

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        h, noise = prior.unit, rng.normal()
        mean = prior.start(0.0, noise)
        for sigma, after in pairwise(self._levels(prior.scale)):
            x = mean + sigma * noise
            clean = prior.denoise(x, sigma)
            mean = mean + self.rate * (clean - mean)
            iterations = self.iterations if after > 0 else LAST * self.iterations
            mean = explained_by_descent(problem, mean, self.learning_rate * prior.scale, iterations, SLOWEST)
            if after == 0 and problem.operator.linear:
                mean = explained(problem, mean, prior.scale)
            kept = h / (h + sigma)  # 1 - t
            noise = kept * (x - clean) / sigma + sqrt(1 - kept**2) * rng.normal()
            yield Step(mean + after * noise, mean, after)
