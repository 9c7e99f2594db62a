"""Decoupled annealing posterior sampling (DAPS).

Paper       Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, CVPR 2025,
            arXiv:2407.01521, Algorithm 1.
Target      p(x | y), by alternating draws: x0 from p(x0 | x_sigma, y), then x at the next noise level from x0 alone.
            Exact if p(x0 | x_sigma) were the Gaussian N(x0_hat, r^2 I) of step 2; the width r decides how good that is.
Needs       a differentiable operator; the closed-form step a linear one and Gaussian noise, the Metropolis chain
            neither. No network VJP.
Cost        per step and sample: `ode_steps` forwards; `chain_steps` calls of the operator and products with its
            Jacobian (Metropolis: calls alone), or one `solve` and two calls.
Coordinates the paper's own; its images live in [-1, 1], so that sigma and tau are halved here and step sizes quartered.
Departures  the data term of the chains is |y - A(x0)|^2 / (2 tau^2); the authors' main branch omits the factor
            2. A chain that diverges is reported, not replaced by zeros. Ours are `inner="closed_form"`, the exact draw
            which the chains approximate; `prior_std`, the width r^2 = s^2 sigma^2 / (s^2 + sigma^2) that Gaussian
            images of standard deviation s would have, instead of r = sigma, far too wide at high noise; `draw_std`; and
            `step_size=None`, a measured step size, with which a slope that is far steeper elsewhere is cut off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.priors.ode import probability_flow
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import bounded, conjugate, gaussian_draw, langevin, misfit_gradient, stiffness
from invdiff.schedules import EDM, Schedule, karras
from invdiff.shapes import per_row
from invdiff.streams import Streams

INNER = ("auto", "langevin", "hamiltonian", "metropolis", "closed_form")


@dataclass(frozen=True, kw_only=True)
class DAPS(Sampler):
    """Estimate, draw given the data, noise again to the next level.

    The defaults are invdiff's own, for few network calls on linear problems; `DAPS.published()` has the paper's.

    schedule         annealing levels, image units
    ode_steps        Euler steps of the probability-flow ODE that gives x0_hat; 1 is the denoiser itself
    ode_sigma_min    level of the ODE's last step before 0, image units
    inner            how x0 is drawn: `langevin` (the paper's), `hamiltonian` (damped, the authors' later settings),
                     `metropolis` (random walk, no gradient), `closed_form` (linear operator, Gaussian noise), or
                     `auto`: closed form where it is possible, else Langevin
    prior_std        s in the width r^2 = s^2 sigma^2 / (s^2 + sigma^2) of step 2, image units; None: r = sigma, the
                     paper's
    draw_std         the same for the spread of the closed-form draw alone; None: `prior_std`, the exact draw. That
                     spread is white noise where nothing was measured, which x0 given x does not look like: a smaller
                     one gives cleaner samples that are too sure of themselves
    chain_steps      length of the chain
    step_size        its step size at the first level, image units squared; of Metropolis the variance of a proposal.
                     None: measured at every level for every sample, as half of what the stiffest direction allows (2
                     power iterations: 4 more products with the Jacobian) or, of Metropolis, as that of the best random
                     walk on a Gaussian (3 more calls)
    step_size_ratio  a given step size falls linearly to this fraction of it at the last level
    momentum         share of the velocity that a Hamiltonian step keeps; 0 is Langevin
    tau              noise level that the chain believes in, image units (published: 0.005, tuned, below the true one);
                     None: the likelihood of the noise itself; on a complex y it is the level of each real part
    """

    schedule: Schedule = EDM(steps=40, sigma_max=5.0, sigma_min=0.02)
    ode_steps: int = 1
    ode_sigma_min: float = 0.005
    inner: Literal["auto", "langevin", "hamiltonian", "metropolis", "closed_form"] = "auto"
    prior_std: float | None = 0.25
    draw_std: float | None = 0.03
    chain_steps: int = 100
    step_size: float | None = None
    step_size_ratio: float = 0.01
    momentum: float = 0.9
    tau: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner not in INNER:
            raise ValueError(f"daps: inner must be one of {', '.join(INNER)}, got {self.inner!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"daps: momentum must lie in [0, 1), got {self.momentum}")
        for name in (
            "ode_steps",
            "ode_sigma_min",
            "prior_std",
            "draw_std",
            "chain_steps",
            "step_size",
            "step_size_ratio",
            "tau",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"daps: {name} must be positive, got {value}")

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        if self.inner == "closed_form":
            return Needs(linear=True, gaussian_noise=True)
        if self.inner == "metropolis":
            return Needs()
        return Needs(differentiable=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * self.ode_steps)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=EDM(steps=6, sigma_max=10.0, sigma_min=0.05), draw_std=None, chain_steps=5)

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for inpainting, super-resolution and Gaussian blur, in image units: 1000 calls."""
        return cls(
            schedule=EDM(steps=200, sigma_max=50.0, sigma_min=0.05),
            ode_steps=5,
            inner="langevin",
            prior_std=None,
            draw_std=None,
            step_size=2.5e-5,
            tau=0.005,
        )

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.sigmas().tolist()
        x = sigmas[0] * rng.normal()
        probe = None if self._closed_form(problem) or self.step_size is not None else rng.normal()
        for k, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            x0_hat = probability_flow(prior, x, self._ode_levels(sigma))  # step 1: where x would flow to
            width = conditional_std(sigma, self.prior_std)
            if self._closed_form(problem):
                narrow = conditional_std(sigma, self.draw_std or self.prior_std)
                x0 = gaussian_draw(problem, x0_hat, width, rng, spread=narrow)  # step 2, exact
            else:
                eta, probe = self._chain_step(problem, x0_hat, width, k, probe)
                x0 = self._chain()(problem, x0_hat, width, eta, rng)  # step 2
            x = x0 + sigma_next * rng.normal() if sigma_next > 0 else x0  # step 3: decoupled from the x before
            yield Step(x, x0, sigma_next)

    def _ode_levels(self, sigma: float) -> list[float]:
        lowest = min(self.ode_sigma_min, sigma)
        return [*karras(sigma, lowest, self.ode_steps).tolist(), 0.0]

    def _closed_form(self, problem: InverseProblem) -> bool:
        return conjugate(problem) if self.inner == "auto" else self.inner == "closed_form"

    def _chain(self) -> Callable[..., Tensor]:
        if self.inner == "hamiltonian":
            return self._hamiltonian
        return self._metropolis if self.inner == "metropolis" else self._langevin

    def _chain_step(
        self, problem: InverseProblem, x0_hat: Tensor, width: float, k: int, probe: Tensor | None
    ) -> tuple[float | Tensor, Tensor | None]:
        """The step size of level k, one for all or one per row shaped like x0, and the stiffest direction so far."""
        if self.step_size is not None:
            return self.step_size * (1 - k / self.num_steps * (1 - self.step_size_ratio)), None
        assert probe is not None
        if self.inner == "metropolis":  # the best random walk on a Gaussian: 2.4^2 over the trace of its precision
            shift = 0.01 * probe.sign()
            above, here, below = (self._energy(problem, x0_hat, width, x0_hat + t) for t in (shift, 0 * shift, -shift))
            trace = (above - 2 * here + below) / 0.01**2
            return per_row(2.4**2 / trace.clamp(min=x0_hat[0].numel() / width**2), x0_hat), probe
        steepest, probe = stiffness(lambda x0: self._data_gradient(problem, x0), x0_hat, probe)
        return per_row(0.5 / (steepest + 1 / width**2), x0_hat), probe

    def _langevin(
        self, problem: InverseProblem, x0_hat: Tensor, width: float, eta: float | Tensor, rng: Streams
    ) -> Tensor:
        """Unadjusted Langevin dynamics on N(x0; x0_hat, width^2) p(y | x0), started at x0_hat."""
        return langevin(lambda x0: self._slope(problem, x0_hat, width, eta, x0), x0_hat, eta, self.chain_steps, rng)

    def _hamiltonian(
        self, problem: InverseProblem, x0_hat: Tensor, width: float, eta: float | Tensor, rng: Streams
    ) -> Tensor:
        """The same target by a velocity that is damped and kicked at every step."""
        x0, velocity = x0_hat, rng.normal()
        for _ in range(self.chain_steps):
            kick = sqrt(2 * (1 - self.momentum)) * rng.normal()
            velocity = self.momentum * velocity - eta**0.5 * self._slope(problem, x0_hat, width, eta, x0) + kick
            x0 = x0 + eta**0.5 * velocity
        return x0

    def _metropolis(
        self, problem: InverseProblem, x0_hat: Tensor, width: float, eta: float | Tensor, rng: Streams
    ) -> Tensor:
        """The same target by a random walk whose steps are accepted or not, each sample for itself."""
        x0, energy = x0_hat, self._energy(problem, x0_hat, width, x0_hat)
        for _ in range(self.chain_steps):
            proposed = x0 + eta**0.5 * rng.normal()
            its_energy = self._energy(problem, x0_hat, width, proposed)
            # Half the square of two normal numbers is minus the logarithm of a uniform one.
            accept = its_energy - energy < rng.normal((2,)).square().sum(1) / 2
            x0 = torch.where(per_row(accept, x0), proposed, x0)
            energy = torch.where(accept, its_energy, energy)
        # Nothing is below NaN, so that the chain would stand still and hide that the operator failed.
        return torch.where(per_row(energy, x0).isnan(), torch.nan, x0)

    def _energy(self, problem: InverseProblem, x0_hat: Tensor, width: float, x0: Tensor) -> Tensor:
        """Minus the logarithm of the chains' target, (R,)."""
        if self.tau is None:
            data = problem.nll(x0)
        else:
            data = problem.residual(x0).abs().square().flatten(1).sum(1) / (2 * self.tau**2)
        return (x0 - x0_hat).square().flatten(1).sum(1) / (2 * width**2) + data

    def _slope(self, problem: InverseProblem, x0_hat: Tensor, width: float, eta: float | Tensor, x0: Tensor) -> Tensor:
        """Gradient of the energy."""
        slope = (x0 - x0_hat) / width**2 + self._data_gradient(problem, x0)
        return slope if self.step_size is not None else bounded(slope, eta)

    def _data_gradient(self, problem: InverseProblem, x0: Tensor) -> Tensor:
        return problem.nll_gradient(x0) if self.tau is None else misfit_gradient(problem, x0) / self.tau**2


def conditional_std(sigma: float, prior_std: float | None) -> float:
    """Standard deviation of x0 given x_sigma, for Gaussian x0 of standard deviation `prior_std`; None: infinite."""
    return sigma if prior_std is None else sigma / sqrt(1 + (sigma / prior_std) ** 2)
