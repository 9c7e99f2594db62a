"""`report.html`: a benchmark on one page that needs nothing else, no server and no network.

Tables as in `leaderboard.md`, plots of quality against cost and of calibration, pictures, and how to compute every row
again. Whatever a user can name is escaped by the template.
"""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf
from PIL import Image

from invdiff.benchmark.pictures import MAPS, SHARED, THUMBNAILS, drawn, file_name, read_map
from invdiff.benchmark.recipe import line
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import ORIGIN, Comparison, Rows, Standing
from invdiff.report.leaderboard import DISTANCES, LEGEND, OF_DISTANCES, OF_SETS, columns, described, estimate
from invdiff.report.plots import Look, Plot, calibration, looks, quality_against
from invdiff.scores.metrics import mean_of

MOST_BYTES = 16 * 2**20  # of pictures; a page must open at once, and go into a mail
CALLS = "network calls of a sample, VJPs included"
OF_METHOD = ("sample", "mean", *MAPS)
HEADINGS = {
    "truth": "truth",
    "measurement": "measurement",
    "guess": "first guess",
    "sample": "sample",
    "mean": "mean",
    "std": "std",
    "error": "error",
}

Found = TypeVar("Found")


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
    rows: Sequence[Row]
    baseline: Sequence[str] | None
    reasons: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass
class Column:
    """A sampler in a gallery: its pictures by kind, and how well it did on this image."""

    label: str
    where: str
    scores: str
    look: Look
    pictures: dict[str, Picture] = field(default_factory=dict)


@dataclass
class Gallery:
    """One image of a task; `top`: the value of the brightest colour in its maps, in units of the value range."""

    name: str
    shared: dict[str, Picture]
    columns: list[Column]
    top: str

    def has(self, what: str) -> bool:
        return any(what in column.pictures for column in self.columns)


@dataclass(frozen=True)
class Again:
    """How to compute a row again."""

    run: str
    title: str
    command: str | None
    config: str
    whole: bool
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
    records = store.all_records()
    standings = [s for comparison in comparisons for s in comparison.standings]
    look = looks([s.label for s in standings])
    by_task: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_task.setdefault(comparison.task, []).append(comparison)
    sections = [_section(members, rows, records, look) for members in by_task.values()]
    galleries = _Galleries(store, rows, look)
    left_out = galleries.fill(list(zip(sections, by_task.values(), strict=True)))
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
        magma=_magma_css() if any(s.galleries for s in sections) else "",
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
        ("prior", several([s["prior"].get("name") or s["prior"].get("_target_") for s in settings])),
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


def _section(
    members: Sequence[Comparison], rows: Rows, records: Mapping[str, Any], look: Mapping[str, Look]
) -> Section:
    first, looks_here = members[0], dict(look)
    again = {
        s.run: _again(s, comparison, records[s.run], rows.get(s.run, {}))
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
        again=[again[s.run] for s in _in_order(members)],
    )


def _in_order(members: Sequence[Comparison]) -> list[Standing]:
    """Every run of a task once, as the tables have them."""
    found: dict[str, Standing] = {}
    for comparison in members:
        for s in comparison.standings:
            if s.images:
                found.setdefault(s.run, s)
    return list(found.values())


def _where(comparison: Comparison) -> str:
    return "own settings" if comparison.budget is None else f"at {comparison.budget} a sample"


def _table(comparison: Comparison, look: Mapping[str, Look], again: Mapping[str, Again]) -> Table:
    cells = columns(comparison)
    baseline = None
    if comparison.baseline is not None:
        baseline = [estimate(comparison.baseline, 2) if heading == "PSNR" else "" for heading in cells]
    return Table(
        title="Own settings" if comparison.budget is None else f"At {comparison.budget} a sample",
        headings=list(cells),
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
    standing: Standing,
    comparison: Comparison,
    record: Mapping[str, Any],
    images: Mapping[int, Sequence[Mapping[str, Any]]],
) -> Again:
    recipe = record.get("again")
    last = max((row for rows in images.values() for row in rows), key=lambda row: row["created"])
    origin = ", ".join(f"{name} {last[name]}" for name in ORIGIN if last[name] is not None)
    if recipe is None:
        config, command = json.dumps(record["settings"], indent=1), None
    else:
        config = OmegaConf.to_yaml(OmegaConf.create(recipe["config"] | {"images": standing.images}))
        words = recipe["command"]
        command = None if words is None else line([*words, f"images={standing.images}"])
    return Again(
        run=standing.run,
        title=f"{comparison.operator} · {standing.label} · {_where(comparison)}",
        command=command,
        config=config,
        whole=recipe is not None,
        origin=origin,
    )


# -- pictures ----------------------------------------------------------------------------------------------------------


class _Galleries:
    """Puts the pictures of a folder into the sections of a page, image after image while there is room."""

    def __init__(self, store: Store, rows: Rows, look: Mapping[str, Look]) -> None:
        self.folder, self.rows, self.look = store.folder / THUMBNAILS, rows, look
        self.drawn = drawn(self.folder)

    def fill(self, sections: Sequence[tuple[Section, Sequence[Comparison]]]) -> int:
        """How many galleries were left out."""
        size, left_out = 0, 0
        for i in sorted({image for _, image in self.drawn}):
            for section, members in sections:
                gallery = self._gallery(members, i) if size < MOST_BYTES else None
                if gallery is not None:
                    size += sum(len(p.uri) for p in _all(gallery))
                    section.galleries.append(gallery)
                elif size >= MOST_BYTES:
                    left_out += any((s.run, i) in self.drawn for s in _in_order(members))
        return left_out

    def _gallery(self, members: Sequence[Comparison], i: int) -> Gallery | None:
        name, shared, found, maps = "", {}, [], []
        where = {s.run: c.budget or "own settings" for c in reversed(members) for s in c.standings}
        for s in _in_order(members):
            if (s.run, i) not in self.drawn or i not in self.rows.get(s.run, {}):
                continue
            of_image = self.rows[s.run][i]
            name = name or str(of_image[0]["name"] or f"image {i}")
            for what in SHARED:
                if what not in shared:
                    picture = _tried(_embedded, self._path(s.run, i, what))
                    if picture is not None:
                        shared[what] = picture
            column = Column(s.label, where[s.run], _scored(of_image), self.look[s.label])
            for what in OF_METHOD:
                path = self._path(s.run, i, what)
                if what in MAPS:
                    values = _tried(read_map, path)
                    if values is not None:
                        maps.append((column, what, values))
                else:
                    picture = _tried(_embedded, path)
                    if picture is not None:
                        column.pictures[what] = picture
            found.append(column)
        if "guess" in shared and shared["guess"] == shared.get("measurement"):
            del shared["guess"]
        if not shared and not any(column.pictures for column in found):
            return None
        # One scale for all samplers, so that they can be compared; neither a few pixels nor one that went astray may
        # darken all the others.
        tops = [float(np.quantile(values, 0.995)) for _, _, values in maps]
        top = max(1e-6, min(max(tops), 3 * float(np.median(tops)))) if tops else 1.0
        for column, what, values in maps:
            column.pictures[what] = _coloured(values / top)
        return Gallery(name, shared, found, f"{top:.2g}" if maps else "")

    def _path(self, run: str, image: int, what: str) -> Path:
        return self.folder / file_name(run, image, what)


def _all(gallery: Gallery) -> Iterator[Picture]:
    yield from gallery.shared.values()
    for column in gallery.columns:
        yield from column.pictures.values()


def _scored(samples: Sequence[Mapping[str, Any]]) -> str:
    psnr = mean_of([row["psnr"] for row in samples])
    if psnr is not None:
        return f"{psnr:.1f} dB"
    return "diverged" if all(row["diverged_at"] is not None for row in samples) else ""


def _tried(read: Callable[[Path], Found], path: Path) -> Found | None:
    """Nothing for what is not there, or was damaged: it is a picture less, and no reason to have no page."""
    try:
        return read(path)
    except (OSError, SyntaxError):  # Pillow's words for what is no image, or a broken one
        return None


def _embedded(path: Path) -> Picture:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as file:
        file.load()
        return _data_uri(data, file.size)


def _coloured(shares: np.ndarray) -> Picture:
    """A map (H, W), 1 the brightest colour, in false colours: a byte a pixel and the palette."""
    image = Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8), mode="P")
    image.putpalette(_magma().tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return _data_uri(data.getvalue(), image.size)


def _data_uri(data: bytes, size: tuple[int, int]) -> Picture:
    return Picture("data:image/png;base64," + base64.b64encode(data).decode(), *size)


def _magma() -> np.ndarray:
    from matplotlib import colormaps  # slow to import

    colours: np.ndarray = (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return colours


def _magma_css() -> str:
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in _magma()[::51].tolist())
