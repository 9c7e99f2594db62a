"""Plug-and-play diffusion models (PnP-DM): split Gibbs sampling, draws given the data and draws of the prior in turn.

Paper       Wu et al., Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors, NeurIPS 2024,
            arXiv:2405.18782, Algorithm 1.
Target      p(x, z | y), proportional to p(x) p(y | z) exp(-|x - z|^2 / (2 rho^2)), of which x is returned. For a linear
            operator that is p(x | y) with a noise of covariance sigma_y^2 I + rho^2 A A^T, too wide by what rho adds:
            exact as the last rho falls to 0, the iterations grow, about as 1 / rho^2, and so do the levels of the grid.
            With the default settings it is too narrow: variance 0.56 of the truth on a Gaussian of 16 pixels.
Needs       a differentiable operator without steps; the exact data step a linear one and Gaussian noise. No network
            VJP.
Cost        per iteration and sample: as many forwards as there are levels of the grid below rho, and one for rho
            itself; one `solve`, one call and one adjoint of the operator, or `chain_steps` calls and products with
            its Jacobian. Two calls of the operator besides, for `noise_share`.
Coordinates the paper's own; its images live in [-1, 1], so that rho is halved here and step sizes quartered.
Departures  the start is the centre of the prior; the authors' is A^+ y. The walk down from z starts at rho itself;
            the authors' starts at the level of their grid below rho. Its steps are the ancestral ones, theirs Euler's
            on the reverse equation, the same as the levels grow. One sample a chain, its last x; theirs are correlated
            ones of one chain. Ours are `step_size=None` and `noise_share`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from invdiff.integrators import DDIM, Integrator, Name, named
from invdiff.ranges import Count, Positive, Range
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.chains import Conditional, chosen, needs_of
from invdiff.samplers.moves import mean_variance, typical_gain
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class PnPDM(Sampler):
    """Split Gibbs: draw given the data, then draw from the prior given noise rho; no VJP through the network.

    The defaults are invdiff's own, for few network calls; `experiment=paper/pnpdm_...` has the paper's.

    iterations   pairs of draws
    rho          coupling of x and z in the first of them, image units
    decay        factor on rho from one iteration to the next
    rho_min      where rho stays, image units: the width that is added to the noise of y, and the slowness of the chain
    noise_share  rho and the levels below it shrink further from one iteration to the next, where they have to, so that
                 the last rho is at most this share of the noise of y in image units: what the coupling adds to the
                 variance of y is then a quarter of it, for 0.5. None: they do not (published)
    grid         noise levels of the draws of x, each from rho down
    integrator   how they move down: with noise they draw from p(x | z) as the grid grows, the flow does not
    inner        how z is drawn: `closed_form` (linear operator, Gaussian noise), `langevin`, or `auto`: closed form
                 where it is possible
    chain_steps  length of a Langevin chain
    step_size    its step size, image units squared; published 2.5e-5. None: measured at every iteration for every
                 sample, as a quarter of what the stiffest direction allows (4 more products with the Jacobian), with
                 steps that do not widen the law
    """

    small: ClassVar = {
        "iterations": 5,
        "decay": 0.4,
        "rho_min": 0.1,
        "grid": EDM(steps=6, sigma_max=2.0, sigma_min=0.02),
        "chain_steps": 5,
    }

    iterations: Count = 60
    rho: Positive = 1.0
    decay: Annotated[float, Range(0, 1, open_low=True)] = 0.94
    rho_min: Positive = 0.03
    noise_share: Positive | None = 0.5
    grid: Schedule = EDM(steps=6, sigma_max=1.0, sigma_min=0.01)
    integrator: Integrator | Name = DDIM(eta=1.0)
    inner: Literal["auto", "langevin", "closed_form"] = "auto"
    chain_steps: Count = 100
    step_size: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho_min <= self.rho:
            raise ValueError(f"pnpdm: rho_min must be <= rho, got {self.rho_min} and {self.rho}")

    @property
    def num_steps(self) -> int:
        return self.iterations

    def needs(self) -> Needs:
        return needs_of(self.inner)

    def expected_cost(self) -> Cost:
        walk = named(self.integrator).calls
        return Cost(forwards=sum(walk(len(self.levels(k)) - 1) for k in range(self.iterations)))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        x = prior.centre.to(problem.y.real).expand(problem.images, *problem.image_shape)
        likelihood = chosen(self.inner, problem, rng, self.chain_steps, self.step_size, scale=prior.scale)
        shrink = self._shrink(problem, prior)
        for k in range(self.iterations):
            factor, levels = prior.scale * shrink ** (k / max(self.iterations - 1, 1)), self.levels(k)
            z = likelihood.draw(
                Conditional(problem, x, factor * levels[0]), rng, self.step_size and prior.scale**2 * self.step_size
            )
            x = named(self.integrator).end(prior.denoise, z, levels, rng.normal, factor, prior.centre)
            yield Step(x, x, 0.0)

    def _shrink(self, problem: InverseProblem, prior: Prior) -> Tensor:
        """Factor on the levels of the last iteration, (R,)."""
        if self.noise_share is None:
            return problem.y.real.new_ones(problem.images)
        noise = mean_variance(problem).sqrt() / typical_gain(problem, prior)
        return (self.noise_share * noise / (self.rho_min * prior.scale)).clamp(max=1)

    def levels(self, k: int) -> list[float]:
        """The levels that iteration k walks, down to 0: its rho, the grid's below it, and 0."""
        rho = max(self.rho * self.decay**k, self.rho_min)
        return [rho, *(level for level in self.grid.sigmas().tolist() if level < rho)]
