"""The pages of a benchmark: `leaderboard.md` and `report.html`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from invdiff.benchmark import sets as image_sets
from invdiff.benchmark.loggers import Logger
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import Comparison, rows_by_image, summarise
from invdiff.io.atomic import write_atomically
from invdiff.io.lock import Lock
from invdiff.report.leaderboard import markdown
from invdiff.report.page import page


def write_pages(
    output: Path, failures: Mapping[str, str], lock: Lock | None, *, sets_on: torch.device | None = None
) -> list[Comparison]:
    """Write both pages of all results under a folder; of the jobs of a sweep, the last one alone writes them.

    sets_on  device for FID and KID; None: without them
    """
    with nullcontext() if lock is None else lock.turn():
        if lock is not None and not lock.last():
            return []
        store = Store(output)
        rows = rows_by_image(store)
        of_sets = None if sets_on is None else image_sets.of_runs(store, rows, device=sets_on)
        comparisons = summarise(store, failures, rows=rows, of_sets=of_sets)
        write_atomically(output / "leaderboard.md", markdown(comparisons, len(failures)).encode())
        write_atomically(output / "report.html", page(store, comparisons, rows, len(failures)).encode())
    return comparisons


def log_scores(comparisons: Sequence[Comparison], logger: Logger, rows: int) -> None:
    """The scores of the leaderboard, those of all ranks and of earlier runs in them."""
    for comparison in comparisons:
        budget = "own settings" if comparison.budget is None else comparison.budget
        for standing in comparison.standings:
            name = f"leaderboard/{comparison.operator}/{budget}/{standing.label}"
            logger.scalars({f"{name}/{score}": found.mean for score, found in standing.scores.items()}, rows)
