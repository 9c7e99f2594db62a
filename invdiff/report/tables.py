"""Tables of results for a terminal of 80 columns and more."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from invdiff.benchmark.summary import Comparison
from invdiff.contracts.verdict import Verdict
from invdiff.findings import Finding
from invdiff.report.leaderboard import BEHIND, columns
from invdiff.scores.calibration import Calibration

# Scores of a benchmark that a terminal has room for.
SHOWN = (
    *("energy score", BEHIND, "spread / error", "PSNR of mean", "misfit", "sliced W / floor", "modes off / floor"),
    *("diverged", "cost", "seconds"),
)
VERDICTS = {"passed": "green", "warning": "yellow", "failed": "bold red", "n/a": "dim"}
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of a calibration


def standings_table(comparison: Comparison) -> Table:
    """The samplers of one comparison, the best first."""
    budget = "own settings" if comparison.budget is None else f"at {comparison.budget} a sample"
    cells = {heading: write for heading, write in columns(comparison, errors=False).items() if heading in SHOWN}
    table = Table(title=Text(f"{comparison.operator} · {budget}"), title_justify="left")
    table.add_column("sampler")
    for heading in cells:
        table.add_column(heading, justify="right")
    for standing in comparison.standings:
        if standing.images:
            words = [write(standing).replace("**", "") for write in cells.values()]
            table.add_row(Text(standing.label), *(Text(word) for word in words))
    return table


def calibration_table(found: Calibration, title: str) -> Table:
    """Coverage of pixels and of the whole image at some credible levels."""
    table = Table(title=title, title_justify="left")
    for heading in ("credible level", "pixels inside", "truths in ball (TARP)"):
        table.add_column(heading, justify="right")
    levels = found.levels.tolist()
    for level in LEVELS:
        k = min(range(len(levels)), key=lambda j: abs(levels[j] - level))
        low, high = found.tarp_band[:, k].tolist()
        inside = f"{float(found.coverage[k]):.2f} ± {float(found.coverage_error[k]):.2f}"
        table.add_row(f"{levels[k]:.2f}", inside, f"{float(found.tarp[k]):.2f} ({low:.2f} to {high:.2f})")
    return table


def scores_in_words(metrics: dict[str, Any], title: str) -> tuple[list[Table], list[str]]:
    """The scores of a reconstruction, image by image, as in `metrics.json`, and its cost in words."""
    columns = {
        "image": "name",
        "energy score": "energy",
        "CRPS": "crps",
        "spread / error": "spread_error",
        "PSNR of mean": "psnr_mean",
        "first guess": "baseline_psnr",
        "misfit": "misfit",
        "diverged": "diverged",
    }
    more = {
        "not aligned": "psnr_raw",
        "best by truth (oracle)": "psnr_best_oracle",
        "best by misfit": "psnr_best_misfit",
    }
    more = {heading: key for heading, key in more.items() if key in metrics["mean"]}
    second = [_scores(metrics, {"image": "name", **more}, "samples, PSNR in dB")] if more else []
    cost = metrics["cost"]
    of_codec = f"{cost['decodes']} decodings, {cost['decode_vjps']} VJPs of the decoder, " if "decodes" in cost else ""
    lines = [
        f"{cost['forwards']} network calls, {cost['vjps']} VJPs, {cost['operator_calls']} operator calls, {of_codec}"
        f"{cost['seconds']:.1f} s, {cost['peak_memory_mb']:.0f} MB",
        "energy score, CRPS: lower is better · spread / error: 1 is right · misfit: 1 fits to the noise",
        "PSNR in dB, of the posterior mean and of the first guess, which uses no prior",
        _on_proper(metrics),
        metrics["notes"].get("alignment", ""),
    ]
    return [_scores(metrics, columns, title), *second], [line for line in lines if line]


def verdict_in_words(findings: Sequence[Finding]) -> list[Text]:
    """A line for each finding: red where it is severe, else yellow."""
    return [Text(finding.words, "bold red" if finding.severe else "yellow") for finding in findings]


def _scores(metrics: dict[str, Any], columns: dict[str, str], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for row in metrics["images"]:
        table.add_row(*(Text(_cell(row[key], 4 if key in ("energy", "crps") else 2)) for key in columns.values()))
    return table


def _on_proper(metrics: dict[str, Any]) -> str:
    """The means over several images with their errors, and what is wrong with them."""
    mean, error, note = metrics["mean"]["energy"], metrics["standard_error"]["energy"], metrics["notes"].get("energy")
    parts = [] if mean is None or error is None else [f"energy score {mean:.4f} ± {error:.4f} over the images"]
    return "; ".join(parts + ([] if note is None else [f"energy score, CRPS, spread / error: {note}"]))


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"  # noqa: RUF001, an en dash marks an empty cell
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def verdict_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    """The outcome of every rule of a contract."""
    table = Table(title=Text(title), title_justify="left")
    for heading in ("rule", "result", "reason"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        result = "FAILED" if verdict.result == "failed" else verdict.result
        table.add_row(Text(verdict.rule), Text(result, VERDICTS[verdict.result]), Text(verdict.words))
    return table
