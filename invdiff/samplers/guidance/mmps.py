"""Moment matching posterior sampling (MMPS): the denoiser's own Jacobian as the covariance of what it estimates.

Paper       Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS 2024,
            arXiv:2405.13712, section 4.2 and Algorithm 3. The learning of its title is in `invdiff/learning/em.py`.
Target      p(x | y), approximately: x0 given x is taken for a Gaussian with its true mean and covariance, D and
            sigma^2 J. Exact for Gaussian images as steps and iterations grow, and too narrow before: on a Gaussian of
            16 pixels the variance is 0.78 of the truth at the default settings, since each step takes the mean of x0
            for x0 itself; `momentdraw` draws it. Otherwise biased at any number of steps.
Needs       a linear operator, Gaussian noise and a differentiable prior.
Cost        per step and sample: 1 forward and `iterations` VJPs; of the operator a call, an adjoint and a `solve`, and
            as many more of each as there are iterations (`cg`: no `solve`, one adjoint less), or ten iterations of
            conjugate gradients where the operator has no singular value decomposition. Rows that have converged early
            stay as they are, and cost as much.
Form        D_y = D + sigma^2 J^T A^T v with (sigma_y^2 I + sigma^2 A J^T A^T) v = y - A D, solved by a Krylov method
            from v = 0, then the steps of an integrator with D_y, published DDIM's. J is applied as J^T, by VJP: the
            two are the same for a perfect denoiser; of a network A J^T A^T need not be symmetric.
Departures  J^T A^T v is put together from the products that the solver takes anyway, which saves the authors' last VJP.
            Ours is `gmres`, run as generalised conjugate residuals for u = A^T v in image space and preconditioned by
            the same system with the J of white images of standard deviation h / 2, h = `prior.unit`: unpreconditioned,
            three iterations of it left a misfit of 1.9 on CT of digits at noise 0.015.
            Settings published for images in [-2, 2] are divided by 4.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from invdiff.operators.noise.base import masked
from invdiff.ranges import Count
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Streams
from invdiff.samplers.guidance.guided import Estimate, Guided
from invdiff.samplers.moves import clean_estimate, damped_solve
from invdiff.samplers.solvers import conjugate_gradient, generalised_minimal_residual
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_vjp


@dataclass(frozen=True, kw_only=True)
class MMPS(Guided):
    """Moment matching: the network's Jacobian as the covariance of its estimate; linear operators.

    The defaults are invdiff's own; `experiment=paper/mmps_...` has the authors' for masked images.

    Besides schedule, integrator and time travel (`Guided`):

    iterations  of the solver, a VJP each; published 1 to 5
    solver      `gmres`, sound for every network, with the operator's own `solve` as preconditioner, or `cg`
                (published), without one, which takes A J A^T for symmetric
    """

    requires = Needs(linear=True, gaussian_noise=True, differentiable_prior=True)
    small: ClassVar = {"schedule": EDM(steps=8, sigma_max=10.0, sigma_min=0.02)}

    ends_explained = False  # its draws of Gaussian images are exact in the limit

    schedule: Schedule = EDM(steps=40, sigma_max=10.0, sigma_min=0.003)
    iterations: Count = 3
    solver: Literal["gmres", "cg"] = "gmres"

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.calls(), vjps=self.calls() * self.iterations)

    def guided(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Estimate:
        return lambda x, sigma: self.posterior_mean(problem, prior, x, sigma)

    def posterior_mean(self, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float) -> Tensor:
        """D_y, the estimate of E[x0 | x, y], (R, C, H, W): a denoiser for any solver of the flow.

        (D_y - x) / sigma^2 is the posterior score.
        """
        operator, observed, variance = problem.linear_operator, problem.observed, problem.noise_variance
        x0, vjp = row_vjp(clean_estimate(prior, sigma, clip=False), x, again=True)
        residual = problem.residual(x0)
        rho = variance * (1 / sigma**2 + 4 / prior.unit**2)

        def product(p: Tensor) -> tuple[Tensor, Tensor]:
            w = vjp(operator.adjoint(p))
            return sigma**2 * masked(operator(w), observed), w

        def preconditioned(u: Tensor) -> tuple[Tensor, Tensor]:
            w = vjp(u)
            normal = sigma**2 * operator.adjoint(masked(operator(w), observed))
            return damped_solve(problem, per_row(variance, u) * u + normal, rho), w

        if self.solver == "gmres":
            start = damped_solve(problem, operator.adjoint(residual), rho)
            solved = generalised_minimal_residual(preconditioned, 0.0, start, self.iterations)
        else:
            solved = conjugate_gradient(product, per_row(variance, residual), residual, self.iterations)
        return x0 + sigma**2 * solved
