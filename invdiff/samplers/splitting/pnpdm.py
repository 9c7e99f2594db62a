"""Plug-and-play diffusion models (PnP-DM): split Gibbs sampling, draws given the data and draws of the prior in turn.

Paper       Wu et al., Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors, NeurIPS 2024,
            arXiv:2405.18782, Algorithm 1.
Target      p(x, z | y), proportional to p(x) p(y | z) exp(-|x - z|^2 / (2 rho^2)), of which x is returned. For a linear
            operator that is p(x | y) with a noise of covariance sigma_y^2 I + rho^2 A A^T, too wide by what rho adds:
            exact as the last rho falls to 0, the iterations grow, about as 1 / rho^2, and so do the levels of the grid.
Needs       a differentiable operator; the exact data step a linear one and Gaussian noise. No network VJP.
Cost        per iteration and sample: as many forwards as there are levels of the grid below rho, and one for rho
            itself; one `solve`, one call and one adjoint of the operator, or `chain_steps` calls and products with
            its Jacobian.
Coordinates the paper's own; its images live in [-1, 1], so that rho is halved here and step sizes quartered.
Departures  the walk down from z starts at rho itself; the authors' starts at the level of their grid below rho. Its
            steps are the ancestral ones, theirs Euler's on the reverse equation, the same as the levels grow. One
            sample a chain, its last x; theirs are correlated ones of one chain. Ours is `step_size=None`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor

from invdiff.engine.step import Step
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.moves import bounded, conjugate, ddim_step, gaussian_draw, langevin, stiffness
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class PnPDM(Sampler):
    """Draw z near x given the data, draw x given z as an image with noise rho, and lower rho.

    The defaults are invdiff's own, for few network calls; `PnPDM.published()` has the paper's.

    iterations   pairs of draws
    rho          coupling of x and z in the first of them, image units
    decay        factor on rho from one iteration to the next
    rho_min      where rho stays, image units: the width that is added to the noise of y, and the slowness of the chain
    grid         noise levels of the draws of x, each from rho down
    eta          noise of their steps: 1 draws from p(x | z) as the grid grows, 0 follows the flow, which does not
    inner        how z is drawn: `closed_form` (linear operator, Gaussian noise), `langevin`, or `auto`: closed form
                 where it is possible
    chain_steps  length of a Langevin chain
    step_size    its step size, image units squared; published 2.5e-5. None: measured at every iteration for every
                 sample, as half of what the stiffest direction allows (4 more products with the Jacobian)
    """

    iterations: int = 60
    rho: float = 1.0
    decay: float = 0.94
    rho_min: float = 0.03
    grid: Schedule = EDM(steps=6, sigma_max=1.0, sigma_min=0.01)
    eta: float = 1.0
    inner: Literal["auto", "langevin", "closed_form"] = "auto"
    chain_steps: int = 100
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "rho", "rho_min", "chain_steps", "step_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"pnpdm: {name} must be positive and finite, got {value}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"pnpdm: decay must lie in (0, 1], got {self.decay}")
        if not self.rho_min <= self.rho:
            raise ValueError(f"pnpdm: rho falls from rho to rho_min, got {self.rho} and {self.rho_min}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"pnpdm: eta must lie in [0, 1], got {self.eta}")
        if self.inner not in ("auto", "langevin", "closed_form"):
            raise ValueError(f"pnpdm: inner must be one of auto, langevin, closed_form, got {self.inner!r}")

    @property
    def num_steps(self) -> int:
        return self.iterations

    def needs(self) -> Needs:
        if self.inner == "closed_form":
            return Needs(linear=True, gaussian_noise=True)
        return Needs(differentiable=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=sum(len(self.levels(k)) - 1 for k in range(self.iterations)))

    @classmethod
    def example(cls) -> Self:
        return cls(
            iterations=5, decay=0.4, rho_min=0.1, grid=EDM(steps=6, sigma_max=2.0, sigma_min=0.02), chain_steps=5
        )

    @classmethod
    def published(cls) -> Self:
        """The authors' settings for linear operators, in image units: 3673 network calls."""
        return cls(iterations=100, rho=5.0, decay=0.9, rho_min=0.15, grid=EDM(steps=100), step_size=2.5e-5)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        y = problem.y
        grey = sum(prior.value_range) / 2
        x = torch.full((problem.images, *problem.image_shape), grey, dtype=y.real.dtype, device=y.device)
        probe = None if self._closed_form(problem) or self.step_size is not None else rng.normal()
        for k in range(self.iterations):
            levels = self.levels(k)
            if self._closed_form(problem):
                z = gaussian_draw(problem, x, levels[0], rng)
            else:
                eta, probe = self._chain_step(problem, x, levels[0], probe)
                z = self._langevin(problem, x, levels[0], eta, rng)
            x = z
            for sigma, after in pairwise(levels):
                x = ddim_step(x, prior.denoise(x, sigma), sigma, after, self.eta, rng.normal())
            yield Step(x, x, 0.0)

    def levels(self, k: int) -> list[float]:
        """The levels that iteration k walks, from 0: its rho, the grid's below it, and 0."""
        rho = max(self.rho * self.decay**k, self.rho_min)
        return [rho, *(level for level in self.grid.sigmas().tolist() if level < rho)]

    def _closed_form(self, problem: InverseProblem) -> bool:
        return conjugate(problem) if self.inner == "auto" else self.inner == "closed_form"

    def _chain_step(
        self, problem: InverseProblem, x: Tensor, rho: float, probe: Tensor | None
    ) -> tuple[float | Tensor, Tensor | None]:
        """The step size, one for all or one per row shaped like x, and the stiffest direction so far."""
        if self.step_size is not None:
            return self.step_size, None
        assert probe is not None
        steepest, probe = stiffness(problem.nll_gradient, x, probe)
        return per_row(0.5 / (steepest + 1 / rho**2), x), probe

    def _langevin(self, problem: InverseProblem, x: Tensor, rho: float, eta: float | Tensor, rng: Streams) -> Tensor:
        """Unadjusted Langevin dynamics on N(z; x, rho^2) p(y | z), started at x."""

        def slope(z: Tensor) -> Tensor:
            steep = (z - x) / rho**2 + problem.nll_gradient(z)
            return steep if self.step_size is not None else bounded(steep, eta)

        return langevin(slope, x, eta, self.chain_steps, rng)
