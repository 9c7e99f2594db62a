"""RED-Diff: variational reconstruction regularised by denoising diffusion.

Paper       Mardani et al., A Variational Perspective on Solving Inverse Problems with Diffusion Models, ICLR 2024,
            arXiv:2305.04391, Algorithm 1.
Target      the mode of a variational family that is one point: an optimiser, not a sampler. Its spread over seeds is
            the jitter of the optimiser and no uncertainty; on Gaussian problems the published weights end at the data,
            whatever their noise.
Needs       a differentiable operator without steps. No network VJP; the operator's first guess, where there is one, as
            its start.
Cost        per step and sample: 1 forward, 1 call of the operator and 1 product with its Jacobian.
Coordinates the paper's z = alpha (mu + sigma eps), where eps_hat - eps = (mu - D(mu + sigma eps)) / sigma: no factor
            alpha is left. Its images live in [-1, 1]; with h = `prior.unit`, learning rates are
            halved for [0, 1], and lambda w(sigma / h) h / sigma (mu - D) is its regulariser's gradient.
Departures  the authors' losses are means over the batch, so that Adam's epsilon couples the images; here every sample
            has its own sums. They return mu before the last step of Adam, we after it. Their
            jitter of mu, a standard deviation of 1e-4, is left out. Ours is the data term
            `likelihood`, with lambda in units of h sigma_y over the norm of the operator.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import log1p, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.operators.noise.base import masked
from invdiff.ranges import NotNegative, Positive
from invdiff.samplers.base import InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import half_squares, mean_variance, operator_norm
from invdiff.samplers.optimisers import Adam
from invdiff.schedules import VP, Schedule
from invdiff.shapes import per_row, row_gradient

Distillation = Callable[[Tensor, float, float], tuple[Tensor, Tensor]]

# Weight of the noise difference as a function of sigma / alpha, the inverse root of the signal-to-noise ratio: the
# paper's choice is `linear`, the others are its ablation.
WEIGHTINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda q: q,
    "sqrt": sqrt,
    "square": lambda q: q**2,
    "log": log1p,
    "clip": lambda q: min(q, 1.0),
    "power_2_3": lambda q: q ** (2 / 3),
    "constant": lambda q: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class REDDiff(Sampler):
    """Variational optimiser: data misfit and denoising residual descend together; its spread is no uncertainty.

    The defaults are invdiff's own; `experiment=paper/reddiff_...` has the authors'.

    schedule       noise levels of the regulariser, one step of Adam each
    learning_rate  of Adam, image units
    lam            lambda, weight of the regulariser against the data term; with `likelihood` in units of the noise of y
                   over the norm of the operator and over h = `prior.unit`
    weighting      how it depends on the noise level: the paper's `linear`, or `sqrt`, `square`, `log`, `clip`,
                   `power_2_3`, `constant` of its ablation
    data_term      `likelihood`: the negative log-likelihood times the mean variance of the noise, which is
                   |y - A(mu)|^2 / 2 for Gaussian noise and of its size for any other, over the square of the
                   norm of the operator, so that lambda depends neither on the unit of y nor on its noise. `published`:
                   n / m |y - A(mu)|^2 / 2 with n pixels and m measurements, as the authors' means of losses have it
    """

    requires = Needs(differentiable=True, smooth=True)
    small: ClassVar = {"schedule": VP(steps=12)}

    schedule: Schedule = VP(steps=100, sigma_max=0.5, sigma_min=0.02)
    learning_rate: Positive = 0.02
    lam: NotNegative = 3.0
    weighting: Literal["linear", "sqrt", "square", "log", "clip", "power_2_3", "constant"] = "linear"
    data_term: Literal["likelihood", "published"] = "likelihood"

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        return self._descend(problem, prior, rng.normal)

    def _descend(self, problem: InverseProblem, prior: Prior, noise: Callable[[], Tensor]) -> Iterator[Step]:
        half = prior.unit
        mu = start(problem, prior)
        lam, norm = torch.full((len(mu),), self.lam).to(mu), mu.new_ones(len(mu))
        if self.data_term == "likelihood":
            norm = operator_norm(problem, prior)
            lam = lam * mean_variance(problem).sqrt() / (norm * half)
        adam = Adam(mu, self.learning_rate * prior.scale)
        distilled = self._distillation(prior, noise)
        for sigma, after in pairwise(self.schedule.levels(prior.scale)):
            x0, pull = distilled(mu, sigma, after)
            weight = lam * (WEIGHTINGS[self.weighting](sigma / half) * half / sigma)
            mu = adam.step(mu, self._data_gradient(problem, mu, norm) + per_row(weight, mu) * pull)
            yield Step(mu, x0, after)

    def _distillation(self, prior: Prior, noise: Callable[[], Tensor]) -> Distillation:
        """(mu, level, next level) -> a clean estimate and the gradient of the regulariser, sigma (eps_hat - eps)."""

        def distilled(mu: Tensor, sigma: float, after: float) -> tuple[Tensor, Tensor]:
            x0 = prior.denoise(mu + sigma * noise(), sigma)
            return x0, mu - x0 - self._repulsion(mu, sigma, prior.unit)

        return distilled

    def _repulsion(self, mu: Tensor, sigma: float, half: float) -> Tensor | float:
        """What keeps particles apart, added to the clean estimates; RED-Diff has one particle."""
        return 0.0

    def _data_gradient(self, problem: InverseProblem, mu: Tensor, norm: Tensor) -> Tensor:
        if self.data_term == "likelihood":
            return per_row(mean_variance(problem) / norm**2, mu) * problem.nll_gradient(mu)
        m = problem.y[0].numel() * (2 if problem.y.is_complex() else 1)
        return mu[0].numel() / m * row_gradient(lambda x: half_squares(problem, x), mu)


def start(problem: InverseProblem, prior: Prior) -> Tensor:
    """The operator's first guess about the centre of the prior, which is 0 on the paper's [-1, 1]."""
    operator, y = problem.operator, problem.y
    blank = torch.zeros(problem.images, *problem.image_shape, device=y.device, dtype=y.real.dtype)
    centre = prior.start(0.0, blank)
    if operator.linear:
        guess = operator.first_guess(problem.residual(centre))
        return centre if guess is None else centre + guess
    guess = operator.first_guess(masked(y, problem.observed))
    return centre if guess is None else guess
