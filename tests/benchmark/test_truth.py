"""Distances to the exact posterior: exact draws are at the floor, others above it, and what has no truth says so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff import InverseProblem
from invdiff.benchmark.grid import Entry, Grid, Measurements
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import summarise
from invdiff.operators import Denoising, GaussianNoise, PoissonNoise
from invdiff.priors import EDMPrior, GaussianMixturePrior, LowRankMixturePrior
from invdiff.report.leaderboard import markdown
from invdiff.samplers import FKC
from invdiff.schedules import EDM
from invdiff.scores.truth import DISTANCES, FLOORS, Exact, distances_to

MEANS = torch.tensor([-2.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
PRIOR = GaussianMixturePrior.isotropic(torch.tensor([0.3, 0.7]), MEANS, 0.5)


def problem(sigma: float = 3.0) -> InverseProblem:
    return InverseProblem(Denoising(), GaussianNoise(sigma), torch.zeros(1, 1, 2, 2))


def test_exact_draws_are_at_the_floor_and_others_above() -> None:
    given = problem()
    exact = Exact.of(given, PRIOR, 200, seed=0, image=0)
    posterior, rng = PRIOR.posterior(given), torch.Generator().manual_seed(5)
    assert exact.notes == {}
    right = posterior.sample(200, rng)
    one_mode = right - right.sign().clamp(max=0) * 2 * right.abs()  # everything in the positive mode
    wide = posterior.mean + 3 * (right - posterior.mean)
    good, bad, wider = (exact.distances(x) for x in (right, one_mode, wide))
    for name in DISTANCES:
        assert exact.floors[name] > 0
        assert good[name] < 3 * exact.floors[name], name
        assert bad[name] > 3 * exact.floors[name], name
    assert bad["mode_error"] == pytest.approx(0.3, abs=0.05)
    assert wider["std_error"] == pytest.approx(2, rel=0.2)


def test_exact_draws_follow_from_seed_and_image_alone() -> None:
    one, same = (Exact.of(problem(), PRIOR, 20, seed=3, image=1) for _ in range(2))
    assert torch.equal(one.draws, same.draws)
    assert one.floors == same.floors
    for seed, image in ((3, 2), (4, 1)):
        assert not torch.equal(one.draws, Exact.of(problem(), PRIOR, 20, seed=seed, image=image).draws)


def test_components_of_images_are_told_by_their_prior() -> None:
    """A mixture at image size: the shares of exact draws are the weights of the posterior."""
    prior = LowRankMixturePrior.example()
    given = InverseProblem(Denoising(), GaussianNoise(3.0), torch.full((1, 1, 16, 16), 0.5))
    exact = Exact.of(given, prior, 300, seed=0, image=0)
    assert exact.floors["mode_error"] < 0.06
    assert set(exact.floors) == set(DISTANCES)


def test_what_has_no_truth_says_why() -> None:
    y = torch.ones(1, 1, 16, 16)
    poisson = InverseProblem(Denoising(), PoissonNoise(0.1), y)
    with pytest.raises(ValueError, match="EDMPrior has no closed form"):
        Exact.of(InverseProblem(Denoising(), GaussianNoise(0.1), y), EDMPrior.example(), 4, seed=0, image=0)
    with pytest.raises(ValueError, match="PoissonNoise is not Gaussian"):
        Exact.of(poisson, LowRankMixturePrior.example(), 4, seed=0, image=0)
    with pytest.raises(ValueError, match="num_samples >= 2"):
        Exact.of(problem(), PRIOR, 1, seed=0, image=0)


def test_samples_that_diverged_are_left_out() -> None:
    exact = Exact.of(problem(), PRIOR, 4, seed=0, image=0)
    samples = PRIOR.posterior(problem()).sample(4, torch.Generator().manual_seed(0))
    samples[0] = torch.nan
    diverged = torch.tensor([True, False, False, False])
    assert distances_to(exact, samples, diverged).keys() == {*DISTANCES, *FLOORS}
    assert distances_to(exact, samples, diverged)["mean_error"] == exact.distances(samples[1:])["mean_error"]
    assert distances_to(exact, samples, torch.tensor([True, True, True, False])) == {}


def test_rows_and_leaderboard_hold_them(
    grid: Grid, first_images: Callable[..., Grid], run: Callable[..., Any], tmp_path: Path
) -> None:
    run(first_images(replace(grid, num_samples=4), 2), tmp_path)
    table = Store(tmp_path).table().to_pylist()
    for row in table:
        assert row["sliced_wasserstein"] > 0
        assert row["sliced_wasserstein_floor"] > 0
        assert row["mode_error"] is None
        assert "one mode" in json.loads(row["notes"])["mode_error"]
    of_image = {(row["run"], row["image"], row["mean_error"]) for row in table}
    assert len(of_image) == 2 * 2 * 2, "all samples of an image share its distances, another image has others"
    floors = {(row["operator"], row["image"], row["std_error_floor"]) for row in table}
    assert len(floors) == 2 * 2, "the floor is the same for all samplers"
    page = markdown(summarise(Store(tmp_path)))
    assert "sliced W / floor" in page
    assert "modes off" not in page.split("| sampler")[1]


def test_the_exact_posterior_is_made_once_for_all_samplers(
    grid: Grid, first_images: Callable[..., Grid], run: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    made = []
    of = Exact.of.__func__  # type: ignore[attr-defined]

    def counted(cls: type, *args: Any, **more: Any) -> Exact:
        made.append(more["image"])
        return of(cls, *args, **more)

    monkeypatch.setattr(Exact, "of", classmethod(counted))
    run(first_images(grid, 2), tmp_path)
    assert len(made) == len(set(made)) * len(grid.tasks)


# -- clouds ------------------------------------------------------------------------------------------------------------


def cloud_grid(grid: Grid) -> Grid:
    sampler = FKC(schedule=EDM(steps=4, sigma_max=5.0, sigma_min=0.05), ensemble=3)
    entries = [Entry("fkc", sampler), grid.entries[1]]
    return replace(grid, entries=entries, num_samples=6, clouds=True)


def test_samples_of_a_particle_filter_are_one_cloud(
    grid: Grid, first_images: Callable[..., Grid], run: Callable[..., Any], tmp_path: Path
) -> None:
    run(first_images(cloud_grid(grid), 2), tmp_path)
    table = Store(tmp_path).table().to_pylist()
    fkc = [row for row in table if row["sampler"] == "fkc" and row["operator"] == "denoising"]
    assert [(row["image"], row["sample"]) for row in fkc] == [(i, s) for i in range(2) for s in range(6)]
    assert sum(row["forwards"] for row in fkc) == 2 * 6 * 4  # images, particles, steps: one cloud each
    assert all(row["seconds"] > 0 and row["mean_error"] > 0 for row in fkc)


def test_clouds_are_another_run(grid: Grid) -> None:
    task, sampler = grid.tasks[0], grid.entries[0].sampler
    assert "clouds" not in grid.settings(sampler, task, "auto"), "results of earlier versions are found again"
    assert cloud_grid(grid).settings(sampler, task, "auto")["clouds"]


def test_a_cloud_comes_by_its_weights(grid: Grid) -> None:
    whole = cloud_grid(grid)
    given = Measurements(whole, whole.tasks[1]).problem([0, 1])
    sampler = whole.prepared(whole.entries[0].sampler)  # type: ignore[arg-type]
    assert isinstance(sampler, FKC)
    found = sampler.sample_of_cloud(given, grid.prior, num_samples=6, seed=2)
    cloud = sampler.cloud(given, grid.prior, seed=2)
    assert found.samples.shape == (2, 6, *given.image_shape)
    for samples, particles, weights in zip(found.samples, cloud.particles, cloud.weights, strict=True):
        same = (samples[:, None] - particles).flatten(2).abs().amax(2) < 1e-6
        counts = same.sum(0)
        assert int(counts.sum()) == 6
        assert ((counts - 6 * weights).abs() < 1).all()
