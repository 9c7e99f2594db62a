"""The driver: rows, chunks, gradients, failures, memory and the clock, for all samplers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Compute, Interrupted, InverseProblem, Unsupported
from invdiff.contracts.toys import WhitePrior, fitting, small_operator
from invdiff.engine.driver import Event
from invdiff.operators import CallableOperator, Denoising, GaussianNoise, Inpainting, PoissonNoise
from invdiff.posterior import Cost
from invdiff.priors import DiffusersPrior, EDMPrior, GaussianPrior, Prior
from invdiff.priors.networks.diffusers_prior import example_unet
from invdiff.samplers import DAPS, DPS, EnKG, Needs, Sampler, Step, all_samplers
from invdiff.schedules import EDM
from invdiff.streams import Streams, key

SHAPE = (1, 8, 8)
SAMPLERS = all_samplers()


@dataclass(frozen=True, kw_only=True)
class Walk(Sampler):
    """Noise added up, one network call a step: the result is easy to predict.

    sleep       seconds that a step takes
    sick        image index -> step at which it becomes `disease`
    """

    steps: int = 4
    sleep: float = 0.0
    sick: dict[int, int] = field(default_factory=dict)
    disease: float = torch.nan

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        x = rng.normal()
        first = problem.y.flatten(1)[:, 0]  # the image's own index, put there by the test
        for k in range(self.steps):
            x = x + 0.1 * rng.normal()
            x0 = prior.denoise(x, 0.5)
            for image, step in self.sick.items():
                x0 = torch.where(((first == image) & (k >= step)).reshape(-1, 1, 1, 1), self.disease, x0)
            if self.sleep:
                time.sleep(self.sleep)
            yield Step(x, x0, float(self.steps - 1 - k), mean=2 * x)

    def __post_init__(self) -> None:
        """NaN is allowed here."""

    @property
    def num_steps(self) -> int:
        return self.steps

    def needs(self) -> Needs:
        return Needs()

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.steps)


def numbered(images: int) -> InverseProblem:
    """Image i measures i."""
    y = torch.arange(float(images)).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).clone()
    return InverseProblem(Denoising(), GaussianNoise(1.0), y)


QUIET = Compute(device="cpu", progress=False)


def test_any_denoiser_is_a_prior() -> None:
    """A function (x, sigma) is a prior; anything else is refused before any work."""
    prior = WhitePrior()
    given, own = (
        DPS(schedule=EDM(steps=3, sigma_max=5.0, sigma_min=0.01)).sample(numbered(2), thing, compute=QUIET)
        for thing in (lambda x, sigma: prior.denoise(x, sigma), prior)
    )
    assert torch.equal(given.samples, own.samples)
    assert given.cost.vjps == own.cost.vjps > 0
    with pytest.raises(TypeError, match="a prior must be an invdiff Prior, a deepinv Denoiser or a function"):
        DPS().sample(numbered(2), "photo")


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_invariance_with_a_network(name: str, float32: Compute) -> None:
    """Image 5 alone, in a batch of 8, and as the first of a chunk of the second part: the same to 1e-4."""
    sampler = SAMPLERS[name].example()
    operator = small_operator(sampler)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Prior = EDMPrior(EDMPrior.example().network, shape=None)
        if sampler.needs().codec:
            unet = example_unet(channels=4, sample_size=None)
            network = fitting(sampler, DiffusersPrior.of_codes(unet, {"_class_name": "DDPMScheduler"}))
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(x))
    together = sampler.sample(problem, network, compute=float32).samples
    alone = sampler.sample(problem.select(torch.tensor([5])), network, first_image=5, compute=float32)
    part = problem.select(torch.arange(5, 8))
    chunks = sampler.sample(part, network, first_image=5, compute=replace(float32, max_rows=2))
    for other in (alone.samples[0], chunks.samples[0]):
        assert (other - together[5]).abs().max() < 1e-4


@pytest.mark.parametrize("max_rows", [1, 2, 5, 7, 100])
def test_chunks_put_rows_back_in_their_place(max_rows: int) -> None:
    problem, prior = numbered(4), WhitePrior()
    whole = Walk().sample(problem, prior, num_samples=3, compute=QUIET)
    parts = Walk().sample(
        problem, prior, num_samples=3, compute=Compute(device="cpu", max_rows=max_rows, progress=False)
    )
    assert whole.samples.shape == (4, 3, *SHAPE)
    assert torch.equal(whole.samples, parts.samples)
    assert torch.equal(whole.mean, parts.mean)
    assert torch.allclose(whole.mean, 2 * whole.mean_of_samples)
    assert parts.cost.forwards == whole.cost.forwards == 4 * 3 * 4


def test_a_row_is_its_image_and_its_sample() -> None:
    """Sample s of image i draws from the stream (seed, i, s), whatever S and the batch are."""
    posterior = Walk(steps=1).sample(numbered(3), WhitePrior(), num_samples=2, seed=9, first_image=10, compute=QUIET)
    for i in range(3):
        for s in range(2):
            rng = Streams([key(9, "sample", 10 + i, s)], SHAPE)
            assert torch.equal(posterior.samples[i, s], (rng.normal() + 0.1 * rng.normal())[0])


def test_seeds_repeat_and_differ() -> None:
    zero, again, one = (Walk().sample(numbered(2), WhitePrior(), seed=seed, compute=QUIET) for seed in (0, 0, 1))
    assert torch.equal(zero.samples, again.samples)
    assert not torch.equal(zero.samples, one.samples)


def test_events_name_their_rows() -> None:
    events: list[Event] = []
    Walk(steps=2).sample(
        numbered(2),
        WhitePrior(),
        num_samples=2,
        compute=Compute(device="cpu", max_rows=3, progress=False),
        callback=events.append,
    )
    assert [event.index for event in events] == [0, 1, 0, 1]
    assert {event.total for event in events} == {2}
    assert events[0].image.tolist() == [0, 0, 1]
    assert events[0].sample.tolist() == [0, 1, 0]
    assert (events[2].image.tolist(), events[2].sample.tolist()) == ([1], [1])
    assert events[0].step.x.shape == (3, *SHAPE)


@pytest.mark.parametrize("count", [0, -2])
def test_the_number_of_samples_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {count}"):
        Walk().sample(numbered(1), WhitePrior(), num_samples=count)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rows": 0}, "max_rows must be at least 1, or null, got 0"),
        ({"max_rows": -1}, "max_rows must be at least 1, or null, got -1"),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, got 'float16'"),
    ],
)
def test_compute_is_checked(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Compute(**options)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_the_callers_grad_mode_is_untouched_after_every_step(enabled: bool) -> None:
    modes: list[bool] = []
    with torch.set_grad_enabled(enabled):
        Walk().sample(
            numbered(2), WhitePrior(), compute=QUIET, callback=lambda _: modes.append(torch.is_grad_enabled())
        )
        modes.append(torch.is_grad_enabled())
    assert modes == [enabled] * 5


def test_gradients_are_off_inside_a_sampler() -> None:
    """In any mode of the caller: a sampler that forgets to detach would keep the graphs of all its steps alive."""
    inside: list[bool] = []

    class Look(Walk):
        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            for step in super().iterate(problem, prior, rng):
                inside.append(torch.is_grad_enabled())
                yield step

    with torch.enable_grad():
        Look().sample(numbered(1), WhitePrior(), compute=QUIET)
    assert inside == [False] * 4


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disease", [torch.nan, torch.inf, -1e9])
def test_divergence_is_reported_at_its_step_and_others_are_unharmed(disease: float) -> None:
    problem, prior = numbered(4), WhitePrior()
    healthy = Walk().sample(problem, prior, num_samples=2, compute=QUIET)
    sick = Walk(sick={1: 2, 3: 0}, disease=disease).sample(problem, prior, num_samples=2, compute=QUIET)
    assert sick.diverged_at.tolist() == [[-1, -1], [2, 2], [-1, -1], [0, 0]]
    assert sick.diverged[:, 0].tolist() == [False, True, False, True]
    assert torch.equal(sick.samples[[0, 2]], healthy.samples[[0, 2]])
    assert torch.equal(sick.mean[[0, 2]], healthy.mean[[0, 2]])
    assert sick.mean[[1, 3]].isnan().all()
    assert sick.std[[1, 3]].isnan().all()


def test_a_large_but_possible_estimate_is_no_divergence() -> None:
    """The limit is a hundred times the value range."""
    prior = WhitePrior()
    sick = Walk(sick={0: 1}, disease=50.0).sample(numbered(1), prior, compute=QUIET)
    assert not sick.diverged.any()
    assert Walk(sick={0: 1}, disease=101.0).sample(numbered(1), prior, compute=QUIET).diverged.all()


def test_a_chunk_that_is_lost_stops_early_and_the_next_one_runs() -> None:
    prior, cost_of_one = WhitePrior(), 4
    sick = Walk(sick={0: 1}).sample(numbered(2), prior, compute=Compute(device="cpu", max_rows=1, progress=False))
    assert sick.diverged_at.tolist() == [[1], [-1]]
    assert sick.cost.forwards == 2 + cost_of_one


def test_no_step_at_all_is_an_error() -> None:
    class Idle(Walk):
        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            yield from ()

    with pytest.raises(RuntimeError, match="yielded no step"):
        Idle().sample(numbered(1), WhitePrior(), compute=QUIET)


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "images"), [(0, 0), (1, 1), (2, 3), (3, 4)])
def test_ctrl_c_keeps_the_images_that_are_finished(chunk: int, images: int) -> None:
    """Chunks of 3 rows, 2 samples an image: after chunk 1, image 0 is done and half of image 1."""
    problem, compute = numbered(6), Compute(device="cpu", max_rows=3, progress=False)
    whole = Walk().sample(problem, WhitePrior(), num_samples=2, compute=compute)
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        if seen == chunk and event.index == 2:
            raise KeyboardInterrupt
        seen += event.index == 3

    with pytest.raises(Interrupted) as caught:
        Walk().sample(problem, WhitePrior(), num_samples=2, compute=compute, callback=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.images == images
    if images == 0:
        assert caught.value.posterior is None
    else:
        assert caught.value.posterior is not None
        assert torch.equal(caught.value.posterior.samples, whole.samples[:images])
        assert torch.equal(caught.value.posterior.mean, whole.mean[:images])
        assert not caught.value.posterior.diverged.any()
        assert caught.value.posterior.cost.forwards == (3 * chunk) * 4 + 3 * 3
        assert caught.value.posterior.cost.peak_memory_mb > 0


def test_other_errors_of_a_callback_are_its_own() -> None:
    def complain(event: Event) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Walk().sample(numbered(1), WhitePrior(), compute=QUIET, callback=complain)


# -- what cannot work --------------------------------------------------------------------------------------------------


class Untouchable(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        raise AssertionError("a network call before the requirements were checked")


def test_a_gradient_method_on_a_black_box() -> None:
    """The message names the missing trait, and every sampler that would run."""
    box = CallableOperator(lambda x: x.round(), differentiable=False, image_shape=SHAPE)
    problem = InverseProblem(box, GaussianNoise(0.1), torch.zeros(1, *SHAPE))
    with pytest.raises(
        Unsupported, match=r"DPS needs a differentiable operator \(CallableOperator is a black box\)"
    ) as e:
        DPS().sample(problem, Untouchable())
    for name, cls in SAMPLERS.items():
        able = not cls().needs().missing(problem, WhitePrior())
        assert (name in str(e.value).split("; ")[1]) == able
    assert "\n" not in str(e.value)


def test_the_closed_form_of_daps_with_photon_counting() -> None:
    problem = InverseProblem(Inpainting(keep=0.5), PoissonNoise(0.01), torch.zeros(1, *SHAPE))
    with pytest.raises(Unsupported, match=r"DAPS needs Gaussian noise \(this is PoissonNoise\)") as caught:
        DAPS(inner="closed_form").sample(problem, Untouchable())
    assert "compatible samplers: daps with its default settings, dps" in str(caught.value)


def test_everything_that_is_missing_is_named_at_once() -> None:
    problem = InverseProblem(
        CallableOperator(torch.square, image_shape=SHAPE), PoissonNoise(0.01), torch.zeros(1, *SHAPE)
    )
    with pytest.raises(Unsupported, match=r"a linear operator .*CallableOperator is not.* and Gaussian noise"):
        DAPS(inner="closed_form").sample(problem, Untouchable())


def test_a_prior_that_cannot_be_differentiated() -> None:
    prior = Untouchable()
    prior.differentiable = False
    with pytest.raises(
        Unsupported, match=r"DPS needs a differentiable prior \(Untouchable is not\).*compatible samplers: .*daps"
    ):
        DPS().sample(numbered(1), prior)


def test_a_prior_of_other_images() -> None:
    with pytest.raises(
        Unsupported, match=r"do not match: this prior expects images of shape \(1, 16, 16\), got \(1, 8, 8\)"
    ):
        DPS().sample(numbered(1), GaussianPrior.example())
    colour = InverseProblem(Denoising(), GaussianNoise(0.1), torch.zeros(1, 3, 16, 16))
    prior = EDMPrior.example()
    prior.shape = None
    with pytest.raises(Unsupported, match=r"this prior expects 1 channel, got 3"):
        DPS().sample(colour, prior)


# -- memory ------------------------------------------------------------------------------------------------------------


class Greedy(WhitePrior):
    """Has memory for `rows` rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.batches = rows, list[int]()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.batches.append(x.shape[0])
        if x.shape[0] > self.rows:
            raise torch.OutOfMemoryError("no more")
        return super().denoise(x, sigma)


def test_running_out_of_memory_halves_the_chunks() -> None:
    problem, prior = numbered(5), Greedy(rows=3)
    posterior = Walk(steps=2).sample(problem, prior, num_samples=2, compute=QUIET)
    assert prior.batches == [10, 5, *[2] * 2 * 5]
    plenty = Walk(steps=2).sample(problem, WhitePrior(), num_samples=2, compute=QUIET)
    assert torch.equal(posterior.samples, plenty.samples)
    assert posterior.cost.forwards == 10 + 5 + 20  # chunks that ran out of memory count


def test_running_out_of_memory_is_an_error_where_nothing_smaller_is_left() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Walk().sample(numbered(2), Greedy(rows=0), compute=QUIET)
    prior = Greedy(rows=2)
    with pytest.raises(torch.OutOfMemoryError):  # a given max_rows is kept
        Walk().sample(numbered(4), prior, compute=Compute(device="cpu", max_rows=3, progress=False))
    assert prior.batches == [3]


def test_few_rows_at_a_time_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU out of memory swaps and raises no error: the rows in flight are bounded beforehand."""
    monkeypatch.setattr("invdiff.engine.driver.CPU_PIXELS", 3 * 64)
    prior = Greedy(rows=3)
    Walk(steps=1).sample(numbered(7), prior, compute=QUIET)
    assert prior.batches == [3, 3, 1]


@pytest.mark.parametrize(("particles", "batches"), [(2, [6, 1]), (4, [3, 3, 1]), (100, [1] * 7)])
def test_fewer_rows_at_a_time_where_each_is_many_particles(
    particles: int, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowd(Walk):
        @property
        def particles(self) -> int:
            return particles

    monkeypatch.setattr("invdiff.engine.driver.CPU_PIXELS", 12 * 64)
    prior = Greedy(rows=12)
    Crowd(steps=1).sample(numbered(7), prior, compute=QUIET)
    assert prior.batches == batches


def test_the_particles_of_an_ensemble_count_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invdiff.engine.driver.CPU_PIXELS", 12 * 64)
    prior = Greedy(rows=12)
    EnKG(schedule=EDM(steps=2, sigma_max=5.0, sigma_min=0.1), ensemble=4, guidance=0.0).sample(
        numbered(7), prior, compute=QUIET
    )
    assert max(prior.batches) == 3 * 4


# -- the clock and the bar ---------------------------------------------------------------------------------------------


def test_the_clock_leaves_callbacks_out() -> None:
    slow_callback = Walk(steps=3).sample(numbered(1), WhitePrior(), compute=QUIET, callback=lambda _: time.sleep(0.15))
    assert slow_callback.cost.seconds < 0.15
    slow_sampler = Walk(steps=3, sleep=0.05).sample(numbered(1), WhitePrior(), compute=QUIET)
    assert slow_sampler.cost.seconds > 0.15


def test_memory_is_reported() -> None:
    assert Walk().sample(numbered(1), WhitePrior(), compute=QUIET).cost.peak_memory_mb > 10


def test_no_bar_on_short_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Walk().sample(numbered(1), WhitePrior(), compute=Compute(device="cpu"))
    out, err = capsys.readouterr()
    assert out == err == ""


# -- a foreign operator ------------------------------------------------------------------------------------------------


def test_any_callable_as_a_forward_model() -> None:
    """Numpy inside, no gradient: a sampler without requirements accepts it, and the operator is called in batches."""

    def black_box(x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.numpy(), axis=-1))

    problem = InverseProblem(
        CallableOperator(black_box, differentiable=False), GaussianNoise(0.1), torch.zeros(2, *SHAPE), image_shape=SHAPE
    )

    class Measure(Walk):
        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            for step in super().iterate(problem, prior, rng):
                assert problem.residual(step.x0).shape == problem.y.shape
                yield step

        @classmethod
        def example(cls) -> Self:
            return cls()

    posterior = Measure().sample(problem, WhitePrior(), num_samples=3, compute=QUIET)
    assert posterior.cost.operator_calls == 6 * 4
