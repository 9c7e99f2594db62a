"""Diverse score distillation (DSD): RED-Diff along a path of the prior's flow, whose random start makes it diverse.

Paper       Xu, Srinivasa, Liu and Tulsiani, Diverse Score Distillation, CVPR 2025, arXiv:2412.06780, its interpolation,
            for images themselves; theirs generate scenes without a measurement.
Target      the mode to which the flow of the prior from one random start leads, near the data: a start, not a law. The
            spread over starts is that of the flow as far as the data leave it, and is no uncertainty: in 12 steps on
            a blurred Gaussian image of 16 pixels the variance is 0.11 to 0.26 of the truth.
Needs       as RED-Diff: a differentiable operator without steps. No network VJP.
Cost        per step and sample: 3 forwards, 1 call of the operator and 1 product with its Jacobian; at the last step no
            forwards.
Form        p walks the flow of the prior from noise down the levels, e = (p - D(p, s)) / s is its noise at level s. An
            image mu that followed it would stand at mu + s e at level s and at mu + s' e at the next one, so that the
            gradient is s' (eps(mu + s' e, s') - eps(mu + s e, s)), eps(x, s) = (x - D(x, s)) / s: along the flow itself
            its steps of size 1 are those of Euler. At the end the data are left alone.
Coordinates those of `reddiff.py`; lambda counts per e-fold of the noise level, log(s / s'), so that it depends on no
            number of steps.
Departures  the path is walked once, level by level; theirs is walked anew to every level in 10 steps, the next level is
            drawn at random up to 10 % below, and levels fall like a square root. Others as in `reddiff.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.ranges import NotNegative
from invdiff.samplers.base import Cost, Prior
from invdiff.samplers.variational.reddiff import Distillation, REDDiff
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class DSD(REDDiff):
    """Diverse score distillation: RED-Diff that follows the flow of the prior from a random start.

    schedule  noise levels of the path, image units; the highest one is where it starts, and must hide the image
    lam       as in `REDDiff`, for an e-fold of the noise level

    learning_rate, weighting, data_term  as in `REDDiff`
    """

    small: ClassVar = {"schedule": EDM(steps=12, sigma_max=20.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=100, sigma_max=20.0, sigma_min=0.02)
    lam: NotNegative = 3.0

    def expected_cost(self) -> Cost:
        return Cost(forwards=3 * (self.num_steps - 1))

    def _distillation(self, prior: Prior, noise: Callable[[], Tensor]) -> Distillation:
        path, start = torch.empty(0), noise()

        def distilled(mu: Tensor, sigma: float, after: float) -> tuple[Tensor, Tensor]:
            nonlocal path
            if after == 0:
                return mu, torch.zeros_like(mu)
            if path.numel() == 0:
                path = prior.start(sigma, start)
            seed = (path - prior.denoise(path, sigma)) / sigma
            path = path + (after - sigma) * seed
            here, x0 = (prior.denoise(mu + level * seed, level) for level in (sigma, after))
            # after (eps(mu + after e, after) - eps(mu + sigma e, sigma))
            pull = mu - x0 - after / sigma * (mu - here)
            return x0, pull / log(sigma / after)

        return distilled
