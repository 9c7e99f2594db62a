"""Pseudo-inverse guided diffusion (PiGDM, also written with the Greek letter).

Paper       Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023, Algorithm 1.
Target      p(x | y), approximately: x0 given x is taken for N(D, r^2 I), r^2 = sigma^2 s^2 / (sigma^2 + s^2). Exact as
            steps grow, with the weight `posterior`, where the images are Gaussian with independent pixels of standard
            deviation s. The published weight does not converge: what it draws depends on the number of steps.
Needs       a linear operator, Gaussian noise and a differentiable prior.
Cost        per step and sample: 1 forward, 1 VJP; of the operator 1 call, an adjoint and a `solve`.
Form        the pull g = J^T A^T (A A^T + (sigma_y / r)^2 I)^-1 (y - A D), with J the Jacobian of D; the limit, without
            noise, of what stands before (y - A D) is J^T times the pseudo-inverse. `posterior` moves the clean
            estimate, D + (sigma / r)^2 g, which is E[x0 | x, y] under the assumption, and takes a DDIM step with it;
            `published` takes the step with D and adds g to where it leads.
Coordinates the authors' z = x / sqrt(1 + (sigma / h)^2), with h half the width of the value range, see `dps.py`.
            Their code (`algos/pgdm.py` of NVlabs/RED-diff, as it comes) adds sqrt(alpha_s alpha_t) grad_z <r, D> to
            z_s, which is g added to x_s.
Departures  starts from noise, not from the noised pseudo-inverse of y. Their code knows no noise in y; here it has the
            paper's weights for it. Linear operators only: the pseudo-inverses of compression and quantisation, and what
            the code does besides for single tasks, are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.operators import LinearOperator
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import ddim_step, noise_variance
from invdiff.schedules import EDM, VP, Schedule
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class PiGDM(Sampler):
    """DDIM steps, pulled by the residual through the regularised pseudo-inverse and the network's Jacobian.

    The defaults are invdiff's own; `PiGDM.published()` has the authors', in image units.

    schedule   noise levels
    prior_std  s, how far the images scatter, image units; published 0.5, which is 1 on [-1, 1]
    weight     of the pull: `posterior` as Bayes' rule has it, or `published`
    eta        noise of a step: 1 is the ancestral step (published), 0 none
    """

    schedule: Schedule = EDM(steps=100, sigma_max=20.0, sigma_min=0.01)
    prior_std: float = 0.25
    weight: Literal["posterior", "published"] = "posterior"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prior_std > 0:
            raise ValueError(f"pigdm: prior_std must be positive, got {self.prior_std}")
        if self.weight not in ("posterior", "published"):
            raise ValueError(f"pigdm: weight must be posterior or published, got {self.weight!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"pigdm: eta must lie in [0, 1], got {self.eta}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(linear=True, gaussian_noise=True, differentiable_prior=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps, vjps=self.num_steps)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=EDM(steps=10, sigma_max=10.0, sigma_min=0.02))

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for photographs, in image units."""
        return cls(schedule=VP(steps=100), prior_std=0.5, weight="published")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.sigmas().tolist()
        x = sigmas[0] * rng.normal()
        for sigma_t, sigma_s in pairwise(sigmas):
            variance = (sigma_t * self.prior_std) ** 2 / (sigma_t**2 + self.prior_std**2)  # r^2
            x0, pull = self._estimate(problem, prior, x, sigma_t, variance)
            if self.weight == "posterior":
                x0 = x0 + sigma_t**2 / variance * pull
                x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal())
            else:
                x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal()) + pull
            yield Step(x, x0, sigma_s)

    def _estimate(
        self, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float, variance: float
    ) -> tuple[Tensor, Tensor]:
        """The clean estimate and the pull g: one network call gives both."""
        operator = problem.operator
        assert isinstance(operator, LinearOperator)  # `needs` made sure
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = prior.denoise(x, sigma)
        residual = problem.residual(x0.detach())
        # A^T (A A^T + c I)^-1 = (A^T A + c I)^-1 A^T
        back = operator.solve(operator.adjoint(residual), noise_variance(problem) / variance)
        (pull,) = torch.autograd.grad(x0, x, back)
        return x0.detach(), pull
