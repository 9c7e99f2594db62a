"""Which sampler for which problem: what `sampler=auto` takes, and why it says it does.

The rules look at traits and noise alone, in this order; what they were measured on:
Steps         DPS with a small zeta. The gradients of a stand-in mislead long chains: JPEG of two brains drawn from the
              prior, noise 0.05, mean of 2 samples: 18.0 and 16.3 dB by DAPS, 27.1 and 25.5 by DPS; of six digits, mean
              of 4, 23.4 and 24.8. Quantised digits gain 0.7 dB, quantised brains lose 0.4.
Nonlinear     the published chains of DAPS, from a low level. Hamiltonian ones from a high level were worse, HDR 15.1 ->
              23.6 and nonlinear blur 21.2 -> 25.0 dB on 16 held-out slices, noise 0.025. Other operators and noise
              levels take the same without having been measured.
Ambiguous     the posterior has far more than one mode, and Hamiltonian chains from a high level beat Langevin's. Many
              levels matter more than longer chains or more steps of the ODE: phase retrieval, best of 4 on 4 validation
              slices, noise 0.025, 22.4 dB with 100 levels, 23.7 with 200 of five calls, 26.4 with 400 of one.
"""

from dataclasses import dataclass, replace

from invdiff.operators import GaussianNoise
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Sampler
from invdiff.samplers.ensemble.enkg import EnKG
from invdiff.samplers.guidance.dps import DPS
from invdiff.samplers.splitting.daps import DAPS
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
        if operator.differentiable and operator.stepped and isinstance(noise, GaussianNoise) and prior.differentiable:
            return DPS(zeta=1.0), f"dps: {name} has steps, its gradients are those of a stand-in"
        if operator.differentiable and isinstance(noise, GaussianNoise) and not operator.ambiguous:
            return SMALL_STEPS, f"daps with Langevin chains of small steps: {name} is not linear, and differentiable"
        if operator.differentiable and operator.ambiguous:
            return PATIENT, f"daps with Hamiltonian chains at many levels: more than one image fits what {name} sees"
        if operator.differentiable:
            what = f"the noise is {type(noise).__name__}" if operator.linear else f"{name} is not linear"
            return HAMILTONIAN, f"daps with Hamiltonian chains: {what}, and differentiable"
        return EnKG(), f"enkg: {name} is a black box, only its values are known"
