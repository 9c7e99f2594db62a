"""Fitting mixtures: EM finds a mixture that is known, climbs, stops where it should, and goes on where it stopped."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.priors.closed_form.low_rank import LowRankMixturePrior
from invdiff.priors.training.mixture_fit import MixtureFit, MixtureRecipe, leading_directions, stack_images

RECIPE = MixtureRecipe(
    components=3, rank=2, iterations=12, minutes=1e6, tolerance=0.0, batch=64, noise_floor=1e-4, held_out=8
)

Fit = Callable[..., MixtureFit]


@pytest.fixture(scope="module")
def truth() -> LowRankMixturePrior:
    """Three planes in 20 dimensions that overlap a little."""
    source = torch.Generator().manual_seed(5)
    return LowRankMixturePrior(
        torch.tensor([0.5, 0.3, 0.2]),
        0.5 + 0.12 * torch.randn(3, 1, 4, 5, generator=source),
        0.15 * torch.randn(3, 20, 2, generator=source),
        torch.tensor([0.05, 0.08, 0.06]),
    )


@pytest.fixture(scope="module")
def images(truth: LowRankMixturePrior) -> Tensor:
    """(700, 1, 4, 5), the last 100 of them held out."""
    return truth.sample(700, torch.Generator().manual_seed(0)).double()


@pytest.fixture
def make(images: Tensor, tmp_path: Path) -> Fit:
    def fit(folder: str = "run", *, images: Tensor = images, held_out: int = 100, **changes: object) -> MixtureFit:
        recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
        return MixtureFit(recipe, images[:-held_out], images[-held_out:], tmp_path / folder)

    return fit


def rows(fit: MixtureFit) -> list[dict]:
    return [json.loads(line) for line in (fit.folder / "log.jsonl").read_text().splitlines()]


def parameters(fit: MixtureFit) -> list[Tensor]:
    assert fit.components is not None
    return list(vars(fit.components).values())


# -- what EM must do ---------------------------------------------------------------------------------------------------


def test_it_finds_a_mixture_that_is_known(make: Fit, truth: LowRankMixturePrior, images: Tensor) -> None:
    fit = make(iterations=40)
    prior = fit.run()
    known = float(truth.log_prob(images[-100:]).mean())
    assert float(prior.log_prob(images[-100:]).mean()) == pytest.approx(known, abs=0.6)
    # The fit explains what it was fitted to a little better than the truth does, by about half a parameter each.
    gained = rows(fit)[-1]["log_likelihood"] - float(truth.log_prob(images[:-100]).mean())
    assert 0 < gained < 0.5
    assert torch.allclose(prior.noise_std.sort().values, truth.noise_std.sort().values, atol=0.005)
    assert torch.allclose(prior.weights.sort().values, truth.weights.sort().values, atol=0.05)


@pytest.mark.parametrize("floor", [1e-4, 0.065])
def test_the_likelihood_never_falls(make: Fit, floor: float) -> None:
    """The M step is exact, also where the floor binds: for some components here, then for most."""
    fit = make(noise_floor=floor, iterations=12, components=5)
    fit.run()
    climb = np.diff([row["log_likelihood"] for row in rows(fit)])
    assert not any(row["reseeded"] for row in rows(fit))
    assert climb.max() > 0.01
    assert climb.min() >= -1e-3  # the log is rounded to that
    assert float(fit.components.noise.min()) >= floor**2


def test_the_search_beyond_the_exact_size_climbs_too(make: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = make("exact")
    exact.run()
    monkeypatch.setattr(leading_directions, "__kwdefaults__", {"exact": 4})
    searched = make("searched")
    searched.run()
    climb = np.diff([row["log_likelihood"] for row in rows(searched)])
    assert climb.min() >= -1e-3
    assert rows(searched)[-1]["log_likelihood"] == pytest.approx(rows(exact)[-1]["log_likelihood"], abs=0.01)


def test_one_component_is_principal_component_analysis(make: Fit, images: Tensor) -> None:
    """Tipping & Bishop 1999, equations 12 and 13 for a single component, by dense eigenvectors of the covariance."""
    fit = make(components=1, iterations=1)
    fit.run()
    x = images[:-100].flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    noise = values[:-2].mean()
    covariance = (vectors[:, -2:] * (values[-2:] - noise)) @ vectors[:, -2:].T + noise * torch.eye(20)
    prior = fit.components.prior((1, 4, 5))
    fitted = prior.factors[0] @ prior.factors[0].T + prior.noise_std[0] ** 2 * torch.eye(20)
    assert torch.allclose(fitted.double(), covariance, atol=1e-6)
    assert torch.allclose(prior.means[0].flatten().double(), x.mean(0), atol=1e-6)


def test_densities_agree_with_the_prior_that_is_made_of_them(make: Fit, images: Tensor) -> None:
    fit = make(iterations=2)
    fit.run()
    mine = fit.joint(fit.held_out).logsumexp(1)
    assert torch.allclose(mine, fit.components.prior((1, 4, 5)).log_prob(images[-100:]).double(), atol=1e-4)
    assert rows(fit)[-1]["held_out"] == pytest.approx(float(mine.mean()), abs=1e-3)


def test_the_batch_changes_nothing(make: Fit) -> None:
    a, b = make("a", iterations=2), make("b", iterations=2, batch=7)
    a.run()
    b.run()
    assert all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(parameters(a), parameters(b), strict=True))


def test_float32_images(make: Fit, images: Tensor) -> None:
    a, b = make("a", iterations=3), make("b", iterations=3, images=images.float())
    a.run()
    b.run()
    assert rows(b)[-1]["log_likelihood"] == pytest.approx(rows(a)[-1]["log_likelihood"], abs=1e-2)


def test_a_component_with_too_few_images_is_seeded_again(make: Fit) -> None:
    """One image far from all others: k-means++ gives it a component of its own, which would be a copy of it."""
    source = torch.Generator().manual_seed(0)
    crowd = 0.5 + 0.1 * torch.randn(60, 1, 4, 5, generator=source, dtype=torch.float64)
    crowd[0] += 5
    fit = make(images=crowd, held_out=10, components=2, iterations=4)
    fit.run()
    logged = [row["reseeded"] for row in rows(fit)]
    assert len(logged[0]) == 1
    assert logged[1:] == [[], [], []]
    assert (fit.components.weights * 50 >= 2 - 1e-6).all()
    assert fit.gain < math.inf


def test_images_that_are_all_the_same(make: Fit) -> None:
    """No variance anywhere: the floor is what is left, and every component still has its images."""
    fit = make(images=torch.full((40, 1, 4, 5), 0.5), held_out=8, noise_floor=0.01)
    prior = fit.run()
    assert torch.allclose(prior.noise_std, torch.full((3,), 0.01))
    assert torch.allclose(prior.means, torch.full((3, 1, 4, 5), 0.5), atol=1e-6)


# -- directions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "exact"), [(8, 30, 99), (30, 8, 99), (60, 40, 10)])
def test_directions_are_those_of_the_singular_values(normal: Callable[..., Tensor], m: int, n: int, exact: int) -> None:
    rows = normal(m, 5) @ normal(5, n, seed=1) + 0.01 * normal(m, n, seed=2)
    source = torch.Generator().manual_seed(0)
    directions, values = leading_directions(rows, 4, start=None, generator=source, exact=exact)
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose(values, singular[:4] ** 2, rtol=1e-6)
    assert torch.allclose((vectors[:4] @ directions).abs(), torch.eye(4, dtype=torch.float64), atol=1e-4)


def test_directions_of_fewer_rows(normal: Callable[..., Tensor]) -> None:
    rows = normal(2, 10)
    source = torch.Generator().manual_seed(0)
    directions, values = leading_directions(rows, 4, start=None, generator=source)
    assert torch.allclose(rows @ directions @ directions.T, rows)
    assert torch.equal(values[2:], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(directions[:, 2:], torch.zeros(10, 2, dtype=torch.float64))


def test_a_good_start_is_never_left_for_something_worse(normal: Callable[..., Tensor]) -> None:
    rows = normal(50, 40)
    best, most = leading_directions(rows, 3, start=None, generator=torch.Generator(), exact=99)
    _, kept = leading_directions(rows, 3, start=best, generator=torch.Generator().manual_seed(1), exact=5)
    assert float(kept.sum()) == pytest.approx(float(most.sum()), rel=1e-9)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 4])
def test_resuming_ends_where_an_uninterrupted_run_ends(make: Fit, stop: int) -> None:
    whole = make("whole", iterations=8)
    whole.run()

    def interrupt(row: dict) -> None:
        if row["iteration"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("parts", iterations=8).run(interrupt)
    second = make("parts", iterations=8)
    seen: list[int] = []
    second.run(lambda row: seen.append(row["iteration"]))
    assert seen == list(range(stop + 1, 9))
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(second), strict=True))
    assert (second.folder / "prior.safetensors").read_bytes() == (whole.folder / "prior.safetensors").read_bytes()
    strip = [{k: v for k, v in row.items() if k != "minutes"} for row in rows(whole)]
    assert strip == [{k: v for k, v in row.items() if k != "minutes"} for row in rows(second)]


def test_it_stops_where_nothing_is_gained(make: Fit) -> None:
    fit = make(iterations=500, tolerance=0.01)
    fit.run()
    gains = np.diff([row["log_likelihood"] for row in rows(fit)])
    assert fit.iteration < 100
    assert gains[-1] < 0.012
    assert (gains[:-1] > 0.008).all()
    at = fit.iteration
    again = make(iterations=500, tolerance=0.01)
    again.run()
    assert again.iteration == at  # done is done


def test_it_stops_after_its_minutes(make: Fit) -> None:
    fit = make(iterations=10**6, minutes=0.2 / 60, tolerance=0.0)
    fit.run()
    assert fit.seconds < 5
    assert fit.progress() == 1 or fit.seconds >= 0.2


def test_the_best_iteration_on_held_out_images_is_kept(make: Fit, images: Tensor) -> None:
    """Few images for many parameters: later iterations overfit."""
    fit = make(images=images[:130], held_out=100, components=6, iterations=12)
    prior = fit.run()
    scores = [row["held_out"] for row in rows(fit)]
    assert scores[-1] < max(scores) - 0.01
    assert float(prior.log_prob(images[30:130].float()).mean()) == pytest.approx(max(scores), abs=0.05)


def test_seeds_decide(make: Fit) -> None:
    a, b, other = make("a", iterations=2), make("b", iterations=2), make("c", iterations=2, seed=1)
    for fit in (a, b, other):
        fit.run()
    assert all(torch.equal(x, y) for x, y in zip(parameters(a), parameters(b), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(parameters(a), parameters(other), strict=True))


def test_another_mixture_in_the_same_folder_is_refused(make: Fit) -> None:
    make(iterations=1).run()
    with pytest.raises(ValueError, match=r"checkpoint.pt holds another fit: \{'components': 3.*'rank': 2.*this one"):
        make(rank=3).run()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"components": 0}, "components of a mixture must be an integer >= 1, got 0"),
        ({"rank": 0}, "rank of a mixture must be an integer >= 1"),
        ({"size": 1}, "size of a mixture's images must be >= 2 pixels"),
        ({"minutes": 0.0}, "minutes of a mixture must be positive and finite"),
        ({"noise_floor": math.nan}, "noise_floor of a mixture must be positive and finite, got nan"),
        ({"tolerance": math.nan}, "tolerance of a mixture must be >= 0"),
    ],
)
def test_bad_recipes_are_named(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(RECIPE, **changes)


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((40, 20), {}, r"must be floating-point \(N, C, H, W\)"),
        ((40, 1, 4, 5), {"rank": 20}, "rank=20 must be less than the 20 values of an image"),
        ((40, 1, 4, 5), {"components": 17}, "components=17 need at least 34 images, got 32; take fewer"),
    ],
)
def test_images_that_do_not_go_with_the_recipe(make: Fit, shape: tuple, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(images=torch.rand(shape), held_out=8, **changes)


def test_images_that_are_not_finite(make: Fit, images: Tensor) -> None:
    spoilt = images.clone()
    spoilt[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="must be finite, these hold NaN"):
        make(images=spoilt)


def test_stacking_averages_areas() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    small = stack_images([image, image], 4)
    assert small.shape == (2, 1, 4, 4)
    assert float(small[0, 0, 0, 0] * 255) == pytest.approx((0 + 1 + 8 + 9) / 4)
    assert torch.equal(stack_images([image], 8), stack_images([image]))
    with pytest.raises(ValueError, match="size=16 needs square images of 16 pixels or more, got 8x8"):
        stack_images([image], 16)
    with pytest.raises(ValueError, match="images of one size, got 8x4 and 8x8; pad_to="):
        stack_images([image, image[:, :4]])
