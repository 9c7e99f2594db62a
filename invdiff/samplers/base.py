"""The contract of posterior samplers.

A sampler is a frozen dataclass of hyper-parameters and one generator, `iterate`, that reads like the algorithm box of
its paper. Progress, random streams, chunking, precision, costs and divergence belong to the engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from inspect import isabstract
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from invdiff.engine.driver import Callback, Compute, run
from invdiff.engine.step import Step
from invdiff.integrators import named
from invdiff.latent import coded, posed
from invdiff.plug_ins import loaded, offered
from invdiff.posterior import Cost, Posterior
from invdiff.priors import Prior, as_prior
from invdiff.problem import InverseProblem, Unsupported
from invdiff.ranges import check_fields
from invdiff.samplers.moves import measured_numbers
from invdiff.streams import Streams

# All that a sampler file needs of the contract, in one import.
__all__ = ["Cost", "InverseProblem", "Needs", "Prior", "Sampler", "Step", "Streams", "all_samplers"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Traits that a sampler asks of operator, noise and prior.

    mask    the operator measures some of the pixels themselves, and nothing else
    smooth  the operator has no steps: long descents follow the gradients of a stand-in away from the data
    measurements  the most real numbers in y of one image; None: any number
    codec  the prior is a latent one: the sampler asks for images of codes, and codes of images (`latent.coded`).
           `mask`, `linear` and `spectral` are then asked of the operator on images, not of that on codes
    step_variance  the network predicts the variance of DDPM's steps
    embedding  the prior is conditioned on the embedding of a text, or one that was learned (`Prior.embedding`)
    images  the unknowns are images themselves, whose neighbouring pixels are alike
    """

    mask: bool = False
    linear: bool = False
    differentiable: bool = False
    smooth: bool = False
    spectral: bool = False
    gaussian_noise: bool = False
    differentiable_prior: bool = False
    step_variance: bool = False
    measurements: int | None = None
    codec: bool = False
    embedding: bool = False
    images: bool = False

    def missing(self, problem: InverseProblem, prior: Prior) -> list[str]:
        """The traits that the pair lacks, in words; empty where the sampler can run."""
        problem, prior = posed(problem, prior)
        operator = coded(problem).of_images.operator if self.codec and problem.codec is not None else problem.operator
        name = type(operator).__name__
        most = self.measurements
        count = 0 if most is None else int(measured_numbers(problem).max())
        lacks = {
            f"an inpainting operator, a mask of pixels ({name} is none)": self.mask and not operator.masking,
            f"a linear operator ({name} is not)": self.linear and not operator.linear,
            f"a differentiable operator ({name} is a black box)": self.differentiable and not operator.differentiable,
            f"an operator without steps (the gradients of {name} are those of a smooth stand-in)": self.smooth
            and operator.stepped,
            f"the singular value decomposition of the operator ({name} has none)": self.spectral
            and not operator.spectral,
            f"Gaussian noise (this is {type(problem.noise).__name__})": self.gaussian_noise
            and not problem.noise.gaussian,
            f"a differentiable prior ({type(prior).__name__} is not)": self.differentiable_prior
            and not prior.differentiable,
            f"a prior that predicts the variance of steps ({type(prior).__name__} does not)": self.step_variance
            and not prior.step_variance,
            f"a latent prior ({type(prior).__name__} has no codec)": self.codec and problem.codec is None,
            f"a prior with an embedding of text ({type(prior).__name__} has none)": self.embedding
            and prior.embedding is None,
            "images themselves as unknowns (this prior is one of codes)": self.images and problem.codec is not None,
            f"at most {most} measurements (y holds {count}; a larger ensemble takes more)": most is not None
            and count > most,
        }
        return [words for words, lacking in lacks.items() if lacking]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base of every posterior sampler. A subclass writes `iterate`, and declares:

    requires  what operator, noise and prior must offer (`needs` where it depends on the settings)
    per_step  network forwards and VJPs of one step of one sample (`expected_cost` where steps differ)
    small     settings of a run of a few steps on a tiny problem, for `example`
    clouds    there is `sample_of_cloud`: all samples of an image are particles of one ensemble, for the cost of one

    Its fields are checked against their types, `Literal` choices and `invdiff.ranges` when it is made.
    """

    requires: ClassVar[Needs] = Needs()
    per_step: ClassVar[Cost] = Cost(forwards=1)
    small: ClassVar[Mapping[str, Any]] = {}
    clouds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, self.name())
        if isinstance(getattr(self, "integrator", None), str):  # a name stands for an integrator with its settings
            object.__setattr__(self, "integrator", named(self.integrator))  # type: ignore[attr-defined]

    @abstractmethod
    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        """Yield a `Step` after each iteration.

        Rows are independent: row r is one sample of one image, with its own entry of `problem` and stream of `rng`.
        Gradients are off; open `torch.enable_grad()` where one is needed, around no `yield`.
        """

    @classmethod
    def name(cls) -> str:
        """The name under which commands, tables and messages know this class."""
        return cls.__name__.lower()

    @property
    def num_steps(self) -> int:
        """How many steps `iterate` yields."""
        steps: int = self.schedule.steps  # type: ignore[attr-defined]  # a subclass without `schedule` overrides this
        return steps

    @property
    def particles(self) -> int:
        """Images in flight for each sample, for which the engine leaves room."""
        return 1

    def needs(self) -> Needs:
        """What operator, noise and prior must offer, with these settings."""
        return self.requires

    def expected_cost(self) -> Cost:
        """Network forwards and VJPs of one sample, and operator calls where they are known, otherwise 0.

        A contract rule compares them with the meter.
        """
        steps = self.num_steps
        return Cost(forwards=steps * self.per_step.forwards, vjps=steps * self.per_step.vjps)

    @classmethod
    def example(cls) -> Self:
        """An instance with a budget of a few steps, for the contract rules."""
        return cls(**cls.small)

    @classmethod
    def variants(cls) -> dict[str, Self]:
        """`example()`, and it with each other value of a `Literal` or bool field: the modes that tests walk."""
        example = cls.example()
        found, hints = {"example": example}, get_type_hints(cls)
        for field in fields(cls):
            hint, own = hints[field.name], getattr(example, field.name)
            choices = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
            for value in choices:
                if value != own:
                    found[f"{field.name}={value}"] = replace(example, **{field.name: value})
        return found

    def resolve(self, problem: InverseProblem, prior: Prior) -> tuple["Sampler", str | None]:
        """The sampler that runs on this problem, and the reason where it is a choice: itself, unless it is `Auto`."""
        return self, None

    def check(self, problem: InverseProblem, prior: Prior) -> None:
        """Raise `Unsupported` where sampler, problem and prior do not fit together, with the samplers that do."""
        reason = prior.mismatch(problem.image_shape)
        if reason is not None:
            raise Unsupported(f"prior and image do not match: {reason}")
        missing = self.needs().missing(problem, prior)
        if missing:
            able = [
                f"{name} with its default settings" if cls is type(self) else name
                for name, cls in all_samplers().items()
                if not cls().needs().missing(problem, prior)
            ]
            raise Unsupported(
                f"{type(self).__name__} needs {' and '.join(missing)}; "
                + (f"compatible samplers: {', '.join(able)}" if able else "no installed sampler is compatible")
            )

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
        callback     called after every step with an `Event`

        Returns samples (B, S, C, H, W). Raises `Unsupported` before any work where the sampler cannot solve this
        problem, and `Interrupted`, with what is finished, on Ctrl-C.
        """
        prior = as_prior(prior)
        sampler, _ = self.resolve(problem, prior)
        sampler.check(problem, prior)
        return run(
            sampler,
            problem,
            prior,
            num_samples=num_samples,
            seed=seed,
            first_image=first_image,
            compute=compute or Compute(),
            callback=callback,
        )

    def sample_of_cloud(
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
        """As `sample`, but all samples of an image are particles of one ensemble, for the cost of one: not independent.

        Raises `Unsupported`, with the samplers that have an ensemble, where `clouds` is False.
        """
        able = [name for name, cls in all_samplers().items() if cls.clouds]
        raise Unsupported(f"clouds=true needs a sampler with an ensemble, {' or '.join(able)}, got {self.name()}")


def all_samplers() -> dict[str, type[Sampler]]:
    """Every method by its name, in alphabetical order; `Auto`, which chooses one of them, is not among them.

    A class is registered when it is defined: in this package, in a module that was imported, or in an installed package
    that names it under its entry points `invdiff.samplers`. Raises ValueError for an entry point that cannot be loaded.
    """
    for point in offered("invdiff.samplers"):
        loaded(point, "sampler")
    found = {cls.name(): cls for cls in _subclasses(Sampler) if not isabstract(cls) and cls.resolve is Sampler.resolve}
    return dict(sorted(found.items()))


def _subclasses(base: Any) -> Iterator[type[Sampler]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
