"""Manifold-constrained gradient (MCG): guidance along the data manifold, and a projection onto the measurement.

Paper       Chung et al., Improving Diffusion Models for Inverse Problems using Manifold Constraints, NeurIPS 2022,
            arXiv:2206.00941, equations 14 and 15 (not MCGdiff, which is a particle filter).
Target      p(x | A x = y), approximately, for a measurement (almost) without noise: the likelihood is taken at the
            posterior mean, and the projection knows no noise. Biased at any number of steps, on Gaussians too.
Needs       a linear operator and a differentiable prior.
Cost        per step and sample: 1 forward, 1 VJP; of the operator 2 calls, an adjoint and a pseudo-inverse.
Coordinates the paper's z = x / sqrt(1 + (sigma / h)^2), see `dps.py`: the gradient carries the same factor C.
Departures  the replaced part has the noise of the level that the step leads to; the authors' code has that of the level
            before, one step too noisy. The noise put on y is A n, the measurement of image noise, as it must be where
            A A^T is not the identity. Published for masks, colours and CT; the pseudo-inverse makes the same step of
            every linear operator, and keeps the guidance to the null space. Ours are `projection="damped"`, which
            weighs y by its noise, and `project_above`; both stop copying that noise into the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.operators import LinearOperator
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import ancestral_step, mean_variance
from invdiff.schedules import VP, Schedule
from invdiff.shapes import nonzero, per_row, row_norm
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class MCG(Sampler):
    """Ancestral step, guidance in the null space of A, projection onto the noised measurement.

    The defaults are invdiff's own, for fewer steps and noisy data; `MCG.published()` has the paper's for inpainting.

    schedule       noise levels; the published one is the 1000-step DDPM grid. Fewer steps want a larger zeta
    zeta           guidance weight on the gradient of |W (y - A x0)|, image units; published 0.5 for masks. 0 is plain
                   replacement
    weight         W: `identity` (masks), or `pinv`, the pseudo-inverse (the paper's filtered back-projection for CT)
    projection     `exact`: A x = y + sigma A n, the paper's; it amplifies the noise of y where A is badly conditioned.
                   `damped`: towards it as far as y can be trusted, A^+ replaced by (A^T A + rho)^-1 A^T with
                   rho = (sigma_y / sigma)^2; the same where y has no noise
    project_above  noise level, image units, below which the projection is left out and the gradient is no longer kept
                   to the null space. 0: the paper's; with `exact` the result then fits y, noise included
    clip           clamp the clean estimate to the value range
    """

    schedule: Schedule = VP(steps=100)
    zeta: float = 2.0
    weight: Literal["identity", "pinv"] = "identity"
    projection: Literal["damped", "exact"] = "damped"
    project_above: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zeta < 0 or self.project_above < 0:
            raise ValueError(
                f"mcg: zeta and project_above must not be negative, got {self.zeta} and {self.project_above}"
            )
        if self.weight not in ("identity", "pinv"):
            raise ValueError(f"mcg: weight must be identity or pinv, got {self.weight!r}")
        if self.projection not in ("damped", "exact"):
            raise ValueError(f"mcg: projection must be damped or exact, got {self.projection!r}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(linear=True, differentiable_prior=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps, vjps=self.num_steps)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=VP(steps=10), zeta=0.3)

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for inpainting, in image units."""
        return cls(schedule=VP(steps=1000), zeta=0.5, projection="exact")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        operator = problem.operator
        assert isinstance(operator, LinearOperator)  # `needs` made sure
        half = (prior.value_range[1] - prior.value_range[0]) / 2
        sigmas = self.schedule.sigmas().tolist()
        x = sigmas[0] * rng.normal()
        for sigma_t, sigma_s in pairwise(sigmas):
            x0, gradient = self._estimate(problem, operator, prior, x, sigma_t)
            chain = sqrt((1 + (sigma_t / half) ** 2) * (1 + (sigma_s / half) ** 2))
            x = ancestral_step(x, x0, sigma_t, sigma_s, rng.normal())
            noise = rng.normal()
            x = x - self.zeta * chain * gradient
            if sigma_s >= self.project_above and (sigma_s > 0 or self.projection == "exact"):
                x = x + self._pull(problem, operator, problem.residual(x - sigma_s * noise), sigma_s)
            yield Step(x, x0, sigma_s)

    def _pull(self, problem: InverseProblem, operator: LinearOperator, residual: Tensor, sigma: float) -> Tensor:
        """What has to be added to x for A x = y + sigma A n, or towards it."""
        if self.projection == "exact":
            return operator.pinv(residual)
        return operator.solve(operator.adjoint(residual), mean_variance(problem) / sigma**2)

    def _estimate(
        self, problem: InverseProblem, operator: LinearOperator, prior: Prior, x: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        """The clean estimate and the gradient of |W (y - A x0)| with respect to x: one network call gives both."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = prior.denoise(x, sigma)
            if self.clip:
                x0 = x0.clamp(*prior.value_range)
            residual = problem.residual(x0.detach())
            if self.weight == "identity":
                pull, norm = operator.adjoint(residual), row_norm(residual)
            else:  # A^T W^T W r = A+ r for W = A+
                pull = operator.pinv(residual)
                norm = row_norm(pull)
            # The norm has no gradient where it is 0: that image is guided no further.
            direction = pull / per_row(nonzero(norm), pull)
            (gradient,) = torch.autograd.grad(x0, x, -direction)
        return x0.detach(), gradient
