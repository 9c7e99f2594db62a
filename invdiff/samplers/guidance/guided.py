"""What samplers with a guided denoiser share: any integrator walks the levels with E[x0 | x, y] in place of E[x0 | x].

Papers      the posterior score is (E[x0 | x, y] - x) / sigma^2 by Tweedie's formula, so that every method that
            integrates a diffusion takes the guided denoiser as it is. Time travel: Lugmayr et al., RePaint, CVPR 2022,
            arXiv:2201.09865; Yu et al., FreeDoM, ICCV 2023, arXiv:2303.09833.
Departures  the last step to level 0 ends at a misfit near 1 where the operator is linear, `moves.explained`, theirs at
            E[x0 | x, y]: what a method takes for it may leave precise data unexplained. MMPS ends as published.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

from torch import Tensor

from invdiff.integrators import DDIM, Integrator, Name, named
from invdiff.ranges import Count, Positive
from invdiff.samplers.base import Cost, InverseProblem, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import explained
from invdiff.schedules import EDM, Schedule

Estimate = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Guided(Sampler):
    """Base of samplers that write `guided`, an estimate of E[x0 | x_sigma, y].

    schedule      noise levels
    integrator    how x moves between them: an `Integrator` or the name of one, see docs/samplers.md; the ancestral
                  steps of DDPM by default
    travel        times that each step is taken; before it is taken again x is noised back to where it began (time
                  travel): x has longer to agree with y, at so many times the cost
    travel_below  highest level at which steps are repeated, of pictures in [0, 1]; None: all of them
    """

    # Whether the last step to level 0 ends at a misfit near 1, `moves.explained`, where the operator is linear.
    ends_explained: ClassVar[bool] = True

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.003)
    integrator: Integrator | Name = DDIM(eta=1.0)
    travel: Count = 1
    travel_below: Positive | None = None

    @abstractmethod
    def guided(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Estimate:
        """(x, sigma) -> E[x0 | x_sigma = x, y], (R, C, H, W): a denoiser for any solver of the flow."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas, scale = self.schedule.sigmas().tolist(), prior.scale
        estimate, integrator = self.guided(problem, prior, rng), named(self.integrator)
        x = prior.start(scale * sigmas[0], rng.normal())
        for run, times in self._parts(sigmas):
            for left in reversed(range(times)):
                for moved, x0, sigma in integrator.walk(estimate, x, run, rng.normal, scale, prior.centre):
                    x = moved
                    if sigma == 0 and self.ends_explained and problem.operator.linear:
                        x = explained(problem, x, scale)
                    if left == 0:
                        yield Step(x, x0, sigma)
                if left > 0:
                    x = x + scale * sqrt(run[0] ** 2 - run[1] ** 2) * rng.normal()

    def _parts(self, sigmas: Sequence[float]) -> list[tuple[list[float], int]]:
        """Runs of levels, and how often each is walked: a step that is repeated is a run of its own, since a multistep
        integrator must not remember what was before a jump.
        """
        parts: list[tuple[list[float], int]] = []
        for sigma, after in pairwise(sigmas):
            below = self.travel_below is None or sigma <= self.travel_below
            times = self.travel if below and after > 0 else 1
            if parts and times == parts[-1][1] == 1:
                parts[-1][0].append(after)
            else:
                parts.append(([sigma, after], times))
        return parts

    def calls(self) -> int:
        """Calls of the guided denoiser for one sample."""
        walk = named(self.integrator).calls
        parts = self._parts(self.schedule.sigmas().tolist())
        return sum(times * walk(len(run) - 1, to_zero=run[-1] == 0) for run, times in parts)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.calls() * self.per_step.forwards, vjps=self.calls() * self.per_step.vjps)
