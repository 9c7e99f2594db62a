"""Sequential Monte Carlo with a guided proposal (SMC): the steps of any guided method, whose errors the weights undo.

Paper       Wu et al., Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, NeurIPS 2023,
            arXiv:2306.17775, Algorithm 1, which allows any proposal; theirs follows the gradient of the twist.
Target      p(x | y) under the discrete chain of ancestral steps, exactly as the ensemble grows, for any proposal and
            any number of steps; more steps bring that chain's own law to the prior's. With 4 particles and 6 levels the
            variance is 0.36 to 0.43 of the truth on a blurred Gaussian image of 16 pixels, with 6 and 10 it is 0.53 to
            0.71.
Needs       what the proposal needs.
Cost        per step and particle: 1 forward and 1 call of the operator, and but for the last step a call of the guided
            denoiser, of which `proposal` states the cost.
Form        with D_y the guided denoiser, x moves by N(D_y + a (x - D_y), V), a = (s' / s)^2, V = s'^2 (1 - a), where
            the prior alone moves it by N(D + a (x - D), V). The weight is multiplied by the ratio of the densities and
            by that of the twists of `tds.py`, which say how likely y is from where a particle stands; the last factor
            is p(y | x) over the last twist. Random numbers of the proposal (`lgd`) are those of each particle.
Departures  from TDS in the proposal alone; `proposal=` of the paper's own is `sampler=tds`, one VJP cheaper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Streams, all_samplers
from invdiff.samplers.guidance.guided import Estimate, Guided
from invdiff.samplers.guidance.mmps import MMPS
from invdiff.samplers.particles.tds import TDS, Estimator, joined
from invdiff.schedules import EDM
from invdiff.streams import key


@dataclass(frozen=True, kw_only=True)
class SMC(TDS):
    """Particle filter with the steps of a guided method: exact as the ensemble grows, whatever the method.

    proposal   a guided method, `mmps` with one iteration by default, or its name: `mmps`, `tmpd`, `lgd`. Its guided
               denoiser is used; levels and steps are those of the filter

    schedule, prior_std, ensemble, resample_below, particles_at_once  as in `TDS`
    """

    small: ClassVar = {
        "schedule": EDM(steps=6, sigma_max=5.0, sigma_min=0.02),
        "ensemble": 4,
        "particles_at_once": 1000,
    }

    proposal: Guided | str = MMPS(iterations=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.proposal, str):
            methods = {name: cls for name, cls in all_samplers().items() if issubclass(cls, Guided)}
            if self.proposal not in methods:
                raise ValueError(f"smc: proposal must be one of {', '.join(methods)}, got {self.proposal!r}")
            object.__setattr__(self, "proposal", methods[self.proposal]())

    @property
    def method(self) -> Guided:
        """The proposal; a name has become a method."""
        assert isinstance(self.proposal, Guided)
        return self.proposal

    def needs(self) -> Needs:
        return self.method.needs()

    def expected_cost(self) -> Cost:
        one, calls = self.method.expected_cost(), self.method.calls()
        guided = self.ensemble * (self.num_steps - 1)
        forwards = self.ensemble * self.num_steps + guided * one.forwards // calls
        return Cost(forwards=forwards, vjps=guided * one.vjps // calls)

    def estimator(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Estimator:
        rows = torch.arange(problem.images).repeat_interleave(self.ensemble)
        keys = [key(row, "sample", n) for row in rng.keys for n in range(self.ensemble)]
        problems: list[InverseProblem] = []
        guided: list[Estimate] = []
        for index in torch.arange(len(rows)).split(self.particles_at_once):
            streams = Streams([keys[i] for i in index.tolist()], rng.shape, rng.device, rng.dtype)
            problems.append(problem.select(rows[index]))
            guided.append(self.method.guided(problems[-1], prior, streams))

        def estimate(x: Tensor, sigma: float, softness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = []
            particles = x.flatten(0, 1).split(self.particles_at_once)
            for own, towards, part in zip(problems, guided, particles, strict=True):
                x0 = prior.denoise(part, sigma)
                parts.append((x0, own.nll(x0).double(), towards(part, sigma) - x0))
            x0, nll, pull = joined(parts, x)
            return x0, nll, pull

        return estimate
