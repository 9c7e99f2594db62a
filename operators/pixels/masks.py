"""Masks of inpainting: which pixels are measured, drawn by a rule or read from a file.

A rule draws a mask, bool (1, 1, H, W), True where a pixel is kept, for an image of any size; its `draw` raises
ValueError where it does not fit that size. Equal sizes and states of the generator give equal masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invdiff.files import as_measured, mask_values
from invdiff.shapes import describe_shape

AXES = ("rows", "columns")

Size = tuple[int, ...]


class MaskRule(Protocol):
    def draw(self, size: Size, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class RandomPixels:
    """An exact count of pixels at random: round(keep * H * W), at least one."""

    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"inpainting: keep must be a fraction of pixels in (0, 1], got {self.keep}")

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        return _some(size[0] * size[1], self.keep, generator).reshape(1, 1, *size)


@dataclass(frozen=True)
class Lines:
    """Every n-th line along `axis` from the first on, or below 1 an exact fraction of the lines at random."""

    lines: float
    axis: str

    def __post_init__(self) -> None:
        if not (0 < self.lines < 1 or (self.lines >= 1 and self.lines == int(self.lines))):
            raise ValueError(
                f"inpainting: lines must be a fraction in (0, 1) or an integer n for every n-th line, got {self.lines}"
            )
        if self.axis not in AXES:
            raise ValueError(f"inpainting: axis must be one of {', '.join(AXES)}, got {self.axis!r}")

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        count = size[AXES.index(self.axis)]
        kept = _some(count, self.lines, generator) if self.lines < 1 else torch.arange(count) % int(self.lines) == 0
        return (kept[:, None] if self.axis == "rows" else kept).expand(1, 1, *size).clone()


@dataclass(frozen=True)
class Box:
    """All pixels but those of a rectangle (top, left, height, width).

    box     the rectangle, or the side of a square, in pixels or below 1 as a fraction of the shorter side of the image
    margin  None: the square is centred; otherwise at random, at least this many pixels from every edge
    """

    box: float | Sequence[int]
    margin: int | None = None

    def __post_init__(self) -> None:
        square = isinstance(self.box, (int, float))
        if not square and len(self.box) != 4:  # type: ignore[arg-type]  # a sequence
            raise ValueError(
                f"inpainting: box must be one number or (top, left, height, width), got {tuple(self.box)}"  # type: ignore[arg-type]
            )
        if self.margin is not None and (self.margin < 0 or not square):
            raise ValueError(
                f"inpainting: margin must be an integer >= 0 of pixels around a square box=SIDE, got "
                f"margin={self.margin}, box={self.box}"
            )

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        top, left, height, width = self._rectangle(size, generator)
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
            box = (top, left, height, width)
            raise ValueError(f"inpainting: box {box} does not fit an image of {describe_shape(size)}")
        mask = torch.ones(1, 1, *size, dtype=torch.bool)
        mask[..., top : top + height, left : left + width] = False
        if not mask.any():
            raise ValueError("inpainting: the box covers the whole image")
        return mask

    def _rectangle(self, size: Size, generator: torch.Generator) -> tuple[int, ...]:
        if not isinstance(self.box, (int, float)):
            return tuple(int(n) for n in self.box)
        side = round(self.box * min(size)) if 0 < self.box < 1 else int(self.box)
        if self.margin is None:
            return (size[0] - side) // 2, (size[1] - side) // 2, side, side
        room = [n - 2 * self.margin - side + 1 for n in size]
        if side < 1 or min(room) < 1:
            raise ValueError(
                f"inpainting: a box of {side}x{side} with margin={self.margin} does not fit an image of "
                f"{describe_shape(size)}"
            )
        top, left = (self.margin + int(torch.randint(n, (), generator=generator)) for n in room)
        return top, left, side, side


@dataclass(frozen=True)
class Text:
    """All pixels but those under words that fill the image, line after line like running text.

    height  of the font, as a fraction of the shorter side of the image; at least 8 pixels
    """

    text: str
    height: float

    def __post_init__(self) -> None:
        if not self.text.split():
            raise ValueError("inpainting: text must contain a letter")
        if not 0 < self.height <= 1:
            raise ValueError(
                f"inpainting: text_height must be a fraction of the shorter side in (0, 1], got {self.height}"
            )

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        pixels = max(8, round(self.height * min(size)))
        font = ImageFont.load_default(pixels)
        text = " ".join(self.text.split()) + " "
        length = font.getlength(text)
        page = Image.new("L", (size[1], size[0]))
        draw = ImageDraw.Draw(page)
        for line, top in enumerate(range(0, size[0], round(1.25 * pixels))):
            begun = line * size[1] % length  # where the line above ended
            draw.text((-begun, top), text * int(size[1] / length + 2), fill=255, font=font)
        return torch.from_numpy(np.asarray(page) == 0)[None, None]


def _some(count: int, fraction: float, generator: torch.Generator) -> Tensor:
    """bool (count,): an exact fraction at random, at least one."""
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=generator)[: max(1, round(fraction * count))]] = True
    return kept


def as_mask(mask: str | Path | Tensor | np.ndarray) -> Tensor:
    """bool (1 or B, 1, H, W) from a file or an array, (H, W), (B, H, W) or (B, 1, H, W); see `as_measured`."""
    array = mask_values(mask, "inpainting: mask")
    if array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise ValueError(
            f"inpainting: mask must be (H, W), (B, H, W) or (B, 1, H, W), got {describe_shape(array.shape)}; all "
            "channels of a pixel are kept or dropped together"
        )
    kept = torch.from_numpy(as_measured(array, "inpainting: mask")).reshape(-1, 1, *array.shape[-2:])
    if not kept.flatten(1).any(1).all():
        raise ValueError("inpainting: mask must keep at least one pixel of each image")
    return kept
