"""The choice of a sampler for a problem: `sampler=auto`.

The rules look at traits, noise and goal alone, in this order:
Moments      MomentDraw for a linear operator, Gaussian noise and a differentiable prior: the best energy score and CRPS
             at equal calls, with samples as wide as they should be (docs/samplers.md). With goal=picture it steps with
             the mean.
Codes        DPS for a latent prior whose decoder is not linear: the moments of MomentDraw take thousands of products
             with the decoder. Energy score of 2 brains by `brain_latent`, DPS and LATINO: inpainting 27 and 33,
             super-resolution 34 and 42, blur 29 and 52, CT 35 and 29; CT is left unexplained (misfit 7).
Closed form  DAPS, whose data step is exact for a linear operator and Gaussian noise.
Steps        DPS; with a prior that is not differentiable EnKG. Chains refuse such operators, as the gradients of a
             stand-in mislead them. Energy score of 4 brains, DPS and MomentDraw: JPEG 23.5 and 26.0, quantisation 24.1
             and 19.1.
Ambiguous    DAPS with Hamiltonian chains, where more than one image fits.
Moments      MomentDraw for other nonlinear operators with Gaussian noise and a differentiable prior, where autograd
             differentiates the VJP of the operator as well. Energy score of brains, MomentDraw and DPS: HDR 28.9 and
             29.1 (misfit 1.3 and 7), nonlinear blur 26.0 and 28.8.
Gradients    DAPS with chains: small Langevin steps for nonlinear operators, Hamiltonian ones for other noise.
Black box    EnKG.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from invdiff.latent import posed
from invdiff.samplers.base import InverseProblem, Prior, Sampler, Step, Streams
from invdiff.samplers.ensemble.enkg import EnKG
from invdiff.samplers.guidance.dps import DPS
from invdiff.samplers.guidance.momentdraw import MomentDraw
from invdiff.samplers.linearisation import twice_differentiable
from invdiff.samplers.settings import settings_for
from invdiff.samplers.splitting.daps import DAPS

# Settings that shrink the draws of linear problems towards their mean.
PICTURE: dict[type[Sampler], dict[str, Any]] = {
    MomentDraw: {"spread": 0.0, "root": 1},
    DAPS: {"prior_std": 0.25, "draw_std": 0.03},
}


@dataclass(frozen=True, kw_only=True)
class Auto(Sampler):
    """The sampler that fits operator, noise and prior, with its recommended settings; the default.

    goal  `posterior`: samples whose spread is that of the posterior. `picture`: the best mean of few samples, each of
          them too sure of itself; the same where the sampler has no setting for it
    """

    goal: Literal["posterior", "picture"] = "posterior"

    def resolve(self, problem: InverseProblem, prior: Prior) -> tuple[Sampler, str | None]:
        problem, prior = posed(problem, prior)
        cls, reason = self._choice(problem, prior)
        drawn = problem.operator.linear and problem.noise.gaussian
        given = PICTURE.get(cls, {}) if self.goal == "picture" and drawn else {}
        settled = settings_for(cls, problem.operator, problem.noise, prior, given=given)
        shrunk = "; goal=picture shrinks its draws, the spread is too small" if given else ""
        return settled.sampler, f"{cls.name()}: {reason}{shrunk}"

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sampler, _ = self.resolve(problem, prior)
        yield from sampler.iterate(problem, prior, rng)

    def _choice(self, problem: InverseProblem, prior: Prior) -> tuple[type[Sampler], str]:
        operator, noise = problem.operator, problem.noise
        name = type(operator).__name__
        if problem.codec is not None and not problem.codec.linear and operator.differentiable and prior.differentiable:
            return DPS, "the prior is one of codes, whose decoder is not linear"
        if operator.linear and noise.gaussian and prior.differentiable:
            return MomentDraw, f"{name} is linear, the noise Gaussian and the prior differentiable"
        if operator.linear and noise.gaussian:
            how = "in closed form" if operator.spectral else "by conjugate gradients"
            return DAPS, f"{name} is linear and the noise Gaussian: the data step is exact, {how}"
        if not operator.differentiable:
            return EnKG, f"{name} is a black box without gradients"
        if operator.stepped and prior.differentiable:
            return DPS, f"{name} has steps, its gradients are those of a smooth stand-in"
        if operator.stepped:
            return EnKG, f"{name} has steps, and chains do not follow the gradients of a stand-in"
        if operator.ambiguous:
            return DAPS, f"Hamiltonian chains at many levels, as more than one image fits the data of {name}"
        if noise.gaussian and prior.differentiable and twice_differentiable(problem, prior):
            return MomentDraw, f"{name} is nonlinear and differentiable, as is the prior, and the noise is Gaussian"
        if noise.gaussian:
            return DAPS, f"Langevin chains of small steps, as {name} is nonlinear and differentiable"
        what = f"the noise is {type(noise).__name__}" if operator.linear else f"{name} is nonlinear"
        return DAPS, f"Hamiltonian chains, as {what}"
