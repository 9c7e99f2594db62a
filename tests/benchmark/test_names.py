"""Settings, not names, key the rows: equal settings are one row, other settings another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark.budget import Budget
from invdiff.benchmark.grid import Entry, Grid, Measurements
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import summarise
from invdiff.samplers import Auto

Run = Callable[..., Any]


@pytest.mark.slow
def test_equal_settings_are_one_row_under_all_their_names(grid: Grid, run: Run, tmp_path: Path) -> None:
    """`auto` chooses MomentDraw here; `long` is another run until a budget gives it the steps of the others."""
    auto = Auto().resolve(Measurements(grid, grid.tasks[1]).problem([0]), grid.prior)[0]
    longer = replace(auto, schedule=replace(auto.schedule, steps=50))  # type: ignore[attr-defined, type-var]
    entries = [Entry("auto", Auto()), Entry("same", auto), Entry("long", longer)]
    small = replace(grid, entries=entries, tasks=grid.tasks[1:], budgets=[Budget("calls", 60)])
    assert run(small, tmp_path).rows == 3 * 10
    own, fitted = summarise(Store(tmp_path))
    assert {s.label for s in own.standings} == {"auto, same", "long"}
    assert [s.label for s in fitted.standings] == ["auto, same, long"]
    assert {*Store(tmp_path).table()["sampler"].to_pylist()} == {"auto, same", "long", "auto, same, long"}
    assert run(small, tmp_path).rows == 0


def test_one_name_with_two_settings_is_two_rows(grid: Grid, run: Run, tmp_path: Path) -> None:
    for zeta in (1.0, 2.0):
        entry = Entry("dps", replace(grid.entries[0].sampler, zeta=zeta))  # type: ignore[type-var]
        run(replace(grid, entries=[entry], tasks=grid.tasks[1:]), tmp_path)
    (comparison,) = summarise(Store(tmp_path))
    assert {s.label for s in comparison.standings} == {"dps (zeta=1.0)", "dps (zeta=2.0)"}
    assert [s.samples for s in comparison.standings] == [10, 10]


def test_budgets_that_look_alike_are_two_tables() -> None:
    assert str(Budget("calls", 1_000_001.0)) != str(Budget("calls", 1_000_002.0))
    assert str(Budget("seconds", 0.1)) == "0.1 s"
