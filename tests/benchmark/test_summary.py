"""What rows come to: means over images, their errors, what is comparable with what."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff.benchmark.budget import Budget
from invdiff.benchmark.grid import Entry, Grid
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import Estimate, summarise
from invdiff.report.leaderboard import markdown

Run = Callable[..., Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.open()
    return store


@pytest.fixture
def add(store: Store) -> Callable[..., None]:
    """`add(run, psnrs)`: a run with these PSNR, a list of samples for each image."""

    def call(run: str, psnrs: list[list[float | None]], *, sampler: str = "", task: str = "t", **more: Any) -> None:
        settings = {
            "sampler": {"class": sampler or run, **more.pop("settings", {})},
            "operator": {"_target_": "x.Blur", "std": 2.0},
            "noise": {"_target_": "x.Noise"},
            "prior": {"name": "digits"},
            "precision": "auto",
            "invdiff": "1",
            "num_samples": 2,
            "seed": 0,
        }
        record = {"run": run, "sampler": sampler or run, "operator": "blur", "task": task, "settings": settings}
        store.write_record(record | {"fits": {}, "fitted": False, "reason": None} | more.pop("record", {}))
        costs = {"forwards": 10.0, "vjps": 5.0, "operator_calls": 1.0, "seconds": 0.5, "vjp_weight": 2.0} | more
        for i, samples in enumerate(psnrs):
            shared = {"run": run, "image": i, "image_key": "k", "created": NOW, "notes": "{}", **costs}
            rows = [
                shared | {"sample": s, "psnr": p, "baseline_psnr": 5.0, "diverged_at": 3 if p is None else None}
                for s, p in enumerate(samples)
            ]
            store.append(rows)

    return call


def test_samples_of_an_image_are_no_independent_tries(store: Store, add: Run) -> None:
    add("a", [[20.0, 22.0], [24.0, 24.0], [30.0, 30.0]])
    (comparison,) = summarise(store)
    (standing,) = comparison.standings
    assert standing.scores["psnr"].mean == 25
    assert standing.scores["psnr"].error == pytest.approx(np.std([21, 24, 30], ddof=1) / math.sqrt(3))
    assert (standing.images, standing.samples, standing.diverged) == (3, 6, 0)
    assert (standing.forwards, standing.vjps, standing.seconds, standing.cost) == (10, 5, 0.5, 20), "of one sample"
    assert comparison.baseline is not None
    assert comparison.baseline.mean == 5


def test_one_image_has_no_error() -> None:
    estimate = Estimate.of([3.0])
    assert estimate is not None
    assert estimate.mean == 3
    assert math.isnan(estimate.error)
    assert Estimate.of([]) is None


def test_diverged_samples_are_left_out_and_said(store: Store, add: Run) -> None:
    add("a", [[20.0, None], [None, None]])
    add("b", [[None, None]])
    (comparison,) = summarise(store)
    a, b = comparison.standings
    assert (a.label, a.scores["psnr"].mean, a.diverged, a.reason) == ("a", 20, 3, None)
    assert (b.label, "psnr" in b.scores, b.reason) == ("b", False, "every sample diverged")
    page = markdown([comparison])
    assert "3 of 4" in page
    assert "b (every sample diverged)" in page


def test_nobody_is_better_for_less(store: Store, add: Run) -> None:
    add("best", [[30.0]], seconds=9.0)
    add("cheap", [[20.0]], forwards=1.0, vjps=0.0, seconds=1.0)
    add("beaten", [[19.0]], forwards=5.0, vjps=0.0, seconds=8.0)
    add("quick", [[25.0]], seconds=2.0)
    marks = {s.label: (s.best_for_cost, s.best_for_seconds) for s in summarise(store)[0].standings}
    assert marks == {"best": (True, True), "cheap": (True, True), "beaten": (False, False), "quick": (False, True)}
    assert [s.label for s in summarise(store)[0].standings] == ["best", "quick", "cheap", "beaten"]


def test_tasks_are_not_mixed(store: Store, add: Run) -> None:
    add("a", [[20.0]])
    add("b", [[30.0]], task="u")
    assert [[s.label for s in c.standings] for c in summarise(store)] == [["a"], ["b"]]


def test_those_that_share_a_label_are_told_apart(store: Store, add: Run) -> None:
    add("1", [[20.0]], sampler="dps", settings={"zeta": 1.0, "schedule": {"steps": 5}})
    add("2", [[21.0]], sampler="dps", settings={"zeta": 2.0, "schedule": {"steps": 5}})
    add("3", [[22.0]], sampler="daps")
    assert [s.label for s in summarise(store)[0].standings] == ["daps", "dps (zeta=2.0)", "dps (zeta=1.0)"]


def test_an_image_that_was_another_one_counts_as_it_is_now(store: Store, add: Run) -> None:
    add("a", [[20.0]])
    later = {"run": "a", "image": 0, "image_key": "new", "sample": 0, "created": NOW + timedelta(1), "psnr": 40.0}
    store.append([later | {"notes": "{}", "forwards": 1.0, "vjps": 0.0, "operator_calls": 0.0, "seconds": 0.0}])
    assert summarise(store)[0].standings[0].scores["psnr"].mean == 40


def test_reasons_and_failures(store: Store, add: Run) -> None:
    add("a", [[20.0]])
    add("no", [], record={"reason": "no needs a linear operator"})
    add("stopped", [[21.0]])
    page = markdown(summarise(store, {"stopped": "RuntimeError: the camera is off"}), failures=1)
    assert "- no: no needs a linear operator" in page
    assert "stopped (RuntimeError: the camera is off)" in page
    assert "1 run(s) stopped early" in page


def test_the_page(store: Store, add: Run) -> None:
    add("a", [[20.0], [22.0]])
    add("b|c", [[25.0]])
    lines = markdown(summarise(store)).splitlines()
    assert "## blur" in lines
    assert "Blur(std=2.0) · Noise() · prior digits · 2 image(s), 2 sample(s) each, seed 0" in lines
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| sampler | PSNR | images | calls | VJPs | cost | seconds |"
    assert table[2] == "| b\\|c | 25.00 | 1 | 10 | 5 | **20** | **0.5** |"
    assert table[3] == "| a | 21.00 ± 1.00 | 2 | 10 | 5 | 20 | 0.5 |"
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_budgets_have_tables_of_their_own(grid: Grid, run: Run, tmp_path: Path) -> None:
    """The one that is at the budget anyway stands in both; the one that cannot be brought to it has its reason."""
    of_dps, of_daps = grid.entries
    dear = Entry("dear", replace(of_daps.sampler, ode_steps=5))  # type: ignore[type-var]
    small = replace(grid, entries=[of_dps, of_daps, dear], tasks=grid.tasks[:1], budgets=[Budget("calls", 12.0)])
    run(small, tmp_path)
    own, fitted = summarise(Store(tmp_path))
    assert (own.budget, fitted.budget) == (None, "12 network calls")
    assert {s.label: s.cost for s in own.standings} == {"dps": 8, "daps": 3, "dear": 15}
    assert {s.label: (s.steps, s.cost) for s in fitted.standings} == {
        "dps": (6, 12),
        "daps": (12, 12),
        "dear": (None, None),
    }
    page = markdown([own, fitted])
    assert "Costs are of one sample" in page
    at_budget = page.partition("### At 12 network calls a sample")[2]
    assert "| **12** |" in at_budget, "the budget is what its table says it costs"
    assert "- dear: 4 steps take 20 network calls" in markdown([own, fitted])
