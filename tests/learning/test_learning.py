"""Learning from measurements: what the rounds recover, what they leave behind, and how a run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem, load_prior
from invdiff.learning.em import Learner, LearningPlan
from invdiff.learning.learners import MixtureLearner, NetworkLearner
from invdiff.learning.steps import evidence, exact_draws, first_guess, refit
from invdiff.operators import CallableOperator, GaussianNoise, Inpainting, LinearOperator, PoissonNoise
from invdiff.priors import GaussianPrior, LowRankMixturePrior
from invdiff.priors.networks.unet import UNetSpec
from invdiff.priors.training.mixture_fit import MixtureRecipe
from invdiff.priors.training.training import Recipe, denoising_psnr
from invdiff.samplers import MMPS
from invdiff.schedules import EDM

SIX = (1, 2, 3)
SMALL = MixtureRecipe(components=3, rank=1, noise_floor=0.01)


class Projections(LinearOperator):
    """A matrix (B, m, n) of its own for every image."""

    per_image = ("matrix",)
    matrix: Tensor

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix.to(x) @ x.flatten(1)[..., None])[..., 0]

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.matrix.to(y).mT @ y[..., None]).reshape(-1, *self.shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape


def three_lines() -> LowRankMixturePrior:
    """Three blurred lines in R^6."""
    means = 0.5 + 0.5 * torch.randn(3, *SIX, generator=torch.Generator().manual_seed(3))
    factors = 0.3 * torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(4))
    return LowRankMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, factors, torch.full((3,), 0.03))


def masked(images: Tensor, *, keep: float = 0.5, sigma: float = 0.02, seed: int = 0) -> InverseProblem:
    """Every image with a mask of its own."""
    operator = Inpainting.random(tuple(images.shape[1:]), keep=keep, seed=seed, images=len(images))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return InverseProblem(operator, GaussianNoise(sigma), operator(images + sigma * noise))


def distance(prior: LowRankMixturePrior, reference: Tensor) -> float:
    """Sliced Wasserstein distance of as many draws."""
    draws = prior.sample(len(reference), torch.Generator().manual_seed(11)).flatten(1)
    directions = torch.nn.functional.normalize(torch.randn(6, 200, generator=torch.Generator().manual_seed(12)), dim=0)
    sorted_draws, sorted_reference = ((x @ directions).sort(0).values for x in (draws, reference.flatten(1)))
    return float((sorted_draws - sorted_reference).abs().mean())


# -- what it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mixture_is_recovered_from_masked_images(tmp_path: Path) -> None:
    """The distance to the truth falls from round to round, and ends near that of two sets of true images."""
    truth = three_lines()
    problem = masked(truth.sample(800, torch.Generator().manual_seed(1)), keep=2 / 3)
    reference = truth.sample(2000, torch.Generator().manual_seed(2))
    learner = MixtureLearner(LearningPlan(gaussian_rounds=5, rounds=12, held_out=60), SMALL, problem, tmp_path)
    seen = []

    def on_round(row: dict) -> None:
        assert isinstance(learner.prior, LowRankMixturePrior)
        seen.append(distance(learner.prior, reference))

    learned = learner.run(on_round)
    floor = distance(truth, reference)
    assert isinstance(learned, LowRankMixturePrior)
    assert seen[0] > 1.2 * seen[4] > 2.5 * distance(learned, reference)
    assert distance(learned, reference) < 3 * floor
    assert float(evidence(learned, learner.held_out).mean()) > float(evidence(truth, learner.held_out).mean()) - 0.2


def projected(truth: GaussianPrior, count: int, seed: int) -> InverseProblem:
    """Two numbers of five, as the paper's manifold is measured, by an operator of which only the products are known."""
    rng = torch.Generator().manual_seed(seed)
    x = truth.sample(count, rng)
    operator = Projections(torch.nn.functional.normalize(torch.randn(count, 2, 5, generator=rng), dim=2), (1, 1, 5))
    return InverseProblem(operator, GaussianNoise(0.01), operator(x) + 0.01 * torch.randn(count, 2, generator=rng))


@pytest.mark.slow
def test_a_gaussian_is_recovered_from_random_projections(tmp_path: Path) -> None:
    """Unseen measurements are nearly as likely as under the truth: 0.2 of what the first guess lacks is left."""
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    truth = GaussianPrior(torch.full((1, 1, 5), 0.3), (0.05 * root @ root.T + 0.01 * torch.eye(5)).float())
    recipe = MixtureRecipe(components=1, rank=4, noise_floor=0.01)
    plan = LearningPlan(gaussian_rounds=1, rounds=4, held_out=20)
    learner = MixtureLearner(plan, recipe, projected(truth, 180, seed=1), tmp_path)
    unseen = projected(truth, 200, seed=2)
    first, learned, exact = (
        float(evidence(prior, unseen).mean()) for prior in (first_guess(learner.problem), learner.run(), truth)
    )
    assert exact - learned < 0.2 * (exact - first)


def test_digits_from_half_of_their_pixels(tmp_path: Path) -> None:
    """Unseen digits are denoised nearly as well as by a mixture that saw clean ones; better than by one that took the
    missing pixels for black ones."""
    digits = load_prior("digits_mixture").sample(700, torch.Generator().manual_seed(0)).clamp(0, 1)
    digits = torch.nn.functional.avg_pool2d(digits, 2)
    train, test = digits[:600], digits[600:]
    problem = masked(train, sigma=0.05)
    recipe = MixtureRecipe(components=4, rank=6)
    plan = LearningPlan(gaussian_rank=24, rounds=4)
    learned = MixtureLearner(plan, recipe, problem, tmp_path).run()
    clean = refit(recipe, train, None, 0, 8, tmp_path)
    naive = refit(recipe, problem.y, None, 0, 8, tmp_path)
    for sigma in (0.2, 0.5):
        scores = [denoising_psnr(prior, test, (sigma,))[sigma] for prior in (naive, learned, clean)]
        assert scores[1] > scores[0] + 1
        assert scores[1] > scores[2] - 0.5


def test_exact_draws_of_masked_images_agree_with_those_of_any_operator() -> None:
    """Of the same law, one by one and all at once: the mean of many images under one mask."""
    truth = three_lines()
    one = masked(truth.sample(1, torch.Generator().manual_seed(5)))
    many = one.select(torch.zeros(2000, dtype=torch.long))
    mask = one.observed
    assert mask is not None
    rows = torch.eye(6)[mask.flatten()]
    dense = InverseProblem(Projections(rows[None], SIX), GaussianNoise(0.02), one.y.flatten(1)[:, mask.flatten()])
    mean = truth.posterior(dense).mean
    draws = exact_draws(truth, many, 0)
    assert ((draws.mean(0) - mean) / (draws.std(0) / 2000**0.5).clamp(min=1e-6)).abs().max() < 5
    assert torch.allclose(evidence(truth, one), evidence(truth, dense), rtol=1e-8)


# -- how a run goes on -------------------------------------------------------------------------------------------------


def learner(folder: Path, **options: int) -> MixtureLearner:
    plan = LearningPlan(**{"gaussian_rounds": 2, "rounds": 2, "held_out": 10} | options)  # type: ignore[arg-type]
    return MixtureLearner(plan, SMALL, masked(three_lines().sample(80, torch.Generator().manual_seed(1))), folder)


def parameters(prior: object) -> list[Tensor]:
    assert isinstance(prior, LowRankMixturePrior)
    return [prior.weights, prior.means, prior.factors, prior.noise_std]


@pytest.mark.parametrize("place", ["E", "M"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learner(tmp_path / "whole").run()
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        stopped = learner(tmp_path / "stopped")
        if place == "M":
            patch.setattr(MixtureLearner, "fit", stop)
        else:
            draw = Learner.draw
            patch.setattr(Learner, "draw", lambda self, *a: stop() if self.round == 2 else draw(self, *a))
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
    assert stopped.round == 2
    assert (tmp_path / "stopped" / "prior.safetensors").exists()
    assert (tmp_path / "stopped" / "images.pt").exists() == (place == "M")
    found = learner(tmp_path / "stopped").run()
    assert all(torch.equal(a, b) for a, b in zip(parameters(found), parameters(whole), strict=True))
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert [json.loads(row)["held_out"] for row in logs[0]] == [json.loads(row)["held_out"] for row in logs[1]]
    assert not (tmp_path / "stopped" / "images.pt").exists()


def test_more_rounds_go_on_and_time_ends_them(tmp_path: Path) -> None:
    learner(tmp_path).run()
    later = learner(tmp_path, rounds=3)
    later.run()
    assert [row["round"] for row in later.rows] == [1, 2, 3, 4, 5]
    assert [row["prior"] for row in later.rows] == ["gaussian"] * 2 + ["mixture"] * 3
    out_of_time = learner(tmp_path, rounds=9)
    object.__setattr__(out_of_time.plan, "minutes", 1e-9)
    out_of_time.run()
    assert out_of_time.round == 5


def test_another_run_is_refused(tmp_path: Path) -> None:
    learner(tmp_path).run()
    problem = masked(three_lines().sample(81, torch.Generator().manual_seed(1)))
    other = MixtureLearner(LearningPlan(held_out=10), SMALL, problem, tmp_path)
    with pytest.raises(ValueError, match=r"must belong to this run.* got .*'measurements': 80"):
        other.run()


def test_a_network_learns_by_posterior_samples(tmp_path: Path) -> None:
    """Two rounds of a tiny one: the second starts from the weights of the first, and draws with the sampler."""
    images = torch.rand(28, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(
        unet=UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1)),
        shape=(1, 8, 8),
        crop=8,
        batch=4,
        steps=3,
        validate_every=3,
        held_out=4,
        flip=False,
    )
    sampler = MMPS(schedule=EDM(steps=2, sigma_max=5.0, sigma_min=0.1), iterations=1)
    plan = LearningPlan(gaussian_rounds=1, rounds=2, held_out=8)
    shares: list[float] = []
    learner = NetworkLearner(plan, recipe, masked(images), tmp_path, sampler=sampler)
    learned = learner.run(on_progress=shares.append)
    assert learned.shape == (1, 8, 8)
    assert [row["prior"] for row in learner.rows] == ["gaussian", "network", "network"]
    assert {p.name for p in tmp_path.iterdir()} == {
        "prior.safetensors",
        "last.safetensors",
        "checkpoint.pt",
        "log.jsonl",
    }
    assert shares == sorted(shares)
    assert shares[-1] == 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def nonlinear() -> InverseProblem:
    return InverseProblem(CallableOperator(torch.square, image_shape=SIX), GaussianNoise(0.1), torch.rand(60, *SIX))


def photons() -> InverseProblem:
    return InverseProblem(Inpainting(keep=0.5), PoissonNoise(0.1), torch.rand(60, *SIX))


@pytest.mark.parametrize(
    ("problem", "recipe", "words"),
    [
        (nonlinear, SMALL, "needs a linear operator, got CallableOperator"),
        (photons, SMALL, "needs Gaussian noise, got PoissonNoise"),
        (lambda: masked(torch.rand(50, *SIX)), SMALL, "needs >= 56 measurements, of which 48 are held out, got 50"),
        (lambda: masked(torch.rand(60, *SIX)), MixtureRecipe(components=7, rank=1), "components=7 need >= 14"),
        (lambda: masked(torch.rand(60, *SIX)), MixtureRecipe(components=1, rank=6), "rank must be < 6"),
    ],
)
def test_what_cannot_be_learned_is_refused_at_once(
    problem: Callable[[], InverseProblem], recipe: MixtureRecipe, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        MixtureLearner(LearningPlan(), recipe, problem(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"minutes": float("nan")}, "minutes must be positive and finite, got nan"),
    ],
)
def test_bad_plans_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LearningPlan(**options)
