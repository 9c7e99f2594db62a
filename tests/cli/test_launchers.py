"""`invdiff benchmark -m`: the jobs of a sweep, however launched, make the one dataset that a single run makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from invdiff.benchmark.store import MEASURED, Store

Run = Callable[..., Any]

DAPS, DPS = "{daps:{schedule:{steps:2}}}", "{dps:{schedule:{steps:4}}}"
WORDS = (
    "benchmark",
    "prior=digits",
    "operators=[denoising]",
    "num_samples=2",
    "data=[{generated:{steps:1,count:3}}]",
    "compute.max_rows=2",
    "compute.precision=float32",
    "compute.progress=false",
    "budget.vjp_weight=2",
)


def rows(folder: str) -> pa.Table:
    return Store(Path(folder)).table().drop_columns(list(MEASURED))


@pytest.fixture
def whole(invdiff: Run) -> pa.Table:
    done = invdiff(*WORDS, f"samplers=[{DAPS},{DPS}]", "output=whole")
    assert (done.code, done.err) == (0, "")
    table = rows("whole")
    assert table.num_rows == 12
    return table


def sweep(invdiff: Run, *words: str) -> None:
    done = invdiff(*WORDS, "-m", f"samplers=[{DAPS}],[{DPS}]", "output=swept", *words)
    assert done.code == 0, done.err
    assert {p.name for p in Path("swept").glob("*")} >= {"config_0.yaml", "config_1.yaml", "results.parquet"}
    assert not Path("swept/.lock").exists()
    page = Path("swept/leaderboard.md").read_text()
    assert "| dps" in page
    assert "| daps" in page


@pytest.mark.slow
def test_one_after_another(invdiff: Run, whole: pa.Table) -> None:
    sweep(invdiff)
    assert rows("swept") == whole
    done = invdiff(*WORDS, "-m", f"samplers=[{DAPS}],[{DPS}]", "output=swept")
    assert done.out.count("0 rows computed") == 2, "a sweep is resumed like a run"
    done = invdiff(*WORDS, f"samplers=[{DAPS},{DPS}]", "output=swept")
    assert "0 rows computed" in done.out, "a single run goes on from a sweep"


@pytest.mark.slow
def test_side_by_side_by_joblib(invdiff: Run, whole: pa.Table) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep(invdiff, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert rows("swept") == whole


@pytest.mark.slow
def test_by_submitit_with_its_tasks_as_ranks(invdiff: Run, whole: pa.Table) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep(invdiff, "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=4")
    swept = rows("swept")
    for name in ("run", "image", "image_key", "sample", "forwards", "vjps"):
        assert swept[name].to_pylist() == whole[name].to_pylist(), name
    assert swept["psnr"].to_pylist() == pytest.approx(whole["psnr"].to_pylist(), abs=1e-3)


@pytest.mark.slow
def test_a_job_that_fails_stops_no_other(invdiff: Run) -> None:
    done = invdiff(*WORDS, "-m", f"samplers=[nonsense],[{DAPS}]", "output=swept")
    assert done.code == 2
    assert "job 0" in done.err
    assert "unknown sampler 'nonsense'" in done.err
    assert "_values" not in done.err
    assert rows("swept").num_rows == 6
