"""Galleries of `report.html`: the pictures of one image by all samplers, embedded in the page."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from invdiff.benchmark.pictures import MAPS, SHARED, THUMBNAILS, drawn, file_name, read_map
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import Comparison, Rows, Standing
from invdiff.files import BadInput, opened_picture
from invdiff.report.plots import Look

MOST_BYTES = 16 * 2**20  # of pictures; a page must open at once, and go into a mail
OF_METHOD = ("sample", "mean", *MAPS)

Found = TypeVar("Found")


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


def in_order(members: Sequence[Comparison]) -> list[Standing]:
    """Every run of a task once, as the tables have them."""
    found: dict[str, Standing] = {}
    for comparison in members:
        for s in comparison.standings:
            if s.images:
                found.setdefault(s.run, s)
    return list(found.values())


class Galleries:
    """Fills the sections of a page with the pictures of a folder, image after image while there is room."""

    def __init__(self, store: Store, rows: Rows, look: Mapping[str, Look]) -> None:
        self.folder, self.rows, self.look = store.folder / THUMBNAILS, rows, look
        self.drawn = drawn(self.folder)

    def fill(self, sections: Sequence[tuple[list[Gallery], Sequence[Comparison]]]) -> int:
        """Add the galleries of every section; returns how many were left out."""
        size, left_out = 0, 0
        for i in sorted({image for _, image in self.drawn}):
            for galleries, members in sections:
                gallery = self._gallery(members, i) if size < MOST_BYTES else None
                if gallery is not None:
                    size += sum(len(p.uri) for p in _all(gallery))
                    galleries.append(gallery)
                elif size >= MOST_BYTES:
                    left_out += any((s.run, i) in self.drawn for s in in_order(members))
        return left_out

    def _gallery(self, members: Sequence[Comparison], i: int) -> Gallery | None:
        name, shared, found, maps = "", {}, [], []
        where = {s.run: c.budget or "own settings" for c in reversed(members) for s in c.standings}
        for s in in_order(members):
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
        # One scale for all samplers, for comparison. It is robust against a few bright pixels and one bad sampler.
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
    energy, psnr = samples[0]["energy"], samples[0]["psnr_mean"]
    words = [] if energy is None else [f"energy {energy:.4f}"]
    words += [] if psnr is None else [f"mean {psnr:.1f} dB"]
    if words:
        return ", ".join(words)
    return "diverged" if all(row["diverged_at"] is not None for row in samples) else ""


def _tried(read: Callable[[Path], Found], path: Path) -> Found | None:
    """None for a picture that is missing or damaged: the page does without it."""
    try:
        return read(path)
    except (OSError, BadInput):
        return None


def _embedded(path: Path) -> Picture:
    data = path.read_bytes()
    with opened_picture(path, data) as file:
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


def magma_css() -> str:
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in _magma()[::51].tolist())
