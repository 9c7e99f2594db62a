"""What the tests of the evaluation share: a grid that takes a fraction of a second, and how to run it in a folder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from invdiff import Compute
from invdiff.benchmark.grid import Entry, Grid, Images, Task
from invdiff.benchmark.ranks import Ranks
from invdiff.benchmark.run import Outcome, Save, run_benchmark
from invdiff.benchmark.store import MEASURED, Store
from invdiff.fingerprint import fingerprint, of_module
from invdiff.operators import Denoising, GaussianNoise, Inpainting
from invdiff.priors import GaussianPrior
from invdiff.samplers import DAPS, DPS
from invdiff.schedules import EDM, VP
from invdiff.scores import truth


@pytest.fixture
def few_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances to the exact posterior would take most of the time."""
    monkeypatch.setattr(truth, "DIRECTIONS", 4)
    monkeypatch.setattr(truth, "REPEATS", 1)
    monkeypatch.setattr(truth, "DRAWS", 16)


@pytest.fixture(scope="session")
def grid() -> Grid:
    """Two samplers, two operators, five images of 16x16 from a Gaussian prior, two samples each."""
    prior = GaussianPrior.example()
    prior.value_range = (0.0, 1.0)
    true_images = prior.sample(5, torch.Generator().manual_seed(0))
    entries = [Entry("dps", DPS(schedule=VP(steps=4))), Entry("daps", DAPS(schedule=EDM(steps=3, sigma_max=5.0)))]
    tasks = [
        Task("inpainting", Inpainting(keep=0.5), GaussianNoise(0.1), {"operator": {"keep": 0.5}, "noise": {}}),
        Task("denoising", Denoising(), GaussianNoise(0.1), {"operator": {"keep": 1}, "noise": {}}),
    ]
    names = [f"image_{i}" for i in range(5)]
    images = Images(true_images, names, [fingerprint(name) for name in names], {"of": "the prior"})
    return Grid(
        entries=entries,
        tasks=tasks,
        images=images,
        prior=prior,
        prior_settings={"name": "gaussian", "fingerprint": of_module(prior)},
        num_samples=2,
    )


@pytest.fixture(scope="session")
def first_images() -> Callable[[Grid, int], Grid]:
    """The same grid on fewer images."""

    def take(grid: Grid, count: int) -> Grid:
        i = grid.images
        return replace(grid, images=Images(i.truth[:count], i.names[:count], i.keys[:count], i.settings))

    return take


@pytest.fixture
def run(few_directions: None) -> Callable[..., Outcome]:
    """`run(grid, folder)` computes what is missing, four rows at a time; options of `run_benchmark` may follow."""

    def call(grid: Grid, folder: Path, *, max_rows: int | None = 4, **options: Any) -> Outcome:
        compute = Compute(device="cpu", precision="float32", max_rows=max_rows, progress=False)
        options = {"save": Save(), "ranks": Ranks(), "vjp_weight": 1.0} | options
        return run_benchmark(grid, folder, compute=compute, **options)

    return call


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], pa.Table]:
    """All rows of a folder but for what two runs measure differently."""

    def read(folder: Path) -> pa.Table:
        return Store(folder).table().drop_columns(list(MEASURED))

    return read
