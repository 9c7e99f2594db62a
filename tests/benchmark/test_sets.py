"""FID and KID: torchmetrics on what a benchmark has saved, by the features of a small fixed network."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invdiff.benchmark import sets as image_sets
from invdiff.benchmark.grid import Grid
from invdiff.benchmark.run import Save
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import rows_by_image, summarise
from invdiff.report.leaderboard import markdown

pytest.importorskip("torchmetrics")
Run = Callable[..., Any]


def network() -> nn.Module:
    """Four features of an image of three channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """In the place of InceptionV3."""
    features = network()
    monkeypatch.setattr(image_sets, "unavailable", lambda: None)
    monkeypatch.setattr(image_sets, "set_distances", partial(image_sets.set_distances, features=features))
    return features


def test_they_are_those_of_torchmetrics() -> None:
    """More images than one batch holds, grey ones, out of another range than [0, 1], some beyond it."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    samples, truths = images(70, 1, 8, 8), images(66, 1, 8, 8, seed=1).square()
    features = network()
    # One subset of all the truths, and as many samples: KID of 66 of 70 depends on the draw.
    fid = FrechetInceptionDistance(features, normalize=True, input_img_size=(3, 8, 8))
    kid = KernelInceptionDistance(features, normalize=True, subset_size=66, subsets=1)
    for metric in (fid, kid):
        metric.update(truths.repeat(1, 3, 1, 1), real=True)
        metric.update(samples.repeat(1, 3, 1, 1), real=False)
    shifted = [4 * x - 2 for x in (samples, truths)]
    found = image_sets.set_distances(*shifted, features, value_range=(-2.0, 2.0))
    assert found["fid"] == pytest.approx(float(fid.compute()), rel=1e-3)
    equal = image_sets.set_distances(*(x[:66] for x in shifted), features, value_range=(-2.0, 2.0))
    kid.reset()
    kid.update(truths.repeat(1, 3, 1, 1), real=True)
    kid.update(samples[:66].repeat(1, 3, 1, 1), real=False)
    assert equal["kid"] == pytest.approx(float(kid.compute()[0]), rel=1e-2)
    beyond = [x.where(x.abs() < 1.9, 3 * x) for x in shifted]
    assert image_sets.set_distances(*beyond, features, value_range=(-2.0, 2.0))["fid"] == pytest.approx(
        image_sets.set_distances(
            *[x.where(x.abs() < 1.9, 2 * x.sign()) for x in shifted], features, value_range=(-2.0, 2.0)
        )["fid"]
    )


def test_a_set_is_at_no_distance_from_itself_and_noise_is() -> None:
    truths = images(40, 3, 8, 8)
    noisy = (truths + 0.5 * torch.randn(truths.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    itself = image_sets.set_distances(truths, truths, network())
    noise = image_sets.set_distances(noisy, truths, network())
    assert abs(itself["fid"]) < 1e-6
    assert noise["fid"] > 100 * abs(itself["fid"])
    # KID has no bias, and of a set to itself it is a little below 0; the network sees brightness better than noise.
    dark = image_sets.set_distances(0.2 * truths, truths, network())
    assert abs(itself["kid"]) < 1e-3
    assert dark["kid"] > 10 * abs(itself["kid"])


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    sets = images(9, 3, 8, 8), images(5, 3, 8, 8, seed=1)
    first = image_sets.set_distances(*sets, network())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert image_sets.set_distances(*sets, network()) == first


def test_what_has_no_distance() -> None:
    for samples, words in (
        (images(1, 3, 8, 8), "at least 2 images in a set, got 1 in samples"),
        (images(4, 2, 8, 8), "1 or 3 channels, got samples of 2x8x8"),
        (images(4, 3, 8, 8) * torch.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            image_sets.set_distances(samples, images(4, 3, 8, 8), network())


def test_a_reason_where_the_package_or_the_weights_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    absent = {"torch_fidelity"}
    monkeypatch.setattr(image_sets, "find_spec", lambda name: None if name in absent else object())
    assert "package torch-fidelity" in str(image_sets.unavailable())
    assert image_sets.unavailable(network()) is None
    absent.clear()
    assert image_sets.INCEPTION in str(image_sets.unavailable())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / image_sets.INCEPTION).touch()
    assert image_sets.unavailable() is None
    absent.add("torchmetrics")
    assert "package torchmetrics" in str(image_sets.unavailable(network()))


# -- of a benchmark ----------------------------------------------------------------------------------------------------


def page_of(folder: Path) -> str:
    store = Store(folder)
    rows = rows_by_image(store)
    return markdown(summarise(store, rows=rows, of_sets=image_sets.of_runs(store, rows)))


def test_columns_of_a_benchmark(grid: Grid, run: Run, tmp_path: Path, small_network: nn.Module) -> None:
    run(replace(grid, tasks=grid.tasks[1:]), tmp_path, save=Save(reconstructions=True))
    page = page_of(tmp_path)
    assert "| FID | KID |" in page
    assert "FID and KID: distances" in page
    store = Store(tmp_path)
    for found in image_sets.of_runs(store, rows_by_image(store)).values():
        assert found.scores.keys() == {"fid", "kid"}
        assert f" {found.scores['fid']:.2f} | {found.scores['kid']:.4f} |" in page


def test_diverged_samples_are_left_out(grid: Grid, run: Run, tmp_path: Path, small_network: nn.Module) -> None:
    run(replace(grid, entries=grid.entries[1:], tasks=grid.tasks[1:]), tmp_path, save=Save(reconstructions=True))
    store = Store(tmp_path)
    rows = {
        run: {i: [dict(row) for row in of_i] for i, of_i in found.items()}
        for run, found in rows_by_image(store).items()
    }
    (name,) = rows
    whole = image_sets.of_runs(store, rows)[name].scores
    for of_image in rows[name].values():
        of_image[0]["diverged_at"] = 1
    less = image_sets.of_runs(store, rows)[name].scores
    assert less.keys() == whole.keys()
    assert less != whole
    for of_image in rows[name].values():
        of_image[1]["diverged_at"] = 1
    assert "got 0 in samples" in str(image_sets.of_runs(store, rows)[name].notes)


def test_what_is_not_saved_is_said(
    grid: Grid, run: Run, first_images: Run, tmp_path: Path, small_network: nn.Module
) -> None:
    """Two images were computed without; and one of the others is another image now."""
    small = replace(grid, entries=grid.entries[1:], tasks=grid.tasks[1:])
    run(first_images(small, 2), tmp_path)
    run(small, tmp_path, save=Save(reconstructions=True))
    page = page_of(tmp_path)
    assert "| FID |" not in page
    assert "- fid, kid of daps: the samples of 2 of 5 image(s) are not in reconstructions/" in page
    changed = replace(small.images, keys=[*small.images.keys[:4], "another"])
    run(replace(small, images=changed), tmp_path)
    assert "3 of 5 image(s)" in page_of(tmp_path)


def test_a_run_goes_on_where_they_cannot_be_computed(
    grid: Grid, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sets, "find_spec", lambda name: None if name == "torch_fidelity" else object())
    run(replace(grid, tasks=grid.tasks[1:]), tmp_path, save=Save(reconstructions=True))
    page = page_of(tmp_path)
    assert "| FID |" not in page
    assert "- fid, kid: FID and KID need the package torch-fidelity" in page
