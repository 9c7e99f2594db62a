"""Rules of samplers: independent rows, honest cost, reported failures, declared requirements.

They do not ask whether a sampler draws from the posterior: see `law`.
"""

import copy
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor

from invdiff.contracts.compare import (
    Broken,
    NotApplicable,
    global_randomness_untouched,
    normal,
    normal_like,
    require,
    same_samples,
)
from invdiff.contracts.toys import COMPUTE, SMALL, Gain, MaskedGain, WhitePrior, accepted, fitting, small_operator
from invdiff.engine.driver import Event
from invdiff.engine.step import Step
from invdiff.latent import decoded, posed
from invdiff.operators import (
    CallableOperator,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    Operator,
    PoissonNoise,
)
from invdiff.posterior import Posterior
from invdiff.priors import LatentPrior, Prior
from invdiff.problem import InverseProblem, Unsupported
from invdiff.samplers import Sampler
from invdiff.streams import Streams, key


def check_sampler(sampler: Sampler, operator: Operator | None = None) -> None:
    """A sampler keeps the rules of the house; AssertionError names the first broken one.

    It runs several times with its own budget, so give one of a few steps.

    operator  of images 1x8x8, to try it on; None: a blur, or a mask for samplers that refuse a blur
    """
    for _, check in sampler_checks(sampler, operator):
        with suppress(NotApplicable):
            check()


def sampler_checks(sampler: Sampler, operator: Operator | None = None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and check of every rule; a check raises AssertionError where it is broken, `NotApplicable` where it is void.

    Call the checks in this order. Any other error of the sampler is passed on.
    """
    trial = _Trial(sampler, operator or small_operator(sampler))
    for name, check in _SAMPLER_RULES.items():
        yield name, partial(check, trial)


class _Trial:
    """A sampler with the small Gaussian problem it is tried on: four images, two samples of each."""

    def __init__(self, sampler: Sampler, operator: Operator) -> None:
        self.sampler, self.name = sampler, type(sampler).__name__
        self.prior = fitting(sampler, WhitePrior())
        with torch.no_grad():
            clean = operator(0.4 + 0.25 * normal(0, 4, *SMALL))
        y = clean + 0.1 * normal_like(1, clean)
        self.problem = InverseProblem(operator, GaussianNoise(0.1), y, image_shape=SMALL)
        self.y = y.clone()
        self.events: list[Event] = []
        self.modes: list[bool] = []

    def run(self, problem: InverseProblem | None = None, *, num_samples: int = 2, seed: int = 0) -> Posterior:
        problem = self.problem if problem is None else problem
        return self.sampler.sample(problem, self.prior, num_samples=num_samples, seed=seed, compute=COMPUTE)

    @cached_property
    def posterior(self) -> Posterior:
        """The run that others are compared with; gradients are on for the caller."""

        def watch(event: Event) -> None:
            self.events.append(event)
            self.modes.append(torch.is_grad_enabled())

        with torch.enable_grad():
            found = self.sampler.sample(self.problem, self.prior, num_samples=2, compute=COMPUTE, callback=watch)
            self.modes.append(torch.is_grad_enabled())
        return found


# -- what a sampler is -------------------------------------------------------------------------------------------------


def _check_accepts(t: _Trial) -> None:
    missing = t.sampler.needs().missing(t.problem, t.prior)
    require(not missing, f"{t.name} needs {' and '.join(missing)}; give an operator that it accepts")


def _check_frozen(t: _Trial) -> None:
    require(hash(t.sampler) == hash(copy.deepcopy(t.sampler)), f"{t.name} must be a frozen dataclass")


def _check_pickle(t: _Trial) -> None:
    copied = pickle.loads(pickle.dumps(t.sampler))
    require(copied == t.sampler, f"{t.name} has other settings after pickling")


# -- steps -------------------------------------------------------------------------------------------------------------


def _check_grad_mode(t: _Trial) -> None:
    """No grad mode of the sampler is open where it yields: the caller's mode is the same after every step."""
    problem = t.problem.select(torch.zeros(2, dtype=torch.long))
    mend = "no `yield` inside `no_grad` or `enable_grad`"
    for last in (1, t.sampler.num_steps):
        rng = Streams([key(0, "sample", 0, s) for s in range(2)], t.prior.diffusion_shape(SMALL), "cpu")
        with torch.no_grad():  # as in the driver
            steps = cast(Generator[Step, None, None], t.sampler.iterate(*posed(problem, t.prior), rng))
            for _ in range(last):
                next(steps, None)
                require(not torch.is_grad_enabled(), f"{t.name} switches gradients on for the caller; {mend}")
            torch.set_grad_enabled(True)
            steps.close()  # leaves every block that is open at the yield
            require(torch.is_grad_enabled(), f"{t.name} switches gradients off for the caller; {mend}")
    require(bool(t.posterior.samples.numel()) and all(t.modes), f"{t.name} leaves gradients off for the caller; {mend}")


def _check_random_state(t: _Trial) -> None:
    with global_randomness_untouched(t.name, "draw from the streams `rng` alone"):
        t.run(t.problem.select(torch.zeros(1, dtype=torch.long)))


def _check_repeats(t: _Trial) -> None:
    """The same seed gives the same samples, whatever the global state and the caller's grad mode."""
    first = t.posterior
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(12345)
        again = t.run()
    require(torch.equal(first.samples, again.samples), f"{t.name}: the same seed gives other samples")
    require(torch.equal(t.problem.y, t.y), f"{t.name} changes the measurement y; replace in-place operations")


def _check_inference_mode(t: _Trial) -> None:
    with torch.inference_mode():
        inside = t.run(InverseProblem(t.problem.operator, t.problem.noise, t.y.clone(), image_shape=SMALL))
    require(
        torch.equal(t.posterior.samples, inside.samples), f"{t.name}: a caller in inference mode gets other samples"
    )


def _check_number_of_steps(t: _Trial) -> None:
    assert t.posterior
    found = len(t.events)
    require(found == t.sampler.num_steps, f"{t.name} yields {found} steps and promises {t.sampler.num_steps}")


def _check_shape_of_steps(t: _Trial) -> None:
    shape = (t.posterior.samples.shape[0] * 2, *t.prior.diffusion_shape(SMALL))
    for step in (event.step for event in t.events):
        for state in (step.x, step.x0, *([] if step.mean is None else [step.mean])):
            require(state.shape == shape, f"{t.name} yields {tuple(state.shape)}, not {shape}")
            require(not state.requires_grad, f"{t.name} yields a state with a graph; detach what `enable_grad` made")


def _check_levels(t: _Trial) -> None:
    assert t.posterior
    levels = [event.step.sigma for event in t.events]
    require(levels == sorted(levels, reverse=True), f"{t.name}: noise levels rise: {levels}")
    require(levels[-1] == 0, f"{t.name} ends at noise level {levels[-1]}; the last iterate must have level 0")


def _check_last_step(t: _Trial) -> None:
    found, last = t.posterior.samples, t.events[-1].step.x
    last = last if t.prior.codec is None else decoded(last, t.prior.codec)
    require(torch.equal(last.reshape(found.shape), found), f"{t.name}: the last x is not the sample")


def _check_converges(t: _Trial) -> None:
    require(not t.posterior.diverged.any(), f"{t.name} diverges on a small linear problem with Gaussian noise")


def _check_cost(t: _Trial) -> None:
    expected, rows = t.sampler.expected_cost(), 2 * t.problem.images
    for kind in ("forwards", "vjps", *(["operator_calls"] if expected.operator_calls else [])):
        found, wanted = getattr(t.posterior.cost, kind), rows * getattr(expected, kind)
        require(found == wanted, f"{t.name} promises {wanted} {kind} and takes {found}")


# -- rows --------------------------------------------------------------------------------------------------------------


def _check_seeds(t: _Trial) -> None:
    first = t.posterior.samples
    twin = (first[:, 0] == first[:, 1]).flatten(1).all(1)
    require(not twin.any(), f"{t.name}: the samples of an image are all the same")
    same = (t.run(seed=1).samples == first).flatten(2).all(2)
    require(not same.any(), f"{t.name}: seeds 0 and 1 give the same samples")


def _check_chunks(t: _Trial) -> None:
    chunked = t.sampler.sample(t.problem, t.prior, num_samples=2, compute=replace(COMPUTE, max_rows=3))
    same_samples(chunked.samples, t.posterior.samples, f"{t.name}: samples depend on the number of rows in a chunk")
    same_samples(chunked.mean, t.posterior.mean, f"{t.name}: the mean depends on the number of rows in a chunk")


def _check_alone(t: _Trial) -> None:
    """Batch invariance in float32: no norm, mean or step size of one row depends on another row."""
    alone = t.sampler.sample(t.problem.select(torch.tensor([2])), t.prior, first_image=2, compute=COMPUTE)
    same_samples(
        alone.samples[0, 0], t.posterior.samples[2, 0], f"{t.name}: an image alone gives another sample than in a batch"
    )
    strangers = torch.full_like(t.y, 2.5)
    strangers[2] = t.y[2]
    among = t.run(InverseProblem(t.problem.operator, t.problem.noise, strangers, image_shape=SMALL))
    same_samples(
        among.samples[2], t.posterior.samples[2], f"{t.name}: the samples of an image depend on the others in the batch"
    )


def _check_unmeasured(t: _Trial) -> None:
    operator = accepted(t.sampler, (Inpainting(keep=0.5),))
    if operator is None:
        raise NotApplicable("it refuses masks")
    y, seen = operator(0.4 + 0.25 * normal(2, 2, *SMALL)), operator.measured(SMALL)
    assert seen is not None
    zero, *others = (
        t.run(InverseProblem(operator, GaussianNoise(0.1), torch.where(seen, y, value)), num_samples=1)
        for value in (0.0, 5.0, torch.nan)
    )
    for other in others:
        require(torch.equal(zero.samples, other.samples), f"{t.name}: samples depend on the unmeasured entries of y")


def _check_sick_image(t: _Trial) -> None:
    """NaN in one image is reported, and changes no other image."""
    well = accepted(t.sampler, (kind(torch.ones(3)) for kind in (Gain, MaskedGain)))
    if well is None:
        raise NotApplicable("it refuses an operator with a gain for each image")
    sick = copy.deepcopy(well)
    sick.get_buffer("gain")[1] = torch.nan
    y = 0.4 + 0.25 * normal(3, 3, *SMALL)
    healthy, found = (t.run(InverseProblem(operator, GaussianNoise(0.1), y)) for operator in (well, sick))
    reported = found.diverged.all(1).tolist()
    require(reported[1], f"{t.name}: NaN from the operator for one image is not reported; keep NaN in x or x0")
    require(reported == [False, True, False], f"{t.name}: NaN in image 1 makes others diverge: {reported}")
    same_samples(found.samples[[0, 2]], healthy.samples[[0, 2]], f"{t.name}: NaN in one image changes the others")


# -- requirements ------------------------------------------------------------------------------------------------------


class _Opaque(WhitePrior):
    """A prior through which no gradient may be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.differentiable = False

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        require(
            not (torch.is_grad_enabled() and x.requires_grad),
            "a graph crosses a prior with differentiable = False; require a differentiable prior, or call it under "
            "no_grad",
        )
        return super().denoise(x, sigma)


def _check_requirements(t: _Trial) -> None:
    """A missing trait is named before the first network call; with all that are required, the sampler runs."""
    noise, mask = GaussianNoise(0.1), Inpainting(keep=0.5)
    cases = (
        (LinearCallableOperator(_halved, image_shape=SMALL), noise, t.prior),
        (CallableOperator(torch.square, image_shape=SMALL), noise, t.prior),
        (CallableOperator(torch.square, differentiable=False, image_shape=SMALL), noise, t.prior),
        (mask, PoissonNoise(0.01), t.prior),
        (mask, noise, _Opaque()),
    )
    for operator, level, prior in cases:
        with torch.no_grad():
            problem = InverseProblem(operator, level, operator(torch.full((1, *SMALL), 0.4)))
        try:
            check_pair(t.sampler, problem, prior)
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            kinds = (type(part).__name__ for part in (operator, level, prior))
            raise Broken(
                f"{t.name} accepts {', '.join(kinds)}, then fails: {error}; declare the trait that it requires"
            ) from error


def _halved(x: Tensor) -> Tensor:
    return x / 2


def check_pair(sampler: Sampler, problem: InverseProblem, prior: Prior) -> bool:
    """A sampler runs on a problem with a prior, or names what is missing before any network call; True: it ran."""
    name = f"{type(sampler).__name__} with {type(problem.operator).__name__} and {type(prior).__name__}"
    counted = _Counted(prior.diffusion)
    given = counted if prior.codec is None else LatentPrior(counted, prior.codec)
    missing = sampler.needs().missing(problem, prior)
    if missing or prior.mismatch(problem.image_shape) is not None:
        try:
            sampler.sample(problem, given, compute=COMPUTE)
        except Unsupported as error:
            require(counted.calls == 0, f"{name}: refused only after {counted.calls} network calls")
            for words in missing[:1] if prior.mismatch(problem.image_shape) is None else []:
                require(words.split(" (")[0] in str(error), f"{name}: {error} does not name {words}")
            return False
        raise Broken(f"{name} do not fit together, but no Unsupported was raised")
    posterior = sampler.sample(problem, given, num_samples=2, compute=COMPUTE)
    shape = (problem.images, 2, *problem.image_shape)
    require(posterior.samples.shape == shape, f"{name}: samples are {tuple(posterior.samples.shape)}, not {shape}")
    sound = posterior.samples.flatten(2).isfinite().all(2)
    require(bool((sound | posterior.diverged).all()), f"{name}: NaN that is not reported")
    if not posterior.diverged.any():
        wanted = 2 * problem.images * sampler.expected_cost().forwards
        require(posterior.cost.forwards == wanted, f"{name}: {posterior.cost.forwards} forwards, promised {wanted}")
    return True


class _Counted(Prior):
    """Another prior, with its calls counted."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.calls = prior, 0
        self.shape, self.channels, self.differentiable = prior.shape, prior.channels, prior.differentiable
        self.sigma_range, self.value_range = prior.sigma_range, prior.value_range
        self.step_variance = prior.step_variance

    @property
    def embedding(self) -> Tensor | None:
        return self.prior.embedding

    def denoise_with(self, x: Tensor, sigma: float | Tensor, embedding: Tensor) -> Tensor:
        self.calls += 1
        return self.prior.denoise_with(x, sigma, embedding)

    def denoise_and_share(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.prior.denoise_and_share(x, sigma)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.calls += 1
        return self.prior.denoise(x, sigma)


_SAMPLER_RULES: dict[str, Callable[[_Trial], None]] = {
    "takes a small problem": _check_accepts,
    "frozen dataclass": _check_frozen,
    "pickle": _check_pickle,
    "no global randomness": _check_random_state,
    "grad mode of the caller": _check_grad_mode,
    "number of steps": _check_number_of_steps,
    "shape of steps": _check_shape_of_steps,
    "noise levels fall to 0": _check_levels,
    "last step is the sample": _check_last_step,
    "no divergence": _check_converges,
    "cost": _check_cost,
    "same seed, same samples": _check_repeats,
    "other seed, other samples": _check_seeds,
    "inference mode": _check_inference_mode,
    "chunks": _check_chunks,
    "rows do not mix": _check_alone,
    "unmeasured entries": _check_unmeasured,
    "NaN in one image": _check_sick_image,
    "requirements": _check_requirements,
}
