"""Linear problems with Gaussian noise, direction by direction."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.particles.base import each_particle
from invdiff.shapes import per_row


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A linear problem with Gaussian noise in the coordinates of its singular value decomposition, one row per chain.

    With m an image, c = V^T (x - m) and u = U^T (y - A m), direction i was measured as u_i = s_i c_i + noise of this
    variance.

    values       s, (R, 1, C, H, W), zero where the operator sees nothing, or next to nothing
    data         u, (R, 1, C, H, W), zero there
    variance     of the noise, (R, 1, 1, 1, 1): that of one real number
    unexplained  (R,) float64: what no image can change of the negative log-likelihood
    """

    values: Tensor
    data: Tensor
    variance: Tensor
    unexplained: Tensor

    @classmethod
    def of(cls, problem: InverseProblem, prior: Prior) -> Self:
        """About the centre of the prior, m, which is where sampling starts."""
        operator = problem.svd
        y = problem.residual(prior.centre.to(problem.y.real).expand(problem.images, *problem.image_shape))
        data = operator.ut(y)
        values = operator.singular_values(data).expand_as(data)
        largest = values.flatten(1).amax(1)
        seen = ~(values <= operator.cutoff * per_row(largest, values))  # NaN is seen, and shows
        values, data = (torch.where(seen, part, 0).unsqueeze(1) for part in (values, data))
        # The unknown is real: where y is complex each of its two parts has half the variance.
        variance = problem.noise_std.to(data).reshape(-1).expand(len(data)) ** 2 / (2 if y.is_complex() else 1)
        rest = y.abs().double().square().flatten(1).sum(1) - data.double().square().flatten(1).sum(1)
        unexplained = rest.clamp(min=0) / (2 * variance.double())  # below zero by rounding only
        # Comparisons let NaN pass for a direction that nobody measured: the likelihood has to show it.
        unexplained = torch.where(values.flatten(1).isfinite().all(1), unexplained, torch.nan)
        return cls(values, data, variance.reshape(-1, 1, 1, 1, 1), unexplained)

    @property
    def target(self) -> Tensor:
        """The measured coordinates u / s, (R, 1, C, H, W), zero where nothing was measured."""
        return torch.where(self.values != 0, self.data / self.values, 0)

    @property
    def level(self) -> Tensor:
        """Standard deviations of their noise, (R, 1, C, H, W), infinite where nothing was measured."""
        return torch.where(self.values != 0, self.variance.sqrt() / self.values, math.inf)


def into(problem: InverseProblem, x: Tensor, at_once: int) -> Tensor:
    """c = V^T x of all particles, (R, N, C, H, W), at most `at_once` at a time."""
    return each_particle(lambda i, part: problem.svd.select(i).vt(part), x, at_once)


def back(problem: InverseProblem, c: Tensor, at_once: int) -> Tensor:
    """x = V c of all particles, (R, N, C, H, W), at most `at_once` at a time."""
    return each_particle(lambda i, part: problem.svd.select(i).v(part), c, at_once)
