"""What rows come to: means over images, their errors, what is comparable with what."""

import json
import math
import re
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
from invdiff.benchmark.summary import Estimate, paired, summarise
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
    """`add(run, psnrs)`: a run with these PSNR, a list of samples for each image.

    `energies` are the energy scores of the images, and the PSNR of the mean that of the first sample.
    """

    def call(
        run: str,
        psnrs: list[list[float | None]],
        *,
        energies: list[float] | None = None,
        sampler: str = "",
        task: str = "t",
        **more: Any,
    ) -> None:
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
            shared = {"run": run, "image": i, "image_key": f"k{i}", "created": NOW, "notes": "{}", **costs}
            shared |= {"baseline_psnr": 5.0, "psnr_mean": samples[0]}
            if energies is not None:
                shared |= {"energy": energies[i], "spread_error": energies[i], "rmse_mean": i + 1.0, "coverage_90": 0.8}
            rows = [
                shared | {"sample": s, "psnr": p, "diverged_at": 3 if p is None else None}
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


# Energy scores of four images, which differ more from one another than between samplers.
EASY = np.array([0.01, 0.02, 0.05, 0.09])


def test_rows_are_ranked_by_energy_score_and_not_by_the_psnr_of_a_sample(store: Store, add: Run) -> None:
    add("sharp", [[30.0, 30.0]] * 4, energies=[*EASY + 0.02])
    add("right", [[20.0, 20.0]] * 4, energies=[*EASY])
    add("lost", [[40.0, None]] * 4)
    (comparison,) = summarise(store)
    assert comparison.rule == "energy"
    assert [s.label for s in comparison.standings] == ["right", "sharp", "lost"], "last the one without energy scores"


def test_differences_are_paired_over_the_images_that_rows_share(store: Store, add: Run) -> None:
    gap = np.array([0.002, 0.003, 0.001, 0.002])
    add("best", [[20.0]] * 4, energies=[*EASY])
    add("close", [[20.0]] * 4, energies=[*EASY + np.array([0.002, -0.004, 0.0, 0.0])])
    add("behind", [[20.0]] * 3, energies=[*(EASY + gap)[:3]])
    # The mean of three easy images is the lowest, but not on the images that all have.
    assert [s.run for s in summarise(store)[0].standings] == ["close", "best", "behind"]
    add("fourth", [[20.0]] * 4, energies=[*EASY + gap])
    standings = {s.run: s for s in summarise(store)[0].standings}
    for run in ("best", "close", "fourth"):
        found = paired(standings[run], standings["behind"], "energy")
        assert found is not None
        wanted = {"best": -gap, "close": np.array([0.002, -0.004, 0, 0]) - gap, "fourth": 0 * gap}[run][:3]
        assert found.mean == pytest.approx(wanted.mean())
        assert found.error == pytest.approx(np.std(wanted, ddof=1) / math.sqrt(3)), "not that of the images"
    assert paired(standings["best"], replace(standings["close"], by_image={}), "energy") is None


def test_nobody_is_best_inside_the_error(store: Store, add: Run) -> None:
    gap = np.array([0.002, 0.003, 0.001, 0.002])
    add("best", [[20.0]] * 4, energies=[*EASY])
    add("far", [[20.0]] * 4, energies=[*EASY + gap])
    best, far = summarise(store)[0].standings
    assert (best.best, best.behind, far.best) == (True, None, False)
    assert far.behind is not None
    assert far.behind.mean == pytest.approx(0.002)
    page = markdown(summarise(store))
    assert "| best | **0.0425 ± 0.0180** |  |" in page
    assert "| far | 0.0445 ± 0.0178 | 0.0020 ± 0.0004 |" in page
    add("close", [[20.0]] * 4, energies=[*EASY + np.array([0.002, -0.001, 0.0, 0.0])])
    assert not any(s.best for s in summarise(store)[0].standings)
    assert "**0.04" not in markdown(summarise(store))


def test_better_for_less_only_beyond_the_error(store: Store, add: Run) -> None:
    """`wasteful` costs more than `cheap` and is better by chance; `dear` is better than all that cost less."""
    chance, sure = np.array([-0.004, 0.002, 0.001, 0.0]), np.array([-0.004, -0.003, -0.004, -0.003])
    add("cheap", [[20.0]] * 4, energies=[*EASY], forwards=1.0, vjps=0.0, seconds=1.0)
    add("wasteful", [[20.0]] * 4, energies=[*EASY + chance], forwards=5.0, vjps=0.0, seconds=0.5)
    add("dear", [[20.0]] * 4, energies=[*EASY + sure], forwards=9.0, vjps=0.0, seconds=9.0)
    add("as dear", [[20.0]] * 4, energies=[*EASY], forwards=9.0, vjps=0.0, seconds=9.0)
    marks = {s.run: (s.best_for_cost, s.best_for_seconds) for s in summarise(store)[0].standings}
    assert marks == {"cheap": (True, False), "wasteful": (False, True), "dear": (True, True), "as dear": (False, False)}


def test_one_sample_is_ranked_by_the_psnr_of_the_mean_and_the_page_says_so(store: Store, add: Run) -> None:
    add("low", [[20.0, 40.0], [21.0, 40.0]], forwards=1.0)
    add("high", [[30.0, 10.0], [31.0, 12.0]], forwards=2.0)
    (comparison,) = summarise(store)
    assert [s.label for s in comparison.standings] == ["high", "low"]
    assert [s.best for s in comparison.standings] == [True, False]
    assert comparison.standings[1].behind is not None
    assert comparison.standings[1].behind.mean == 10
    assert "- ranking: by the PSNR of the mean, for no sampler has an energy score" in markdown([comparison])


def test_one_image_makes_nobody_the_best(store: Store, add: Run) -> None:
    """The error of a difference is not known: the cheapest alone is marked."""
    add("good", [[30.0]], energies=[0.01])
    add("bad", [[20.0]], energies=[0.02], forwards=1.0)
    standings = {s.run: s for s in summarise(store)[0].standings}
    assert not any(s.best for s in standings.values())
    assert {run: s.best_for_cost for run, s in standings.items()} == {"good": False, "bad": True}


def test_spread_over_error_is_of_all_images_together(store: Store, add: Run) -> None:
    add("a", [[20.0]] * 2, energies=[1.0, 2.0])  # with errors 1 and 2
    assert summarise(store)[0].standings[0].scores["spread_error"].mean == pytest.approx(math.sqrt((1 + 16) / 5))


def test_coverage_stands_beside_that_of_samples_on_one_side(store: Store, add: Run) -> None:
    add("a", [[20.0]], energies=[0.1])
    page = markdown(summarise(store))
    assert "in 90% intervals / one-sided" in page
    assert "| 0.80 / 0.85 |" in page, "of two samples"


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


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\\<script>",
    "[x](javascript:alert(1))",
    "![](http://example.org)",
    "a\n# b",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_in_the_page_is_markup_of_others(store: Store, add: Run, words: str) -> None:
    """Names, reasons, notes and settings come from configurations and messages of anybody."""
    add("first", [[None]], sampler=words, notes=json.dumps({"psnr": words}))
    add("no", [], task="v", record={"reason": words, "operator": words})
    settings = {"operator": {"_target_": "x.Blur", "kernel": words}}
    add("set", [[20.0]], task="u", settings=settings)
    page = markdown(summarise(store, {"set": words}))
    assert page.count(words.split("(")[-1].split()[-1]) >= 5, "a place is missing"
    bare = re.sub(r"\\\\|\\.", "", page)  # without what a backslash makes plain
    assert "<" not in bare
    assert "](" not in bare
    assert "# b" not in page.splitlines()


def test_the_page(store: Store, add: Run) -> None:
    add("a", [[20.0], [22.0]])
    add("b|c", [[25.0]])
    lines = markdown(summarise(store)).splitlines()
    assert "## blur" in lines
    assert "Blur(std=2.0) · Noise() · prior digits · 2 image(s), 2 sample(s) each, seed 0" in lines
    table = [line for line in lines if line.startswith("|")]
    headings = "PSNR of mean | behind the best | PSNR of a sample | images | calls | VJPs | cost | seconds"
    assert table[0] == f"| sampler | {headings} |"
    assert table[2] == "| b\\|c | 25.00 |  | 25.00 | 1 | 10 | 5 | **20** | **0.5** |"
    assert table[3] == "| a | 21.00 ± 1.00 | 5.00 | 21.00 ± 1.00 | 2 | 10 | 5 | **20** | **0.5** |"
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
