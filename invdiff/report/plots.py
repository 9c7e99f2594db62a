"""Small plots for pages: where everything goes, in the units of an SVG's view box; a template draws it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from invdiff.benchmark.summary import Comparison, Estimate, Standing, front, rule_of
from invdiff.report.leaderboard import DIGITS
from invdiff.scores.of_images import COVERAGES, coverage_floor

WIDTH, HEIGHT = 330, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 42
COLOURS, SHAPES = 8, ("circle", "square", "triangle", "diamond", "cross")

_LETTER, _LINE = 7.3, 12.0  # width and height of a letter in the labels beside marks, about


@dataclass(frozen=True)
class Look:
    """How one sampler looks in all plots."""

    colour: int
    shape: str


@dataclass(frozen=True)
class Label:
    words: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Mark:
    """A point; `low` and `high` are the ends of its error bar, `hollow`: at a budget, `tip`: its description."""

    x: float
    y: float
    look: Look
    tip: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    on_front: bool = False
    label: Label | None = None


@dataclass(frozen=True)
class Line:
    """A polyline as an SVG takes its points; `kind` is its class."""

    points: str
    kind: str
    look: Look | None = None


@dataclass(frozen=True)
class Plot:
    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]
    lines: Sequence[Line] = ()
    notes: Sequence[Label] = ()
    width: int = WIDTH
    height: int = HEIGHT
    frame: tuple[float, float, float, float] = field(default=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Of every sampler of a page: the next colour and the next shape, none of the pairs twice for a long time."""
    return {
        label: Look(k % COLOURS, SHAPES[(k + k // COLOURS) % len(SHAPES)]) for k, label in enumerate(sorted({*labels}))
    }


def quality_against(
    comparisons: Sequence[Comparison], price: str, title: str, x_label: str, look: dict[str, Look]
) -> Plot | None:
    """The score that ranks the samplers of one task, with their own settings and at every budget, against a price.

    price  `cost` or `seconds`

    The steps in it are the front (`invdiff.benchmark.summary.front`). None where nothing has both. PSNR is beside that
    of the first guess.
    """
    rule = rule_of([s for comparison in comparisons for s in comparison.standings])
    # A run that is at a budget anyway stands in two comparisons.
    found: dict[str, tuple[Standing, str | None]] = {}
    for comparison in comparisons:
        for s in comparison.standings:
            if (getattr(s, price) or 0) > 0 and rule in s.scores:
                found.setdefault(s.run, (s, comparison.budget))
    if not found:
        return None
    prices = [float(getattr(s, price)) for s, _ in found.values()]
    scores = [s.scores[rule] for s, _ in found.values()]
    on_front = front([s for s, _ in found.values()], prices, rule)
    baseline = comparisons[0].baseline if rule == "psnr_mean" else None
    y_label, unit = ("PSNR of the mean (dB)", " dB") if rule == "psnr_mean" else ("energy score, lower is better", "")
    lows, highs = zip(*(_ends(score) for score in scores), strict=True)
    heights = [*lows, *highs, *([] if baseline is None else [baseline.mean])]
    x_of, x_ticks = _log_axis(min(prices), max(prices))
    y_of, y_ticks = _axis(min(heights), max(heights))

    marks = []
    for (s, budget), paid, score, best in zip(found.values(), prices, scores, on_front, strict=True):
        where = "own settings" if budget is None else f"at {budget} a sample"
        tip = f"{s.label}, {where}: {score.mean:.{DIGITS[rule]}f}{unit} for {paid:,.3g} {x_label.partition(',')[0]}"
        low, high = _ends(score)
        marks.append(
            Mark(
                x_of(paid),
                y_of(score.mean),
                look[s.label],
                tip + (", on the front" if best else ""),
                low=y_of(low) if high > low else None,
                high=y_of(high) if high > low else None,
                hollow=budget is not None,
                on_front=best,
            )
        )
    lines, notes = [Line(_stairs([m for m in marks if m.on_front]), "front")], []
    if baseline is not None:
        y = y_of(baseline.mean)
        lines.append(Line(f"{LEFT},{y:.1f} {WIDTH - RIGHT},{y:.1f}", "baseline"))
        notes.append(_beside_line("first guess, no prior", y, marks, _boxes(lines[0].points)))
    names = [s.label for s, _ in found.values()]
    taken = [*(_box(note) for note in notes), *(box for line in lines for box in _boxes(line.points))]
    return Plot(title, x_label, y_label, x_ticks, y_ticks, _labelled(marks, names, taken), lines, notes)


def calibration(comparison: Comparison, title: str, look: dict[str, Look]) -> Plot | None:
    """Coverage of the pixels' credible intervals against their level; None without coverages."""

    def x_of(level: float) -> float:
        return LEFT + level * (WIDTH - LEFT - RIGHT)

    def y_of(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    marks, lines = [], [Line(f"{x_of(0)},{y_of(0)} {x_of(1)},{y_of(1)}", "baseline")]
    samples = comparison.settings.get("num_samples", 1)
    floors = [(level, coverage_floor(samples, level)) for level in COVERAGES.values()]
    lines.append(Line(" ".join(f"{x_of(level):.1f},{y_of(floor):.1f}" for level, floor in floors), "baseline"))
    for s in comparison.standings:
        known = [(level, s.scores[name]) for name, level in COVERAGES.items() if name in s.scores]
        if not known:
            continue
        points = [(x_of(level), y_of(share.mean)) for level, share in known]
        lines.append(Line(" ".join(f"{x:.1f},{y:.1f}" for x, y in points), "curve", look[s.label]))
        for (x, y), (level, share) in zip(points, known, strict=True):
            low, high = _ends(share)
            bar = high > low
            tip = f"{s.label}: {level:.0%} intervals hold {share.mean:.0%} of the pixels, "
            tip += f"{coverage_floor(samples, level):.0%} if all {samples} samples lay on one side of the truth"
            marks.append(
                Mark(
                    x,
                    y,
                    look[s.label],
                    tip,
                    low=y_of(max(low, 0.0)) if bar else None,
                    high=y_of(min(high, 1.0)) if bar else None,
                )
            )
    if not marks:
        return None
    ticks = [(k / 4, f"{k * 25}%") for k in range(5)]
    notes = [
        Label("too wide", x_of(0) + 8, y_of(1) + 16, "start"),
        Label("too sure", x_of(1) - 6, y_of(0) - 8, "end"),
    ]
    return Plot(
        title,
        "what the interval promises",
        "pixels inside",
        [(x_of(t), word) for t, word in ticks],
        [(y_of(t), word) for t, word in ticks],
        marks,
        lines,
        notes,
    )


# -- axes --------------------------------------------------------------------------------------------------------------


def _ends(value: Estimate) -> tuple[float, float]:
    error = 0.0 if math.isnan(value.error) else value.error
    return value.mean - error, value.mean + error


def _axis(low: float, high: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """The upright axis: places of values, and ticks at round numbers; its span is 4 % of the values or more."""
    span = max(high - low, 0.04 * max(abs(low), abs(high)), 1e-6)
    low, high = low - 0.08 * span, high + 0.08 * span
    decade = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (0.2 * decade, 0.5 * decade, decade, 2 * decade, 5 * decade) if (high - low) / s <= 6)

    def place(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return place, [(place(t), f"{t:g}") for t in ticks]


def _log_axis(low: float, high: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """The level axis, logarithmic: the same for positive values, at least half a decade wide."""
    a, b = math.log10(low), math.log10(high)
    spare = max(0.06 * (b - a), 0.25 - (b - a) / 2, 0.05)
    a, b = a - spare, b + spare

    def place(value: float) -> float:
        return LEFT + (math.log10(value) - a) / (b - a) * (WIDTH - LEFT - RIGHT)

    ticks: list[float] = []
    for of_decade in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [
            m * 10.0**k
            for k in range(math.floor(a), math.ceil(b) + 1)
            for m in of_decade
            if a <= math.log10(m * 10.0**k) <= b
        ]
        if len(ticks) >= 3:
            break
    return place, [(place(t), _short(t)) for t in ticks[:: math.ceil(len(ticks) / 7)]]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"


def _stairs(marks: Sequence[Mark]) -> str:
    """Along the front, from the cheapest on: what can be had for a price, up to the next better one."""
    points: list[tuple[float, float]] = []
    for m in sorted(marks, key=lambda m: m.x):
        if points:
            points.append((m.x, points[-1][1]))
        points.append((m.x, m.y))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


# -- labels ------------------------------------------------------------------------------------------------------------

_Box = tuple[float, float, float, float]


def _labelled(marks: Sequence[Mark], names: Sequence[str], taken: Sequence[_Box]) -> list[Mark]:
    """Marks with a name beside them where there is room for one: those of the front first, no name over another."""
    occupied = [*taken, *((m.x - 5, m.y - 5, m.x + 5, m.y + 5) for m in marks)]
    found = list(marks)
    for k in sorted(range(len(marks)), key=lambda k: (marks[k].hollow, not marks[k].on_front)):
        m = marks[k]
        words = names[k] if len(names[k]) <= 22 else names[k][:21] + "…"
        for dx, dy, anchor in (
            (9, 4, "start"),
            (-9, 4, "end"),
            (0, -10, "middle"),
            (0, 18, "middle"),
            (8, -7, "start"),
            (-8, -7, "end"),
            (8, 15, "start"),
            (-8, 15, "end"),
        ):
            label = Label(words, m.x + dx, m.y + dy, anchor)
            box = _box(label)
            inside = box[0] >= LEFT + 2 and box[2] <= WIDTH - RIGHT - 2 and box[1] >= TOP and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in occupied):
                occupied.append(box)
                found[k] = replace(m, label=label)
                break
    return found


def _beside_line(words: str, y: float, marks: Sequence[Mark], taken: Sequence[_Box]) -> Label:
    """The name of a level line, where it is over the least of the marks, their error bars and what else is taken."""
    bars = [(m.x - 2, m.high, m.x + 2, m.low) for m in marks if m.low is not None and m.high is not None]
    occupied = [*taken, *bars, *((m.x - 6, m.y - 6, m.x + 6, m.y + 6) for m in marks)]
    heights = [h for h in (y - 4, y + 13) if h - _LINE >= TOP and h + 3 <= HEIGHT - BOTTOM]
    places = [
        Label(words, x, height, anchor)
        for x, anchor in (
            (WIDTH - RIGHT - 4, "end"),
            (LEFT + 6, "start"),
            ((LEFT + WIDTH - RIGHT) / 2, "middle"),
        )
        for height in heights
    ]
    return min(places, key=lambda place: sum(_overlap(_box(place), other) for other in occupied))


def _box(label: Label) -> _Box:
    width = _LETTER * len(label.words)
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return (left, label.y - _LINE + 2, left + width, label.y + 3)


def _boxes(points: str) -> list[_Box]:
    """Of the level and upright pieces of a polyline."""
    corners = [tuple(map(float, point.split(","))) for point in points.split()]
    return [
        (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in pairwise(corners)
    ]


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
