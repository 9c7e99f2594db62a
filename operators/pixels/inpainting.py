"""Masking: only some pixels are measured.

Model   A x = mask * x. Exact adjoint, pseudo-inverse and decomposition (singular values 0 and 1).
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit, zero where nothing was measured; a pixel is kept or dropped in all
        its channels together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import SpectralOperator

AXES = ("rows", "columns")


class Inpainting(SpectralOperator):
    """Random pixels, a box, lines, text, or any mask.

    Give one of keep, box, lines, text and mask; two are refused, and without any keep = 0.3.

    keep   fraction of pixels kept, in (0, 1]; which ones is drawn from `seed`, an exact count
    box    the missing rectangle: (top, left, height, width) in pixels, or one number, the side of a square, in pixels
           or, below 1, as a fraction of the shorter side. The square is centred, or with `margin` drawn from `seed`, at
           least that many pixels from every edge
    lines  the lines kept: below 1 a fraction of them, drawn from `seed`, an exact count; n for every n-th, from the
           first on. They run along `axis`, `rows` or `columns`
    text   words written over the whole image, again and again; what ink touches is missing. The font is `text_height`
           of the shorter side high, at least 8 pixels
    mask   what is kept, non-zero means measured: a file (image, `.npy` or `.npz`) or a tensor; (H, W), or one per
           image, (B, H, W) or (B, 1, H, W)

    All images share what is drawn from `seed`; `Inpainting.random(shape, seed=..., images=B)` draws for every image.
    """

    pixel_mask = True
    per_image: ClassVar[tuple[str, ...]] = ("mask",)
    mask: Tensor | None

    def __init__(
        self,
        *,
        keep: float | None = None,
        box: float | tuple[int, int, int, int] | None = None,
        margin: int | None = None,
        lines: float | None = None,
        axis: str = "rows",
        text: str | None = None,
        text_height: float = 0.1,
        mask: str | Path | Tensor | np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options = {"keep": keep, "box": box, "lines": lines, "text": text, "mask": mask}
        given = [name for name, value in options.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"inpainting takes one of keep, box, lines, text and mask, got {' and '.join(given)}")
        if not given:
            keep = 0.3
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"inpainting: keep is the fraction of pixels kept, in (0, 1], got {keep}")
        if lines is not None and not (0 < lines < 1 or (lines >= 1 and lines == int(lines))):
            raise ValueError(f"inpainting: lines is a fraction below 1, or n for every n-th line, got {lines}")
        if axis not in AXES:
            raise ValueError(f"inpainting: axis must be one of {', '.join(AXES)}, got {axis!r}")
        if text is not None and not text.split():
            raise ValueError("inpainting: text has no letters")
        if not 0 < text_height <= 1:
            raise ValueError(f"inpainting: text_height is a fraction of the shorter side, in (0, 1], got {text_height}")
        self.keep, self.lines, self.axis, self.seed = keep, lines, axis, seed
        self.text, self.text_height = text, text_height
        self.box = box if box is None or isinstance(box, (int, float)) else _four(box)
        if margin is not None and (margin < 0 or not isinstance(self.box, (int, float))):
            raise ValueError(
                f"inpainting: margin, in pixels from 0 on, goes with box=SIDE, got margin={margin}, box={box}"
            )
        self.margin = margin
        if isinstance(mask, (str, Path)):
            mask = read_mask(Path(mask))
        if mask is not None:
            mask = torch.as_tensor(mask)
            if mask.dim() not in (2, 3, 4) or (mask.dim() == 4 and mask.shape[1] != 1):
                raise ValueError(
                    f"inpainting: a mask is (H, W), (B, H, W) or (B, 1, H, W), got {describe_shape(mask.shape)}; "
                    "a pixel is kept or dropped in all its channels together"
                )
            mask = mask.reshape(-1, 1, *mask.shape[-2:]) != 0
            if not mask.flatten(1).any(1).all():
                raise ValueError("inpainting: a mask keeps no pixel at all")
        self.register_buffer("mask", mask)
        self._drawn: dict[tuple, Tensor] = {}  # masks are a pure function of the size; drawn once for speed

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        *,
        keep: float | None = None,
        box: float | None = None,
        margin: int = 0,
        lines: float | None = None,
        axis: str = "rows",
        seed: int,
        images: int = 1,
    ) -> Self:
        """A different mask for each of `images` images of this (C, H, W): of pixels, boxes or lines, as in the class.

        keep   fraction of pixels kept
        box    side of a missing square, at random at least `margin` pixels from every edge
        lines  fraction of lines kept, below 1
        """
        if isinstance(box, Sequence) or (lines is not None and lines >= 1):
            raise ValueError(
                f"inpainting: box={box} and lines={lines} leave nothing to draw; give the side of a square box, or "
                "a fraction of lines below 1"
            )
        one = cls(keep=keep, box=box, margin=None if box is None else margin, lines=lines, axis=axis)
        generator = torch.Generator().manual_seed(seed)
        return cls(mask=torch.cat([one._draw(tuple(shape[-2:]), generator) for _ in range(images)]))

    def mask_of(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """What is kept of images of this (C, H, W): bool (1 or B, 1, H, W)."""
        size = tuple(shape[-2:])
        if self.mask is not None:
            own = tuple(self.mask.shape[-2:])
            if own != size:
                raise ValueError(
                    f"inpainting: the mask is {describe_shape(own)} pixels, the image {describe_shape(size)}"
                )
            return self.mask.to(device)
        key = (size, torch.device(device))
        if key not in self._drawn:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                self._drawn[key] = self._draw(size, torch.Generator().manual_seed(self.seed)).to(device)
        return self._drawn[key]

    def _draw(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.keep is not None:
            return random_mask(size, self.keep, generator)
        if self.lines is not None:
            return line_mask(size, self.lines, self.axis, generator)
        if self.text is not None:
            return text_mask(size, self.text, self.text_height)
        assert self.box is not None  # __init__ checked that there is one of them, and a mask is not drawn
        if not isinstance(self.box, (int, float)):
            return box_mask(size, self.box)
        return box_mask(size, square_box(size, self.box, self.margin, generator))

    def forward(self, x: Tensor) -> Tensor:
        # `where` and not a product: what was not measured may be NaN in y, and the adjoint is this same function.
        return torch.where(self.mask_of(tuple(x.shape[1:]), x.device), x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor:
        return self.mask_of(measurement_shape, "cpu" if self.mask is None else self.mask.device)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        try:
            self.mask_of(shape)
        except ValueError as error:
            return str(error)
        return None

    def singular_values(self, like: Tensor) -> Tensor:
        return self.mask_of(tuple(like.shape[1:]), like.device).to(like.dtype)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, z: Tensor) -> Tensor:
        return z

    def ut(self, y: Tensor) -> Tensor:
        return self(y)

    def u(self, z: Tensor) -> Tensor:
        return self(z)

    @classmethod
    def example(cls) -> tuple["Inpainting", tuple[int, ...]]:
        return cls(keep=0.4), (1, 16, 16)


def random_mask(size: tuple[int, ...], keep: float, generator: torch.Generator) -> Tensor:
    """bool (1, 1, H, W) with exactly round(keep * H * W) true pixels, at least one."""
    pixels = size[0] * size[1]
    mask = torch.zeros(pixels, dtype=torch.bool)
    mask[torch.randperm(pixels, generator=generator)[: max(1, round(keep * pixels))]] = True
    return mask.reshape(1, 1, *size)


def line_mask(size: tuple[int, ...], lines: float, axis: str, generator: torch.Generator) -> Tensor:
    """bool (1, 1, H, W): every n-th line along `axis`, or below 1 an exact fraction of them at random, at least one."""
    count = size[AXES.index(axis)]
    kept = torch.zeros(count, dtype=torch.bool)
    if lines < 1:
        kept[torch.randperm(count, generator=generator)[: max(1, round(lines * count))]] = True
    else:
        kept[:: int(lines)] = True
    return (kept[:, None] if axis == "rows" else kept).expand(1, 1, *size).clone()


def square_box(
    size: tuple[int, ...], side: float, margin: int | None, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A square as (top, left, height, width), centred or at random at least `margin` pixels from every edge."""
    pixels = round(side * min(size)) if 0 < side < 1 else int(side)
    if margin is None:
        return (size[0] - pixels) // 2, (size[1] - pixels) // 2, pixels, pixels
    room = [n - 2 * margin - pixels + 1 for n in size]
    if pixels < 1 or min(room) < 1:
        raise ValueError(
            f"inpainting: a box of {pixels}x{pixels} with margin={margin} does not fit an image of "
            f"{describe_shape(size)}"
        )
    top, left = (margin + int(torch.randint(n, (), generator=generator)) for n in room)
    return top, left, pixels, pixels


def box_mask(size: tuple[int, ...], box: tuple[int, int, int, int]) -> Tensor:
    """bool (1, 1, H, W), false in the box."""
    top, left, height, width = box
    if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"inpainting: box {box} does not fit an image of {describe_shape(size)}")
    mask = torch.ones(1, 1, *size, dtype=torch.bool)
    mask[..., top : top + height, left : left + width] = False
    if not mask.any():
        raise ValueError("inpainting: the box covers the whole image")
    return mask


def text_mask(size: tuple[int, ...], text: str, text_height: float) -> Tensor:
    """bool (1, 1, H, W), false where ink of the text touches, which is written line after line like running text."""
    pixels = max(8, round(text_height * min(size)))
    font = ImageFont.load_default(pixels)
    text = " ".join(text.split()) + " "
    length = font.getlength(text)
    page = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(page)
    for line, top in enumerate(range(0, size[0], round(1.25 * pixels))):
        begun = line * size[1] % length  # where the line above ended
        draw.text((-begun, top), text * int(size[1] / length + 2), fill=255, font=font)
    return torch.from_numpy(np.asarray(page) == 0)[None, None]


def read_mask(path: Path) -> Tensor:
    """A mask file as bool (H, W) or (B, H, W); non-zero means measured."""
    if not path.is_file():
        raise ValueError(f"inpainting: mask file not found: {path}")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if not arrays.files:
                    raise ValueError("it holds no array")
                array = arrays[arrays.files[0]]
        else:
            with Image.open(path) as image:
                array = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"inpainting: mask file cannot be read: {path}: {error}") from error
    return torch.from_numpy(array != 0)


def _four(box: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(box) != 4:
        raise ValueError(f"inpainting: box is one number or (top, left, height, width), got {tuple(box)}")
    top, left, height, width = (int(n) for n in box)
    return top, left, height, width
