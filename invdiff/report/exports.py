"""The tables of a benchmark for papers and spreadsheets: LaTeX with booktabs, CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence

from invdiff.benchmark.summary import Comparison
from invdiff.report.leaderboard import columns, described

COSTS = ("forwards", "vjps", "cost", "seconds")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--"}  # noqa: RUF001
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def in_latex(comparisons: Sequence[Comparison]) -> str:
    """A booktabs table for each task and budget, with the bold marks of the leaderboard."""
    lines = ["% \\usepackage{booktabs}"]
    for comparison in comparisons:
        cells = columns(comparison)
        budget = "" if comparison.budget is None else f", at {comparison.budget} a sample"
        lines += [
            "\\begin{table}",
            f"\\caption{{{_escaped(described(comparison) + budget)}}}",
            f"\\begin{{tabular}}{{l{'r' * len(cells)}}}",
            "\\toprule",
            _row(["sampler", *cells]),
            "\\midrule",
            *(_row([s.label, *(write(s) for write in cells.values())]) for s in comparison.standings if s.images),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    return "\n".join(lines) + "\n"


def in_csv(comparisons: Sequence[Comparison]) -> str:
    """A row for each sampler, task and budget: every score with its standard error, and costs of one sample."""
    scores = sorted({score for c in comparisons for s in c.standings for score in s.scores})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    errors = [name for score in scores for name in (score, f"{score}_se")]
    writer.writerow(["operator", "budget", "sampler", "run", "images", "samples", "diverged", *errors, *COSTS])
    for comparison in comparisons:
        for s in comparison.standings:
            found = [s.scores.get(score) for score in scores]
            numbers = [n for value in found for n in ((value.mean, value.error) if value else (None, None))]
            costs = [getattr(s, name) for name in COSTS] if s.images else [None] * len(COSTS)
            head = [comparison.operator, comparison.budget or "own settings", s.label, s.run, s.images, s.samples]
            writer.writerow([*head, s.diverged, *map(_number, [*numbers, *costs])])
    return file.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.8g}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_bold, cells)) + r" \\"


def _bold(words: str) -> str:
    inner = re.fullmatch(r"\*\*(.*)\*\*", words)
    return f"\\textbf{{{_escaped(inner[1])}}}" if inner else _escaped(words)


def _escaped(words: str) -> str:
    return "".join(_LATEX.get(character, character) for character in words)
