"""Decoupled annealing posterior sampling (DAPS).

Paper       Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, CVPR 2025,
            arXiv:2407.01521, Algorithm 1.
Target      p(x | y), by alternating draws: x0 from p(x0 | x_sigma, y), then x at the next noise level from x0 alone.
            Exact if p(x0 | x_sigma) were the Gaussian N(x0_hat, r^2 I) of step 2; the width r decides how good that is.
Needs       a differentiable operator without steps; the closed-form step a linear one and Gaussian noise, the
            Metropolis chain values alone. No network VJP.
Cost        per step and sample: `ode_steps` forwards; `chain_steps` calls of the operator and products with its
            Jacobian (Metropolis: calls alone), or one `solve` and two calls.
Coordinates the paper's own; its images live in [-1, 1], so that sigma and tau are halved here and step sizes quartered.
Departures  the data term of the chains is |y - A(x0)|^2 / (2 tau^2); the authors' main branch omits the factor
            2. A chain that diverges is reported, not replaced by zeros. Ours are `inner="closed_form"`, the exact draw
            which the chains approximate; `prior_std`, the width r^2 = s^2 sigma^2 / (s^2 + sigma^2) that Gaussian
            images of standard deviation s would have, instead of r = sigma, far too wide at high noise; `draw_std`; and
            `step_size=None`, a measured step size, with which a slope that is far steeper elsewhere is cut off.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Annotated, ClassVar, Literal

from invdiff.integrators import DDIM, Integrator, Name, named
from invdiff.ranges import Count, Positive, Range
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.chains import Conditional, chosen, needs_of
from invdiff.schedules import EDM, Schedule, karras


@dataclass(frozen=True, kw_only=True)
class DAPS(Sampler):
    """Decoupled annealing: denoise, draw given the data, noise again; no VJP through the network.

    The defaults are invdiff's own, for few calls on linear problems: the width has the best energy score over
    validation images of two priors and noises from 0.025 to 0.125; a smaller one stays at grey with much noise or few
    levels. `experiment=paper/daps_...` has the paper's.

    schedule         annealing levels, image units
    ode_steps        steps of the probability-flow ODE that gives x0_hat; 1 is the denoiser itself
    integrator       how they move, Euler's steps by default; with noise x0_hat is drawn
    ode_sigma_min    level of the ODE's last step before 0, image units
    inner            how x0 is drawn: `langevin` (the paper's), `hamiltonian` (damped, the authors' later settings),
                     `metropolis` (random walk, no gradient), `closed_form` (linear operator, Gaussian noise), or
                     `auto`: closed form where it is possible, else Langevin
    prior_std        s in the width r^2 = s^2 sigma^2 / (s^2 + sigma^2) of step 2, image units; None: r = sigma, the
                     paper's
    draw_std         the same for the spread of the closed-form draw alone; None: `prior_std`, the exact draw. A smaller
                     one shrinks the draw on purpose: samples with less noise that are too sure of themselves
    chain_steps      length of the chain
    step_size        its step size at the first level, image units squared; of Metropolis the variance of a proposal.
                     None: measured at every level for every sample, as a quarter of what the stiffest direction allows
                     (2 power iterations: 4 more products with the Jacobian), with steps that do not widen the law; or,
                     of Metropolis, as that of the best random walk on a Gaussian (3 more calls)
    step_size_ratio  a given step size falls linearly to this fraction of it at the last level
    momentum         share of the velocity that a Hamiltonian step keeps; 0 is Langevin
    tau              noise level that the chain believes in, image units (published: 0.005, tuned, below the true one);
                     None: the likelihood of the noise itself; on a complex y it is the level of each real part
    """

    small: ClassVar = {"schedule": EDM(steps=6, sigma_max=10.0, sigma_min=0.05), "prior_std": 0.25, "chain_steps": 5}

    schedule: Schedule = EDM(steps=100, sigma_max=5.0, sigma_min=0.02)
    ode_steps: Count = 1
    integrator: Integrator | Name = DDIM(eta=0.0)
    ode_sigma_min: Positive = 0.005
    inner: Literal["auto", "langevin", "hamiltonian", "metropolis", "closed_form"] = "auto"
    prior_std: Positive | None = 0.1
    draw_std: Positive | None = None
    chain_steps: Count = 100
    step_size: Positive | None = None
    step_size_ratio: Positive = 0.01
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    tau: Positive | None = None

    def needs(self) -> Needs:
        return needs_of(self.inner)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps * named(self.integrator).calls(self.ode_steps))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal())
        scale = prior.scale
        conditional = chosen(self.inner, problem, rng, self.chain_steps, self.step_size, self.momentum, scale)
        for k, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            levels = self._ode_levels(sigma / scale)
            # Step 1: where x flows to.
            x0_hat = named(self.integrator).end(prior.denoise, x, levels, rng.normal, scale, prior.centre)
            width = conditional_std(sigma, self.prior_std, scale)
            spread = conditional_std(sigma, self.draw_std or self.prior_std, scale)
            target = Conditional(problem, x0_hat, width, self.tau, spread)
            x0 = conditional.draw(target, rng, self._step_size(k, scale))  # step 2
            x = x0 + sigma_next * rng.normal() if sigma_next > 0 else x0  # step 3: decoupled from the x before
            yield Step(x, x0, sigma_next)

    def _step_size(self, k: int, scale: float) -> float | None:
        """Step size of the chain at level k; None: measured."""
        return self.step_size and scale**2 * self.step_size * (1 - k / self.num_steps * (1 - self.step_size_ratio))

    def _ode_levels(self, sigma: float) -> list[float]:
        return [*karras(sigma, min(self.ode_sigma_min, sigma), self.ode_steps).tolist(), 0.0]


def conditional_std(sigma: float, prior_std: float | None, scale: float = 1.0) -> float:
    """Standard deviation of x0 given x_sigma, for Gaussian x0 of standard deviation scale * prior_std; None: sigma."""
    return sigma if prior_std is None else sigma / sqrt(1 + (sigma / (scale * prior_std)) ** 2)
