"""`invdiff benchmark` from start to end: what it leaves, how it goes on, and what it says when it cannot."""

import errno
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark import sets as image_sets
from invdiff.benchmark.store import Store
from invdiff.cli.process import Terminated
from invdiff.io.atomic import PARTIAL
from invdiff.io.lock import held

Run = Callable[..., Any]


@pytest.fixture
def benchmark(invdiff: Run) -> Run:
    """Two samplers of a few steps on two images of a Gaussian field, one by one, into `out`; later words overrule."""
    words = (
        *("benchmark", "prior=gaussian_field", "prior.shape=[1,16,16]", "images=2", "num_samples=2", "output=out"),
        *("compute.device=cpu", "compute.max_rows=2", "save.thumbnails=0", "budget.vjp_weight=1"),
        "samplers=[{dps:{schedule:{steps:2}}},{daps:{schedule:{steps:2}}}]",
    )
    return lambda *more: invdiff(*words, *more)


@pytest.fixture
def second_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """`second_batch(error)`: what happens, once, where the second batch is to be stored."""

    def happens(error: BaseException) -> None:
        plain, calls = Store.append, iter(range(10_000))

        def append(store: Store, rows: Any) -> None:
            if next(calls) == 1:
                raise error
            plain(store, rows)

        monkeypatch.setattr(Store, "append", append)

    return happens


def stored(folder: str = "out") -> list[tuple[Any, ...]]:
    columns = ("sampler", "image", "sample", "psnr")
    return [tuple(row[c] for c in columns) for row in Store(Path(folder)).table(columns).to_pylist()]


def table(heading: str) -> list[list[str]]:
    """The first table of the leaderboard below a heading, its cells."""
    below = Path("out/leaderboard.md").read_text().partition(f"# {heading}\n")[2]
    lines = [line for line in below.partition("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_grid_and_the_same_command_again(benchmark: Run) -> None:
    done = benchmark("operators=[inpainting,denoising]")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("16 rows computed; report.html, leaderboard.md and results.parquet")
    assert "of one sample" in done.out
    assert {p.name for p in Path("out").iterdir()} == {
        *("config.yaml", "leaderboard.md", "report.html", "results.parquet", "runs"),
    }
    before = stored()
    assert len(before) == 2 * 2 * 2 * 2
    for operator in ("inpainting", "denoising"):
        assert {row[0] for row in table(operator)} >= {"dps", "daps", "*first guess, without a prior*"}
    again = benchmark("operators=[inpainting,denoising]")
    assert again.code == 0
    assert again.out.splitlines()[-1].startswith("0 rows computed")
    assert stored() == before


@pytest.mark.slow
def test_what_is_in_effect_is_on_the_page_and_changes_no_run(benchmark: Run) -> None:
    """Inpainting of which nothing is said keeps 0.3 of the pixels; its fingerprint is that of what was said."""
    assert benchmark("operators=[inpainting]").code == 0
    assert "Inpainting(keep=0.3, axis=rows" in Path("out/leaderboard.md").read_text()
    for record in Store(Path("out")).all_records().values():
        assert record["settings"]["operator"]["keep"] is None


@pytest.mark.slow
def test_at_a_budget_the_cost_of_a_sample_is_the_budget(benchmark: Run) -> None:
    done = benchmark("operators=[denoising]", "budget.calls=[12]", "budget.own=false")
    assert (done.code, done.err) == (0, "")
    headings, _, *rows = table("At 12 network calls a sample")
    costs = {row[0]: row[headings.index("cost")].strip("*") for row in rows if row[0] in ("dps", "daps")}
    assert costs == {"dps": "12", "daps": "12"}


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_stopped_it_keeps_its_rows_and_writes_its_pages(
    benchmark: Run, second_batch: Run, stop: BaseException, code: int
) -> None:
    second_batch(stop)
    done = benchmark("operators=[denoising]", "samplers=[{dps:{schedule:{steps:2}}}]")
    told = "interrupted; all finished batches are in out, the same command resumes"
    assert (done.code, done.err) == (code, f"invdiff: {told}\n")
    kept = stored()
    assert [row[:3] for row in kept] == [("dps", 0, 0), ("dps", 0, 1)]
    assert "1 image(s), 2 sample(s) each" in Path("out/leaderboard.md").read_text()
    assert Path("out/report.html").exists()
    assert not Path("out/.lock").exists()
    again = benchmark("operators=[denoising]", "samplers=[{dps:{schedule:{steps:2}}}]")
    assert again.out.splitlines()[-1].startswith("2 rows computed")
    assert stored()[:2] == kept


@pytest.mark.slow
def test_a_full_disk(benchmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, dataset = os.fsync, Path("out/results.parquet")

    def fsync(handle: int) -> None:
        if list(dataset.glob("*.parquet")) and list(dataset.glob(f".*{PARTIAL}")):  # in the middle of the second batch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        done = benchmark("operators=[denoising]")
    assert done.code == 2
    assert re.fullmatch(
        r"invdiff: error: No space left on device: out/results\.parquet/\w+-000001-\w+\.parquet; "
        r"results stored in the output folder are kept\n",
        done.err,
    )
    assert len(stored()) == 2
    assert benchmark("operators=[denoising]").out.splitlines()[-1].startswith("6 rows computed")


def test_a_disk_that_is_full_from_the_beginning(benchmark: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = benchmark("operators=[denoising]")
    kept = "results stored in the output folder are kept"
    assert (done.code, done.err) == (2, f"invdiff: error: No space left on device: out/config.yaml; {kept}\n")
    assert not Path("out").exists(), "nor is half of a config.yaml left"


def test_a_folder_that_another_run_has(benchmark: Run) -> None:
    Path("out").mkdir()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with held(Path("out"), lambda _: None, alone=True):
            os.write(ready[1], b".")
            os.read(go[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        done = benchmark()
        assert done.code == 2
        assert done.err.startswith(f"invdiff: error: another run is writing into out (process {child} on ")
        assert "wait for it or set another output=" in done.err
        assert all(p.name.startswith(".lock") for p in Path("out").iterdir())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (*ready, *go):
            os.close(end)


@pytest.mark.slow
def test_a_file_that_is_no_record(benchmark: Run) -> None:
    """Found before anything is computed, and not in the way of the pages at the end."""
    words = ("operators=[denoising]", "samplers=[{dps:{schedule:{steps:2}}}]")
    assert benchmark(*words).code == 0
    Path("out/runs/x.json").write_text('{"run":"x"}')
    done = benchmark(*words)
    assert (done.code, done.out.splitlines()[-1].partition(";")[0]) == (0, "0 rows computed")
    assert done.err == "invdiff: runs/x.json is damaged: moved to damaged/, the record of the run is made again\n"


@pytest.mark.slow
def test_without_what_fid_needs_it_says_so_before_it_begins(
    benchmark: Run, second_batch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sets, "unavailable", lambda: "FID and KID need the package torch-fidelity")
    second_batch(KeyboardInterrupt())
    done = benchmark("operators=[denoising]", "fid=true", "save.reconstructions=true")
    first, last = done.err.splitlines()
    assert (
        first
        == "invdiff: fid=true: FID and KID need the package torch-fidelity; the leaderboard will be without FID and KID"
    )
    assert last.startswith("invdiff: interrupted")
