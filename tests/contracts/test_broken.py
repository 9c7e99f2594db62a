"""Each broken operator, prior and sampler is refused, for the reason that it is broken."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator, check_pair, check_prior, check_sampler
from invdiff.contracts.compare import measure
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import (
    CallableOperator,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearOperator,
    Operator,
    SpectralOperator,
)
from invdiff.posterior import Cost
from invdiff.priors import GaussianPrior, Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import DAPS, DPS, Needs, Sampler, Step
from invdiff.schedules import EDM, VP
from invdiff.shapes import sigma_per_row
from invdiff.streams import Streams

SHAPE = (1, 8, 8)


# -- operators ---------------------------------------------------------------------------------------------------------


class Sound(LinearOperator):
    """A x = 2 x, right in every way; each class below spoils one thing."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Random(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + torch.randn_like(x)


class InPlace(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if not x.requires_grad else 2 * x


class Coupled(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + x.mean()


class Affine(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class HalfAdjoint(Sound):
    def adjoint(self, y: Tensor) -> Tensor:
        return y


class OneRho(Sound):
    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        return b / (4 + (rho if isinstance(rho, float) else rho.mean()))


class NoPinv(Sound):
    def pinv(self, y: Tensor) -> Tensor:
        return y


class LongPinv(LinearOperator):
    """Fits the data, but not with the least norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*measurement_shape[:-1], 2 * measurement_shape[-1])

    def pinv(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(2, -1) * torch.tensor([1.0, 5.0]).repeat(y.shape[-1])


class WrongVjp(Operator):
    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return x * v

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class HiddenGraph(Operator):
    differentiable = False

    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Cached(Sound):
    """Keeps a tensor made in whatever mode the first caller was in."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = 2 * torch.ones(1)
        return self.kept * x


class Forgets(Sound):
    """Has a gain per image, but not in `per_image`: chunks would use the first image's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain[: len(x)] * x


class OwnFunction(Operator):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x: x + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Wide(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.double()


class WrongSpectrum(GaussianBlur):
    def singular_values(self, like: Tensor) -> Tensor:
        return 1.1 * super().singular_values(like)


class NotOrthonormal(Inpainting):
    def vt(self, x: Tensor) -> Tensor:
        return 2 * x

    def v(self, z: Tensor) -> Tensor:
        return z / 2


class Shape(Sound):
    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*measurement_shape[:-1], 3)


class WrongShape(Sound):
    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape[1:]


class WrongKind(Sound):
    complex_measurement = True

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape


def test_the_sound_one_passes() -> None:
    check_operator(Sound(), SHAPE)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Random(), "second call"),
        (InPlace(), "changes its input images|second call"),
        (Coupled(), "measured alone differs"),
        (Affine(), "affine|is not linear"),
        (HalfAdjoint(), "adjoint is not the transpose"),
        (OneRho(), "does not solve"),
        (NoPinv(), "pinv misses a noiseless measurement"),
        (LongPinv(), "least norm"),
        (WrongVjp(), "differs from finite differences"),
        (HiddenGraph(), "has differentiable = False"),
        (Cached(), "after a call in inference mode"),
        (Forgets(), "measured alone differs"),
        (OwnFunction(), "cannot be pickled"),
        (Wide(), "of float32 images gives torch.float64"),
        (WrongSpectrum(std=0.8, kernel_size=5), "not U S V'|does not solve|pinv"),
        (WrongShape(), "measurement_shape gives"),
        (WrongKind(), "complex_measurement is True, but forward gives torch.float32"),
        (NotOrthonormal(keep=0.5), "does not keep lengths"),
        (Shape(), "image_shape says|adjoint"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else "",
)
def test_a_broken_operator_is_refused(operator: Operator, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_operator(operator, SHAPE)


def test_an_operator_that_refuses_its_example() -> None:
    with pytest.raises(AssertionError, match="refuses the image"):
        check_operator(Inpainting(box=100), SHAPE)
    assert issubclass(SpectralOperator, LinearOperator)


# -- priors ------------------------------------------------------------------------------------------------------------


class BatchMean(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.1 * x.mean()


class OneSigma(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, torch.as_tensor(sigma).mean())


class Dreams(WhitePrior):
    """Answers with its mean even where there is no noise."""

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return 0 * x + self.mean + 0 * sigma_per_row(sigma, x)


class Brightens(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.05


class Sampled(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.01 * torch.randn_like(x)


class CutGraph(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        gain = super().denoise(x.detach(), sigma)
        return gain + 0.5 * (x - x.detach())


class OtherScore(WhitePrior):
    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.denoise(x, sigma) - x


class Everything(GaussianPrior):
    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return None


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (BatchMean(), "one per row differ|alone differs"),
        (OneSigma(), "one per row differ"),
        (Dreams(), "almost the same estimate for different images"),
        (Brightens(), "moves an image"),
        (Sampled(), "second call"),
        (CutGraph(), "autograd differs from finite differences"),
        (OtherScore(), "score is not"),
        (Everything(torch.zeros(SHAPE), torch.eye(64)), "accepts images of shape"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Prior) else "",
)
def test_a_broken_prior_is_refused(prior: Prior, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_prior(prior)


# -- samplers ----------------------------------------------------------------------------------------------------------


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
