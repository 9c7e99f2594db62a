"""The run of a benchmark: killed at any moment, resumed, split or batched otherwise, the rows are the same."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from invdiff.benchmark import plan
from invdiff.benchmark.budget import Budget, Speed
from invdiff.benchmark.grid import Entry, Grid, Task
from invdiff.benchmark.pictures import PICTURES, read_map
from invdiff.benchmark.run import Save
from invdiff.benchmark.store import MEASURED, Store
from invdiff.io import BadInput
from invdiff.operators import Denoising, GaussianNoise, Operator
from invdiff.priors import GaussianPrior
from invdiff.samplers import DAPS, DPS
from invdiff.schedules import EDM

Run = Callable[..., Any]

ROWS = 2 * 2 * 5 * 2  # samplers x operators x images x samples


def assert_same_scores(a: pa.Table, b: pa.Table, tolerance: float = 1e-3) -> None:
    for name in ("run", "image", "image_key", "sample", "diverged_at", "forwards", "vjps"):
        assert a[name].to_pylist() == b[name].to_pylist(), name
    for name in ("energy", "crps", "spread_error", "psnr", "psnr_mean", "ssim", "misfit", "diversity", "baseline_psnr"):
        x, z = (t[name].to_numpy() for t in (a, b))
        np.testing.assert_allclose(x, z, rtol=0, atol=tolerance, err_msg=name)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_row_for_each_sample(grid: Grid, run: Run, tmp_path: Path) -> None:
    outcome = run(grid, tmp_path)
    assert (outcome.rows, outcome.errors, outcome.reasons) == (ROWS, [], {})
    table = Store(tmp_path).table()
    found = set(zip(*(table[name].to_pylist() for name in ("sampler", "operator", "image", "sample")), strict=True))
    assert found == {
        (s, o, i, k) for s in ("dps", "daps") for o in ("inpainting", "denoising") for i in range(5) for k in (0, 1)
    }
    assert table.num_rows == ROWS
    scores = ("energy", "crps", "spread_error", "psnr", "ssim", "misfit", "psnr_mean", "diversity", "baseline_psnr")
    for name in (*scores, "seconds", "invdiff", "device"):
        assert table[name].null_count == 0, name
    of_dps = dict(zip(table["sampler"].to_pylist(), table["vjps"].to_pylist(), strict=True))
    assert of_dps == {"dps": 4, "daps": 0}, "costs are of one sample"
    assert {row["sampler"] for row in Store(tmp_path).all_records().values()} == {"dps", "daps"}


@pytest.mark.slow
def test_the_same_measurements_for_all(grid: Grid, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    for cls in (DPS, DAPS):
        plain = cls.sample

        def sample(self: Any, problem: Any, *rest: Any, plain: Any = plain, **named: Any) -> Any:
            seen.setdefault(f"{type(self).__name__} {type(problem.operator).__name__}", []).append(problem.y)
            return plain(self, problem, *rest, **named)

        monkeypatch.setattr(cls, "sample", sample)
    run(grid, tmp_path / "a")
    run(replace(grid, entries=grid.entries[1:]), tmp_path / "b", max_rows=1)
    for operator in ("Inpainting", "Denoising"):
        of_dps, of_daps = (torch.cat(seen[f"{s} {operator}"]) for s in ("DPS", "DAPS"))
        assert torch.equal(of_dps, of_daps[:5])
        assert torch.equal(of_dps, of_daps[5:]), "batches of another size measure otherwise"


class Counted(Denoising):
    """Counts how often each image is measured."""

    def __init__(self, counts: Counter[float]) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        self.counts.update(x.flatten(1)[:, 0].tolist())
        return x


def test_planner_and_worker_measure_each_image_once(grid: Grid, run: Run, tmp_path: Path) -> None:
    """For all samplers together, the short runs that time a budget included."""
    counts: Counter[float] = Counter()
    task = Task("counted", Counted(counts), GaussianNoise(0.1), {"operator": "counted", "noise": {}})
    run(replace(grid, tasks=[task], budgets=[Budget("seconds", 0.05)]), tmp_path)
    of_images = [counts[float(value)] for value in grid.images.truth.flatten(1)[:, 0]]
    assert of_images == [1] * len(grid.images)


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(grid: Grid, run: Run, rows: Run, tmp_path: Path) -> None:
    run(grid, tmp_path)
    before = Store(tmp_path).table()
    assert run(grid, tmp_path).rows == 0
    assert Store(tmp_path).table() == before


@pytest.mark.slow
def test_more_images_are_added(grid: Grid, run: Run, rows: Run, first_images: Run, tmp_path: Path) -> None:
    run(grid, tmp_path / "whole")
    assert run(first_images(grid, 3), tmp_path / "grown").rows == ROWS * 3 // 5
    assert run(grid, tmp_path / "grown").rows == ROWS * 2 // 5
    assert_same_scores(rows(tmp_path / "grown"), rows(tmp_path / "whole"))


@pytest.mark.slow
def test_other_settings_do_not_mix(grid: Grid, run: Run, rows: Run, tmp_path: Path) -> None:
    run(grid, tmp_path)
    before = rows(tmp_path)
    changed = [
        replace(grid, seed=1),
        replace(grid, num_samples=1),
        replace(grid, entries=[Entry("dps", replace(grid.entries[0].sampler, zeta=3.0))]),  # type: ignore[type-var]
        replace(grid, tasks=[replace(grid.tasks[1], noise=GaussianNoise(0.2), settings={"operator": 1, "noise": 2})]),
        replace(grid, prior_settings={"name": "another"}),
        replace(grid, images=replace(grid.images, settings={"of": "elsewhere"})),
    ]
    total = ROWS
    for other in changed:
        total += run(other, tmp_path).rows
        assert rows(tmp_path).num_rows == total
    assert total == ROWS * 4 + ROWS // 2 * 3, "a changed setting took old rows for its own"
    known = set(before["run"].to_pylist())
    assert [row for row in rows(tmp_path).to_pylist() if row["run"] in known] == before.to_pylist()


@pytest.mark.slow
def test_another_image_under_the_same_number(grid: Grid, run: Run, tmp_path: Path) -> None:
    run(grid, tmp_path)
    keys = ["another", *grid.images.keys[1:]]
    assert run(replace(grid, images=replace(grid.images, keys=keys)), tmp_path).rows == 8


def in_a_child(work: Callable[[], None]) -> int:
    """The exit code of a forked process that does some work; minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half written", "before the rename", "after the rename"])
def test_killed_while_it_stores(grid: Grid, run: Run, rows: Run, tmp_path: Path, moment: str) -> None:
    """kill -9 at each of these moments of the fourth batch, once more at the seventh, then to the end."""
    run(grid, tmp_path / "whole")
    plain_append, plain_fsync, plain_replace = Store.append, os.fsync, Path.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def doomed(stop: int) -> Callable[[], None]:
        def work() -> None:
            count = 0

            def append(self: Store, batch: Any) -> None:
                nonlocal count
                count += 1
                if count == stop:
                    if moment == "half written":
                        Path(self.dataset / ".a.parquet.1.partial").write_bytes(b"PAR1")
                        die()
                    os.fsync = lambda _: die() if moment == "before the rename" else plain_fsync(_)  # type: ignore[assignment]
                    if moment == "after the rename":
                        Path.replace = lambda p, to: (plain_replace(p, to), die())[0]  # type: ignore[assignment, func-returns-value, method-assign]
                plain_append(self, batch)

            Store.append = append  # type: ignore[method-assign]
            run(grid, tmp_path / "killed")

        return work

    for stop in (4, 3):
        assert in_a_child(doomed(stop)) == -signal.SIGKILL
    left = rows(tmp_path / "killed").num_rows
    assert 0 < left < ROWS
    assert run(grid, tmp_path / "killed").rows == ROWS - left
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert not [p for p in (tmp_path / "killed").rglob(".*") if p.is_file()]


@pytest.mark.slow
def test_killed_at_random_moments(grid: Grid, run: Run, rows: Run, tmp_path: Path) -> None:
    """20 kills anywhere, each followed by a new attempt."""
    grid = replace(grid, entries=[*grid.entries, Entry("more", DAPS(schedule=EDM(steps=60, sigma_max=5.0)))])
    began = time.monotonic()
    run(grid, tmp_path / "whole", max_rows=2)
    whole = time.monotonic() - began
    rng, killed = random.Random(0), 0
    while killed < 20:
        child = os.fork()
        if child == 0:
            run(grid, tmp_path / "killed", max_rows=2)
            os._exit(0)
        time.sleep(rng.uniform(0, whole / 8))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:  # it was through: from the start again
            assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
            (tmp_path / "killed").rename(tmp_path / f"done_{killed}")
            continue
        killed += 1
    run(grid, tmp_path / "killed", max_rows=2)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_interrupted(grid: Grid, run: Run, rows: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(grid, tmp_path / "whole")
    plain, calls = GaussianPrior.denoise, iter(range(10_000))

    def denoise(self: GaussianPrior, x: Tensor, sigma: Any) -> Tensor:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return plain(self, x, sigma)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(GaussianPrior, "denoise", denoise)
        run(grid, tmp_path / "stopped")
    assert 0 < rows(tmp_path / "stopped").num_rows < ROWS
    run(grid, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


# -- batches and ranks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batches_do_not_matter(grid: Grid, run: Run, rows: Run, tmp_path: Path) -> None:
    run(grid, tmp_path / "whole", max_rows=None)
    for max_rows in (1, 3):
        run(grid, tmp_path / f"{max_rows}", max_rows=max_rows)
        assert_same_scores(rows(tmp_path / "whole"), rows(tmp_path / f"{max_rows}"))


@pytest.mark.slow
def test_out_of_memory_halves_batches_and_is_remembered(
    grid: Grid, run: Run, rows: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(grid, tmp_path / "whole")
    plain, sizes = GaussianPrior.denoise, []

    def denoise(self: GaussianPrior, x: Tensor, sigma: Any) -> Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, x, sigma)

    monkeypatch.setattr(GaussianPrior, "denoise", denoise)
    outcome = run(grid, tmp_path / "small", max_rows=None)
    assert (outcome.rows, outcome.errors) == (ROWS, [])
    assert_same_scores(rows(tmp_path / "small"), rows(tmp_path / "whole"))
    assert sum(size > 3 for size in sizes) == 4 * 2, "10 rows, then 4, once in each run: then it is remembered"
    assert {r["rows_at_once"] for r in Store(tmp_path / "small").all_records().values()} == {2}

    sizes.clear()
    for part in list((tmp_path / "small" / "results.parquet").iterdir()):
        part.unlink()
    run(grid, tmp_path / "small", max_rows=None)
    assert max(sizes) <= 3, "a resumed run tries again what did not fit"


@pytest.mark.slow
def test_torchrun(tmp_path: Path, rows: Run) -> None:
    words = ["benchmark", "prior=digits", "samplers=[{dps:{schedule:{steps:5}}},{daps:{schedule:{steps:4}}}]"]
    words += [
        "operators=[inpainting,denoising]",
        "images=4",
        "num_samples=2",
        "compute.progress=false",
        "compute.precision=float32",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "invdiff"]
    for start, output in (([sys.executable, "-m", "invdiff"], "one"), (launch, "two")):
        done = subprocess.run(
            [*start, *words, f"output={output}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("rows computed") == 1, "one process speaks"
        assert "32 rows computed" in done.stdout
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert_same_scores(one, two)
    assert two.num_rows == 32
    assert len(set(Store(tmp_path / "two").table()["created"].to_pylist())) > len(
        set(Store(tmp_path / "one").table()["created"].to_pylist())
    )


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Cube(Operator):
    """A black box of one channel: nothing here can use it but what needs values alone."""

    differentiable = False

    def forward(self, x: Tensor) -> Tensor:
        return x**3

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Broken(Denoising):
    """Fails at the third image."""

    def forward(self, x: Tensor) -> Tensor:
        if (x.flatten(1)[:, 0] == self.bad).any():
            raise RuntimeError("the camera is off")
        return x

    bad: float


def test_an_impossible_pair_has_its_reason(grid: Grid, run: Run, tmp_path: Path) -> None:
    tasks = [Task("cube", Cube(), GaussianNoise(0.1), {"operator": "cube", "noise": {}}), grid.tasks[1]]
    outcome = run(replace(grid, tasks=tasks), tmp_path)
    assert (outcome.rows, outcome.errors) == (ROWS // 2, [])
    reasons = {r["sampler"]: r["reason"] for r in Store(tmp_path).all_records().values() if r["operator"] == "cube"}
    assert "DPS needs a differentiable operator" in reasons["dps"]
    assert "Cube" in reasons["daps"]


def test_a_run_that_fails_stops_no_other(grid: Grid, run: Run, rows: Run, tmp_path: Path) -> None:
    broken = Broken()
    broken.bad = float(grid.images.truth[2].flatten()[0])
    tasks = [Task("broken", broken, GaussianNoise(0.1), {"operator": "broken", "noise": {}}), grid.tasks[1]]
    outcome = run(replace(grid, tasks=tasks), tmp_path)
    assert [str(error) for error in outcome.errors] == ["the camera is off"] * 2
    assert [error.__notes__ for error in outcome.errors] == [["dps on broken"], ["daps on broken"]]
    assert set(outcome.reasons.values()) == {"RuntimeError: the camera is off"}
    assert rows(tmp_path).num_rows == ROWS // 2 + 2 * 4, "the first batch of each was whole"
    broken.bad = -1.0
    assert run(replace(grid, tasks=tasks), tmp_path).rows == 2 * 6, "it is tried again"


def test_diverging(grid: Grid, run: Run, tmp_path: Path) -> None:
    wild = Entry("wild", replace(grid.entries[0].sampler, zeta=1e12, clip=False, guidance="published"))  # type: ignore[type-var]
    assert run(replace(grid, entries=[wild], tasks=grid.tasks[1:]), tmp_path).errors == []
    table = Store(tmp_path).table()
    assert table.num_rows == 10
    assert table["diverged_at"].null_count == 0
    for score in ("psnr", "ssim", "misfit", "psnr_mean"):
        assert table[score].null_count == 10, score


# -- what else is written ----------------------------------------------------------------------------------------------


def test_reconstructions(grid: Grid, run: Run, tmp_path: Path) -> None:
    run(replace(grid, entries=grid.entries[1:], tasks=grid.tasks[1:]), tmp_path, save=Save(True, thumbnails=2))
    shards = sorted((tmp_path / "reconstructions").glob("*.npz"))
    names = []
    for shard in shards:
        with np.load(shard, allow_pickle=False) as file:
            names += file["names"].tolist()
            assert file["samples"].shape[1:] == (2, 1, 16, 16)
            np.testing.assert_allclose(file["samples"].mean(1), file["mean"], atol=1e-5)
            np.testing.assert_array_equal(file["x"], grid.images.truth[file["images"]])
    assert names == grid.images.names
    pictures = {p.name.split("-", 1)[1] for p in (tmp_path / "thumbnails").iterdir()}
    assert pictures == {f"00000{i}-{w}.png" for i in (0, 1) for w in PICTURES}


def test_maps_of_a_picture_have_one_scale(grid: Grid, run: Run, tmp_path: Path) -> None:
    """Standard deviation and error as they are, in units of the value range."""
    grid = replace(grid, entries=grid.entries[1:], tasks=grid.tasks[1:])
    run(grid, tmp_path, save=Save(True, thumbnails=1))
    (shard, *_) = sorted((tmp_path / "reconstructions").glob("*.npz"))
    with np.load(shard, allow_pickle=False) as file:
        std, error = file["std"][0], np.abs(file["mean"][0] - file["x"][0])
    for what, values in (("std", std), ("error", error)):
        (path,) = (tmp_path / "thumbnails").glob(f"*-000000-{what}.png")
        np.testing.assert_allclose(read_map(path), values[0].clip(0, 1), atol=1e-5)


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_equal_network_calls(grid: Grid, run: Run, tmp_path: Path) -> None:
    grid = replace(grid, budgets=[Budget("calls", 12)], own=False, tasks=grid.tasks[1:])
    run(grid, tmp_path, vjp_weight=2.0)
    table = Store(tmp_path).table()
    cost = {
        s: f + 2 * v for s, f, v in zip(*(table[c].to_pylist() for c in ("sampler", "forwards", "vjps")), strict=True)
    }
    assert cost == {"dps": 12, "daps": 12}
    assert run(grid, tmp_path, vjp_weight=2.0).rows == 0


@pytest.mark.slow
def test_a_budget_is_kept_by_a_resumed_run(
    grid: Grid, run: Run, rows: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps that a number of seconds buys are measured once: a busier machine must not start another run."""
    grid = replace(grid, budgets=[Budget("seconds", 0.05)], tasks=grid.tasks[1:])
    run(grid, tmp_path)
    before = rows(tmp_path)
    assert len(set(before["run"].to_pylist())) == 4
    monkeypatch.setattr("invdiff.benchmark.plan.fit_seconds", lambda *_: pytest.fail("measured again"))
    assert run(grid, tmp_path).rows == 0


def test_a_vjp_that_a_busy_machine_hides(grid: Grid, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_speed", lambda *_, **__: Speed(None, None))
    with pytest.raises(BadInput, match=r"could not measure .*budget\.vjp_weight=2"):
        run(grid, tmp_path, vjp_weight=None)
    assert run(grid, tmp_path, vjp_weight=2.0).rows == ROWS  # as the message advises


def test_a_budget_that_is_what_the_sampler_does_anyway(grid: Grid, run: Run, tmp_path: Path) -> None:
    grid = replace(grid, budgets=[Budget("calls", 3)], entries=grid.entries[1:], tasks=grid.tasks[1:])
    assert run(grid, tmp_path).rows == 10, "computed twice"


@pytest.mark.slow
def test_the_measured_columns_are_the_only_ones_that_differ(grid: Grid, run: Run, tmp_path: Path) -> None:
    run(grid, tmp_path / "a", vjp_weight=None)
    run(grid, tmp_path / "b", vjp_weight=None)
    a, b = (Store(tmp_path / name).table() for name in "ab")
    differing = {name for name in a.column_names if a[name].to_pylist() != b[name].to_pylist()}
    assert differing <= set(MEASURED)
