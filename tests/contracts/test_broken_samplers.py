"""Each broken sampler is refused, for the reason that it is broken."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from invdiff.contracts import check_pair, check_sampler
from invdiff.contracts.compare import measure
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import (
    CallableOperator,
    GaussianNoise,
)
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import DAPS, DPS, Needs, Sampler, Step
from invdiff.schedules import EDM, VP
from invdiff.streams import Streams

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    """A broken sampler that yields inside `no_grad` leaves gradients off when it is collected."""
    yield
    gc.collect()
    torch.set_grad_enabled(True)


@dataclass(frozen=True, kw_only=True)
class Honest(Sampler):
    """Denoise and noise again: no posterior, but it keeps the rules. Each class below breaks one."""

    levels: tuple[float, ...] = (1.0, 0.3, 0.1)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        x = rng.normal()
        for sigma, after in zip(self.levels, (*self.levels[1:], 0.0), strict=True):
            x0 = prior.denoise(x, sigma)
            x0 = x0 - 0.1 * problem.nll_gradient(x0) * 0.01
            x = x0 + after * rng.normal() if after else x0 + 0.01 * rng.normal()
            yield Step(x, x0, after)

    @property
    def num_steps(self) -> int:
        return len(self.levels)

    def needs(self) -> Needs:
        return Needs(differentiable=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps)


class GlobalNoise(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x + 0.01 * torch.randn_like(step.x), step.x0, step.sigma)


class Silent(Honest):
    """Replaces NaN by zeros, as some public codes do."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x.nan_to_num(0), step.x0.nan_to_num(0), step.sigma)


class Free(Honest):
    def expected_cost(self) -> Cost:
        return Cost(forwards=self.num_steps, vjps=1)


class Careless(Honest):
    """Takes gradients of the operator without declaring it."""

    def needs(self) -> Needs:
        return Needs()


class Promises(Honest):
    @property
    def num_steps(self) -> int:
        return 5


class Deterministic(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(0 * step.x + problem.y.mean(), step.x0, step.sigma)


class EndsNoisy(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x, step.x0, step.sigma + 0.1)


class Couples(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x + 1e-3 * problem.y.nan_to_num(0).mean(), step.x0, step.sigma)


class Peeks(Honest):
    """Uses what y holds where nothing was measured."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x + 1e-3 * problem.y.nan_to_num(0).mean((1, 2, 3), keepdim=True), step.x0, step.sigma)


class NumPyNoise(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            x = step.x + 0.01 * torch.from_numpy(np.random.standard_normal(step.x.shape)).float()  # noqa: NPY002
            yield Step(x, step.x0, step.sigma)


class YieldsWithGradients(Honest):
    """The mode is open at the yield: in the driver, gradients of the next step are off all the same."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        with torch.enable_grad():
            for step in super().iterate(problem, prior, rng):
                yield Step(step.x.detach(), step.x0.detach(), step.sigma)


class YieldsWithoutGradients(Honest):
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        with torch.no_grad():
            yield from super().iterate(problem, prior, rng)


class OneScale(Honest):
    """Divides by the largest value of the whole batch, as one step size for all rows does."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            yield Step(step.x * (1 + 1e-3 * step.x0.abs().max()), step.x0, step.sigma)


class CrossesTheNetwork(Honest):
    """Takes gradients through the network without declaring them."""

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in super().iterate(problem, prior, rng):
            with torch.enable_grad():
                prior.denoise(step.x.detach().requires_grad_(True), 0.1)
            yield step

    def expected_cost(self) -> Cost:
        return Cost(forwards=2 * self.num_steps)


def test_the_honest_one_passes() -> None:
    check_sampler(Honest())
    check_sampler(Honest(), operator=CallableOperator(torch.tanh, image_shape=SHAPE))


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (GlobalNoise(), "global random state of torch"),
        (NumPyNoise(), "global random state of NumPy"),
        (YieldsWithGradients(), "switches gradients on for the caller; no `yield` inside"),
        (YieldsWithoutGradients(), "switches gradients off for the caller; no `yield` inside"),
        (OneScale(), "alone gives another sample|number of rows in a chunk"),
        (CrossesTheNetwork(), "a graph crosses a prior"),
        (Careless(), "accepts CallableOperator, GaussianNoise, WhitePrior, then fails"),
        (Silent(), "is not reported"),
        (Free(), "promises 8 vjps and takes 0"),
        (Promises(), "yields 3 steps and promises 5"),
        (Deterministic(), "same samples|all the same"),
        (EndsNoisy(), "ends at noise level 0.1"),
        (Couples(), "depend on"),
        (Peeks(), "depend on the unmeasured entries"),
        (Honest(levels=(0.1, 0.3, 0.5)), "noise levels rise"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sampler) else "",
)
def test_a_broken_sampler_is_refused(sampler: Sampler, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_sampler(sampler)


def test_a_sampler_that_hides_a_need() -> None:
    """It fails in the middle of a run; one that declares it is refused at the start."""
    black_box = CallableOperator(torch.square, differentiable=False, image_shape=SHAPE)
    with pytest.raises(RuntimeError):
        check_pair(Careless(), measure(black_box, SHAPE, GaussianNoise(0.1)), WhitePrior())
    assert not check_pair(Honest(), measure(black_box, SHAPE, GaussianNoise(0.1)), WhitePrior())


def test_the_published_ones_at_other_settings() -> None:
    """The checks are about rules, not about settings."""
    check_sampler(DPS(schedule=VP(steps=5), guidance="norm", clip=False))
    check_sampler(
        DAPS(schedule=EDM(steps=4, sigma_max=5.0, sigma_min=0.1), inner="langevin", chain_steps=5, ode_steps=2)
    )
