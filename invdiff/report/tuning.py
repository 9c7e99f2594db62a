"""A search as a picture (the score from trial to trial, and over each setting), as a table, and in words."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from invdiff.report.comparison import _plain
from invdiff.tuning.space import Parameter, Range
from invdiff.tuning.tune import SEARCHED, Tried, Tuning
from invdiff.tuning.validation import SCORES

# matplotlib is imported where something is drawn: it is slow to import.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 5  # of the best trials
MARGIN_LOG = 1.15  # beside the ends of a range, so that no dot is cut
_DATA, _FIRST, _STOPPED = "#3b6ea5", "#c8553d", "0.7"


def tuning_figure(tuning: Tuning) -> "Figure":
    """History, and a slice for each parameter: every dot a complete trial, those that were tried first marked.

    Trials that were stopped stand in the history alone, by the mean over the images that they came to.
    """
    from matplotlib.figure import Figure

    parameters, trials = tuning.search.parameters, tuning.trials()
    columns = min(3, len(parameters) + 1)
    rows = math.ceil((len(parameters) + 1) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    complete = [t for t in trials if t.complete()]
    window = _window([float(t.score or 0.0) for t in complete])
    _history(axes[0], trials, tuning.validation.higher_is_better)
    outside = sum(not window[0] <= (t.score or 0.0) <= window[1] for t in complete)
    if outside:
        axes[0].set_title(f"{outside} complete beyond the picture, see trials.csv", fontsize=8)
    for axis, parameter in zip(axes[1:], parameters, strict=False):
        _slice(axis, complete, parameter)
    for axis in axes[: len(parameters) + 1]:
        axis.set_ylim(*window)
        axis.set_ylabel(tuning.validation.score)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(parameters) + 1 :]:
        axis.axis("off")
    kind = type(tuning.search.sampler).__name__
    figure.suptitle(
        _plain(f"{kind} · {SCORES[tuning.validation.score]} on {len(tuning.validation.truth)} images"), fontsize=11
    )
    return figure


def _window(scores: list[float]) -> tuple[float, float]:
    """What is drawn of the score: a few trials far off must not flatten the rest."""
    import numpy as np

    finite = np.array([s for s in scores if math.isfinite(s)] or [0.0])
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    reach = 4 * max(high - low, 1e-3 * abs(middle), 1e-9)
    low, high = max(finite.min(), low - reach), min(finite.max(), high + reach)
    margin = 0.08 * max(high - low, reach / 40)
    return float(low - margin), float(high + margin)


def _history(axis: "Axes", trials: list[Tried], higher_is_better: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    better: Any = max if higher_is_better else min
    stopped = [t for t in trials if not t.complete() and t.score is not None]
    axis.plot(
        [t.number for t in stopped], [t.score or 0.0 for t in stopped], "o", mfc="none", mec=_STOPPED, label="stopped"
    )
    _dots(axis, [(t.number, t) for t in trials if t.complete()])
    best, path = None, []
    for t in trials:
        if t.complete() and t.score is not None:
            best = t.score if best is None else better(best, t.score)
        path.append(math.nan if best is None else best)
    axis.step([t.number for t in trials], path, where="post", color=_DATA, lw=1.2, label="best so far")
    axis.set_xlabel("trial")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=7, frameon=False, loc="best")


def _slice(axis: "Axes", complete: list[Tried], parameter: Parameter) -> None:
    known = [t for t in complete if parameter.name in t.values]
    if isinstance(parameter, Range):
        _dots(axis, [(float(t.values[parameter.name]), t) for t in known])
        if parameter.log:
            axis.set_xscale("log")
            axis.set_xlim(parameter.low / MARGIN_LOG, parameter.high * MARGIN_LOG)
        else:
            margin = 0.03 * (parameter.high - parameter.low)
            axis.set_xlim(parameter.low - margin, parameter.high + margin)
    else:
        words = [str(value) for value in parameter.values]
        _dots(axis, [(words.index(str(t.values[parameter.name])), t) for t in known])
        axis.set_xticks(range(len(words)), words)
        axis.set_xlim(-0.5, len(words) - 0.5)
    axis.set_xlabel(parameter.name)


def _dots(axis: "Axes", places: list[tuple[float, Tried]]) -> None:
    for first, colour, marker, label in ((False, _DATA, "o", "complete"), (True, _FIRST, "D", "tried first")):
        chosen = [(x, t.score or 0.0) for x, t in places if (t.origin != SEARCHED) == first]
        axis.plot([x for x, _ in chosen], [y for _, y in chosen], marker, color=colour, ms=4.5, label=label)


def found_in_words(tuning: Tuning, best: Tried) -> tuple[Table, list[str]]:
    """The best trials, and the known settings, as a table; the outcome of the search in words."""
    trials, validation = tuning.trials(), tuning.validation
    ranked = tuning.ranked()
    shown = ranked[:SHOWN] + [t for t in ranked[SHOWN:] if t.origin != SEARCHED]
    kind = type(tuning.search.sampler).__name__
    title = f"{kind} · {SCORES[validation.score]} on {len(validation.truth)} images"
    counts = {state: sum(t.state == state for t in trials) for state in dict.fromkeys(t.state for t in trials)}
    lines = [f"{len(trials)} trials: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
    importance = tuning.importance()
    if importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        lines.append(f"importance of the settings, over the complete trials: {shares}")
    given = next((t for t in trials if t.origin == "given"), None)
    if best.origin != SEARCHED:
        lines.append(f"no trial was better than the settings {best.origin!r}")
    elif given is not None and given.score is not None and given.complete():
        lines.append(f"best {best.score:.4g}, your settings {given.score:.4g}")
    return trials_table(shown, tuning.search.parameters, validation.score, title), lines


def trials_table(trials: Sequence[Tried], parameters: Sequence[Parameter], score: str, title: str) -> Table:
    """Trials of a search, with their settings as they are in the sampler: known ones may lie outside of the space."""
    table = Table(title=Text(title), title_justify="left")
    names = [parameter.name for parameter in parameters]
    short = [name.rpartition(".")[2] for name in names]
    for heading in ("trial", "from", score, "calls", *(short if len({*short}) == len(short) else names)):
        table.add_column(heading, justify="left" if heading == "from" else "right", no_wrap=heading == "from")
    for trial in trials:
        values = [_word(_setting(trial.sampler, name)) for name in names]
        table.add_row(*map(Text, (str(trial.number), trial.origin, f"{trial.score:.4g}", f"{trial.calls:g}", *values)))
    return table


def _setting(node: Any, name: str) -> Any:
    if node["_target_"].endswith(".from_file"):
        node = node["settings"]
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)
