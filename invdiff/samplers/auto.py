"""Which sampler for which problem: what `sampler=auto` takes, and why it says it does.

The rules look at traits and noise alone, in this order. Hamiltonian chains from a high noise level beat Langevin's on
phase retrieval of held-out slices, where the posterior has far more than one mode, and there many levels matter more
than longer chains or more steps of the ODE: best of 4 on 4 validation slices 22.4 dB with 100 levels, 23.7 with 200 of
five calls, 26.4 with 400 of one. On HDR and nonlinear blur, where it
has not, the published chains from a lower level beat those: 15.1 -> 23.6 and 21.2 -> 25.0 dB on 16 held-out slices,
noise 0.025; other nonlinear operators and noise levels take the same without having been measured.
"""

from dataclasses import dataclass, replace

from invdiff.operators import GaussianNoise
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Sampler
from invdiff.samplers.daps import DAPS
from invdiff.samplers.enkg import EnKG
from invdiff.schedules import EDM

HAMILTONIAN = DAPS(schedule=EDM(steps=100, sigma_max=20.0, sigma_min=0.01), inner="hamiltonian", chain_steps=30)
PATIENT = replace(HAMILTONIAN, schedule=EDM(steps=400, sigma_max=20.0, sigma_min=0.01))
SMALL_STEPS = DAPS(
    schedule=EDM(steps=100, sigma_max=5.0, sigma_min=0.05),
    inner="langevin",
    prior_std=None,
    draw_std=None,
    step_size=5e-6,
    tau=0.005,
)


@dataclass(frozen=True)
class Auto:
    """Not a sampler: `choose` gives one for a problem."""

    def choose(self, problem: InverseProblem, prior: Prior) -> tuple[Sampler, str]:
        """A sampler with its settings, and the reason in one line."""
        operator, noise = problem.operator, problem.noise
        name = type(operator).__name__
        if operator.linear and isinstance(noise, GaussianNoise):
            how = "in closed form" if operator.spectral else "by conjugate gradients"
            return DAPS(), f"daps: {name} is linear and the noise Gaussian, so that its data step is exact, {how}"
        if operator.differentiable and isinstance(noise, GaussianNoise) and not operator.ambiguous:
            return SMALL_STEPS, f"daps with Langevin chains of small steps: {name} is not linear, and differentiable"
        if operator.differentiable and operator.ambiguous:
            return PATIENT, f"daps with Hamiltonian chains at many levels: more than one image fits what {name} sees"
        if operator.differentiable:
            what = f"the noise is {type(noise).__name__}" if operator.linear else f"{name} is not linear"
            return HAMILTONIAN, f"daps with Hamiltonian chains: {what}, and differentiable"
        return EnKG(), f"enkg: {name} is a black box, only its values are known"
