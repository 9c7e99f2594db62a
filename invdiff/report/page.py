"""`report.html`: a benchmark on one page that needs nothing else, no server and no network.

Tables as in `leaderboard.md`, plots of quality against cost and of calibration, pictures, and the command that
repeats every row. The template escapes all text of users.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import ORIGIN, Comparison, Rows, Standing
from invdiff.report.gallery import OF_METHOD, Galleries, Gallery, in_order, magma_css
from invdiff.report.leaderboard import (
    BASELINE,
    DISTANCES,
    LEGEND,
    OF_DISTANCES,
    OF_SETS,
    columns,
    described,
    estimate,
    prior_label,
    sorted_by,
)
from invdiff.report.plots import Look, Plot, calibration, looks, quality_against

CALLS = "network calls of a sample, VJPs included"
HEADINGS = {
    "truth": "truth",
    "measurement": "measurement",
    "guess": "first guess",
    "sample": "sample",
    "mean": "mean",
    "std": "std",
    "error": "error",
}


@dataclass(frozen=True)
class Cell:
    """A number of a table: its words, its error, what it is sorted by, and whether it is marked."""

    words: str
    error: str
    value: float | None
    marked: bool

    @classmethod
    def of(cls, words: str) -> "Cell":
        marked, plain = words.startswith("**"), words.strip("*")
        number = re.match(r"-?[\d,]*\.?\d+(?:e[+-]?\d+)?", plain)
        value, sign, error = plain.partition(" ± ")
        error, slash, floor = error.partition(" / ")
        return cls(value + slash + floor, sign + error, float(number[0].replace(",", "")) if number else None, marked)


@dataclass(frozen=True)
class Row:
    run: str
    label: str
    reason: str | None
    look: Look
    cells: Sequence[Cell]
    command: str | None


@dataclass(frozen=True)
class Table:
    title: str
    headings: Sequence[str]
    sorted_by: tuple[str, str]
    rows: Sequence[Row]
    baseline: Sequence[str] | None
    reasons: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Again:
    """How to repeat a run: the command, None where it was asked for without a configuration, and its settings."""

    run: str
    title: str
    command: str | None
    config: str
    origin: str


@dataclass
class Section:
    """A task."""

    anchor: str
    label: str
    about: str
    tables: list[Table]
    plots: list[Plot]
    looks: list[tuple[str, Look]]
    galleries: list[Gallery]
    again: list[Again]


def page(store: Store, comparisons: Sequence[Comparison], rows: Rows, failures: int = 0) -> str:
    """The whole page.

    comparisons  `summarise` of the store
    rows         `rows_by_image` of the store
    failures     how many runs stopped early
    """
    standings = [s for comparison in comparisons for s in comparison.standings]
    look = looks([s.label for s in standings])
    by_task: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_task.setdefault(comparison.task, []).append(comparison)
    sections = [_section(store, members, rows, look) for members in by_task.values()]
    of_sections = [section.galleries for section in sections]
    left_out = Galleries(store, rows, look).fill(list(zip(of_sections, by_task.values(), strict=True)))
    legend = [LEGEND]
    if any(score in s.scores for s in standings for _, score, _ in DISTANCES):
        legend.append(OF_DISTANCES)
    if any("fid" in s.scores for s in standings):
        legend.append(OF_SETS)
    environment = Environment(
        loader=PackageLoader("invdiff.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        facts=_facts(comparisons, rows),
        legend=[" ".join(words.replace("**", "").split()) for words in legend],
        sections=sections,
        failures=failures,
        left_out=left_out,
        headings=HEADINGS,
        of_method=OF_METHOD,
        magma=magma_css() if any(s.galleries for s in sections) else "",
    )


def _facts(comparisons: Sequence[Comparison], rows: Rows) -> list[tuple[str, str]]:
    """What was run, on what, when."""
    every = [row for images in rows.values() for of_image in images.values() for row in of_image]
    settings = [comparison.settings for comparison in comparisons]

    def several(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values if v is not None)) or "not known"

    facts = [
        ("runs", f"{sum(bool(images) for images in rows.values()):,}"),
        ("samples", f"{len(every):,}"),
        ("prior", several([prior_label(s["prior"]) for s in settings])),
        ("invdiff", several([row["invdiff"] for row in every])),
        ("revision", several([_revision(row["git_revision"]) for row in every])),
        ("hardware", several([row["device"] for row in every])),
    ]
    if every:
        facts.append(("last sample", f"{max(row['created'] for row in every):%Y-%m-%d %H:%M} UTC"))
    return facts


def _revision(commit: str | None) -> str | None:
    if commit is None:
        return None
    number, plus, changes = commit.partition("+")
    return number[:10] + plus + changes


# -- tables ------------------------------------------------------------------------------------------------------------


def _section(store: Store, members: Sequence[Comparison], rows: Rows, look: Mapping[str, Look]) -> Section:
    first, looks_here = members[0], dict(look)
    again = {
        s.run: _again(store, s, comparison, rows.get(s.run, {}))
        for comparison in reversed(members)
        for s in comparison.standings
        if s.images
    }
    plots = [
        quality_against(members, "cost", "Quality against network calls", CALLS, looks_here),
        quality_against(members, "seconds", "Quality against time", "seconds of a sample", looks_here),
        *(calibration(c, f"Calibration, {c.budget or 'own settings'}", looks_here) for c in members),
    ]
    labels = dict.fromkeys(s.label for c in members for s in c.standings if s.images)
    return Section(
        anchor=f"task-{first.task}",
        label=first.operator,
        about=described(first),
        tables=[_table(c, look, again) for c in members],
        plots=[p for p in plots if p is not None],
        looks=[(label, look[label]) for label in sorted(labels)],
        galleries=[],
        again=[again[s.run] for s in in_order(members)],
    )


def _where(comparison: Comparison) -> str:
    return "own settings" if comparison.budget is None else f"at {comparison.budget} a sample"


def _table(comparison: Comparison, look: Mapping[str, Look], again: Mapping[str, Again]) -> Table:
    cells = columns(comparison)
    baseline = None
    if comparison.baseline is not None:
        baseline = [estimate(comparison.baseline, 2) if heading == BASELINE else "" for heading in cells]
    return Table(
        title="Own settings" if comparison.budget is None else f"At {comparison.budget} a sample",
        headings=list(cells),
        sorted_by=sorted_by(comparison),
        rows=[
            Row(
                s.run,
                s.label,
                s.reason,
                look[s.label],
                [Cell.of(write(s)) for write in cells.values()],
                again[s.run].command,
            )
            for s in comparison.standings
            if s.images
        ],
        baseline=baseline,
        reasons=[f"{s.label}: {s.reason}" for s in comparison.standings if not s.images],
        notes=[f"{score}: {why}" for score, why in comparison.notes.items()],
    )


def _again(
    store: Store,
    standing: Standing,
    comparison: Comparison,
    images: Mapping[int, Sequence[Mapping[str, Any]]],
) -> Again:
    run = standing.run
    config = store.config(run)
    words = ["invdiff", "benchmark", f"--config-dir={store.records}", f"--config-name={run}"]
    last = max((row for rows in images.values() for row in rows), key=lambda row: row["created"])
    return Again(
        run=run,
        title=f"{comparison.operator} · {standing.label} · {_where(comparison)}",
        command=None if config is None else shlex.join([*words, f"images={standing.images}"]),
        config=json.dumps(standing.settings, indent=1) if config is None else config,
        origin=", ".join(f"{name} {last[name]}" for name in ORIGIN if last[name] is not None),
    )
