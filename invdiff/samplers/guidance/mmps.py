"""Moment matching posterior sampling (MMPS): the denoiser's own Jacobian as the covariance of what it estimates.

Paper       Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS 2024,
            arXiv:2405.13712, section 4.2 and Algorithm 3. The learning of its title is in `invdiff/learning/em.py`.
Target      p(x | y), approximately: x0 given x is taken for a Gaussian with its true mean and covariance, D and
            sigma^2 J. Exact as steps and iterations grow for Gaussian images; otherwise biased at any number of steps.
Needs       a linear operator, Gaussian noise and a differentiable prior.
Cost        per step and sample: 1 forward and `iterations` VJPs; of the operator 1 call and 1 adjoint, and as many more
            of each as there are iterations. Rows that have converged early stay as they are, and cost as much.
Form        D_y = D + sigma^2 J^T A^T v with (sigma_y^2 I + sigma^2 A J^T A^T) v = y - A D, solved by a Krylov method
            from v = 0, then DDIM steps with D_y. J is applied as J^T, by VJP: the two are the same for a perfect
            denoiser; of a network A J^T A^T need not be symmetric.
Departures  J^T A^T v is put together from the products that the solver takes anyway, which saves the authors' last VJP.
            GMRES is run as generalised conjugate residuals, which has the same iterates where A J^T A^T is positive.
            Settings published for images in [-2, 2] are divided by 4.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.operators import LinearOperator
from invdiff.operators.noise.base import masked
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import ddim_step, noise_variance
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import nonzero, per_row, row_dot, row_norm
from invdiff.streams import Streams

# Applies sigma^2 A J^T A^T and tells what it is made of: p -> (sigma^2 A J^T A^T p, J^T A^T p).
Product = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class MMPS(Sampler):
    """DDIM steps with the posterior mean of a Gaussian that has the denoiser's mean and covariance.

    The defaults are invdiff's own; `MMPS.published()` has the authors' for masked images.

    schedule    noise levels
    iterations  of the solver, a VJP each; published 1 to 5
    solver      `gmres`, sound for every network, or `cg` (published), which takes A J A^T for symmetric
    eta         noise of a step: 1 is the ancestral step (published), 0 none
    """

    schedule: Schedule = EDM(steps=40, sigma_max=10.0, sigma_min=0.01)
    iterations: int = 3
    solver: Literal["gmres", "cg"] = "gmres"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.iterations >= 1:
            raise ValueError(f"mmps: iterations must be at least 1, got {self.iterations}")
        if self.solver not in SOLVERS:
            raise ValueError(f"mmps: solver must be gmres or cg, got {self.solver!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"mmps: eta must lie in [0, 1], got {self.eta}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(linear=True, gaussian_noise=True, differentiable_prior=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps, vjps=self.num_steps * self.iterations)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=EDM(steps=8, sigma_max=10.0, sigma_min=0.02))

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for masked CIFAR-10, whose images live in [-2, 2], in image units."""
        # Their levels are evenly spaced in ln(sigma), which is rho towards infinity.
        return cls(schedule=EDM(steps=256, sigma_max=25.0, sigma_min=0.00025, rho=10_000.0), iterations=1, solver="cg")

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.sigmas().tolist()
        x = sigmas[0] * rng.normal()
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = self.posterior_mean(problem, prior, x, sigma_t)
            x = ddim_step(x, x0, sigma_t, sigma_s, self.eta, rng.normal())
            yield Step(x, x0, sigma_s)

    def posterior_mean(self, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        """D_y, the estimate of E[x0 | x, y], (R, C, H, W): a denoiser that any solver of the flow can be given.

        (D_y - x) / sigma^2 is the posterior score.
        """
        operator, observed = problem.operator, problem.observed
        assert isinstance(operator, LinearOperator)  # `needs` made sure
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = prior.denoise(x, sigma)
        residual = problem.residual(x0.detach())
        variance = per_row(noise_variance(problem), residual)

        def product(p: Tensor) -> tuple[Tensor, Tensor]:
            (w,) = torch.autograd.grad(x0, x, operator.adjoint(p), retain_graph=True)
            return sigma**2 * masked(operator(w), observed), w

        return x0.detach() + sigma**2 * SOLVERS[self.solver](product, variance, residual, self.iterations)


def generalised_minimal_residual(product: Product, variance: Tensor | float, b: Tensor, iterations: int) -> Tensor:
    """J^T A^T v for the v of this many iterations of GMRES on (variance + product) v = b, of each row; like an image.

    Each iteration leaves the least residual that its products can give; where nothing is left to gain a row stays.
    """
    residual, found = b, torch.zeros((), device=b.device)
    earlier: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        signal, w = product(residual)
        q = variance * residual + signal
        size = row_norm(q)
        for q_before, w_before in earlier:
            along = dot(q_before, q)
            q, w = q - per_row(along, q) * q_before, w - per_row(along, w) * w_before
        norm = row_norm(q)
        # What is left of a direction that was there before is rounding: it would be blown up to length one.
        scale = torch.where(norm > ROUNDING[norm.dtype] * size, 1 / nonzero(norm), torch.where(norm.isnan(), norm, 0))
        q, w = per_row(scale, q) * q, per_row(scale, w) * w
        step = dot(q, residual)
        residual, found = residual - per_row(step, q) * q, found + per_row(step, w) * w
        earlier.append((q, w))
    return found


def conjugate_gradient(product: Product, variance: Tensor | float, b: Tensor, iterations: int) -> Tensor:
    """The same by conjugate gradients, for a symmetric, positive product; a row where it shows not to be stays."""
    residual, direction, found = b, b, torch.zeros((), device=b.device)
    energy = dot(residual, residual)
    start = energy
    for _ in range(iterations):
        signal, w = product(direction)
        q = variance * direction + signal
        curvature = dot(direction, q)
        going = (energy > ROUNDING[energy.dtype] ** 2 * start) & (dot(direction, signal) > 0)
        step = torch.where(going | curvature.isnan(), energy / nonzero(curvature), 0)
        residual, found = residual - per_row(step, q) * q, found + per_row(step, w) * w
        left = dot(residual, residual)
        direction = residual + per_row(torch.where(going, left / nonzero(energy), 0), direction) * direction
        energy = left
    return found


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row, (R,), of complex numbers as of their two parts."""
    return row_dot(torch.view_as_real(a), torch.view_as_real(b)) if a.is_complex() else row_dot(a, b)


SOLVERS: dict[str, Callable[[Product, Tensor | float, Tensor, int], Tensor]] = {
    "gmres": generalised_minimal_residual,
    "cg": conjugate_gradient,
}
# Relative to the sizes that were subtracted.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
