"""The contract of posterior samplers.

A sampler is a frozen dataclass of hyper-parameters and one generator, `iterate`, that reads like the algorithm box of
its paper. Progress, random streams, chunking, precision, costs and divergence belong to the driver.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import isnan
from typing import Any, Self

from invdiff.engine.driver import Callback, Compute, run
from invdiff.engine.step import Step
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.posterior import Cost, Posterior
from invdiff.priors import Prior, as_prior
from invdiff.problem import InverseProblem
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Traits that a sampler asks for, each with the words in which a user is told that it is missing.

    mask  some of the pixels themselves are measured, and nothing else: an `Inpainting`
    """

    mask: bool = False
    linear: bool = False
    differentiable: bool = False
    spectral: bool = False
    gaussian_noise: bool = False
    differentiable_prior: bool = False

    def missing(self, problem: InverseProblem, prior: Prior) -> list[str]:
        """What the pair lacks, in words; empty where the sampler can run."""
        operator = problem.operator
        name = type(operator).__name__
        checks = [
            (
                self.mask and not isinstance(operator, Inpainting),
                f"an inpainting operator, a mask of pixels ({name} is none)",
            ),
            (self.linear and not operator.linear, f"a linear operator ({name} is not)"),
            (self.differentiable and not operator.differentiable, f"a differentiable operator ({name} is a black box)"),
            (
                self.spectral and not operator.spectral,
                f"the singular value decomposition of the operator ({name} has none)",
            ),
            (
                self.gaussian_noise and not isinstance(problem.noise, GaussianNoise),
                f"Gaussian noise (this is {type(problem.noise).__name__})",
            ),
            (
                self.differentiable_prior and not prior.differentiable,
                f"a differentiable prior ({type(prior).__name__} is not)",
            ),
        ]
        return [words for absent, words in checks if absent]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base of every posterior sampler; see the module's docstring."""

    def __post_init__(self) -> None:
        # NaN passes every comparison that a method makes: refused here, for all of them.
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, float) and isnan(value):
                raise ValueError(f"{type(self).__name__.lower()}: {setting.name} is not a number")

    @abstractmethod
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        """Yield a `Step` after each iteration.

        Rows are independent: row r is one sample of one image, with its own entry of `problem` and stream of `rng`.
        Gradients are off; open `torch.enable_grad()` where one is needed, around no `yield`.
        """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """How many steps `iterate` yields."""

    @property
    def particles(self) -> int:
        """Images in flight for each sample, for which the driver leaves room."""
        return 1

    @abstractmethod
    def needs(self) -> Needs:
        """What the operator, the noise and the prior must offer."""

    @abstractmethod
    def expected_cost(self) -> Cost:
        """Network forwards and VJPs of one sample; a test compares them with the meter."""

    @classmethod
    def example(cls) -> Self:
        """An instance with a budget of a few steps, for the conformance tests."""
        raise NotImplementedError(f"{cls.__name__} gives no example()")

    def sample(
        self,
        problem: InverseProblem,
        prior: Any,
        *,
        num_samples: int = 1,
        seed: int = 0,
        first_image: int = 0,
        compute: Compute | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """Draw posterior samples.

        prior        a `Prior`, a `deepinv` denoiser or a function (x, sigma) -> clean images (see `as_prior`)
        num_samples  independent samples of each image, S
        seed         with the index of image and sample it determines every random number
        first_image  index of the problem's first image, where the problem is a part of a larger set
        compute      device, precision, chunking, progress; see `Compute`
        callback     told of every step; see `Callback`

        Returns samples (B, S, C, H, W). Raises `Unsupported` before any work where the sampler cannot solve this
        problem, and `Interrupted`, with what is finished, on Ctrl-C.
        """
        return run(
            self,
            problem,
            as_prior(prior),
            num_samples=num_samples,
            seed=seed,
            first_image=first_image,
            compute=compute or Compute(),
            callback=callback,
        )
