"""Inpainting: some pixels are measured.

Model   A x = mask * x. Exact adjoint, pseudo-inverse and decomposition (singular values 0 and 1).
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit, zero at unmeasured pixels; all channels of a pixel are kept or
        dropped together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import Drawn, SameShape, SpectralOperator, Variants
from .masks import Box, Lines, MaskRule, RandomPixels, Text, as_mask


class Inpainting(SameShape, SpectralOperator):
    """Random pixels, a box, lines, text, or any mask.

    Give at most one of keep, box, lines, text and mask; the default is keep = 0.3.

    keep   fraction of pixels kept, in (0, 1]: an exact count, drawn from `seed`
    box    the missing rectangle: (top, left, height, width) in pixels, or one number, the side of a square, in pixels
           or, below 1, as a fraction of the shorter side. The square is centred, or with `margin` drawn from `seed`, at
           least that many pixels from every edge
    lines  the lines kept: below 1 a fraction of them, an exact count drawn from `seed`; n for every n-th, from the
           first on. They run along `axis`, `rows` or `columns`
    text   words written over the whole image, repeatedly; pixels under ink are missing. The font is `text_height`
           of the shorter side high, at least 8 pixels
    mask   the pixels kept, non-zero means measured: a file (a picture, or an array of `invdiff.files`) or a tensor;
           (H, W), or one per image, (B, H, W) or (B, 1, H, W)

    All images share a mask drawn from `seed`; `Inpainting.random(shape, seed=..., images=B)` draws one per image.
    """

    masking: ClassVar[bool] = True
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
            raise ValueError(f"inpainting: give one of keep, box, lines, text and mask, got {' and '.join(given)}")
        if margin is not None and box is None:
            raise ValueError(f"inpainting: margin={margin} needs a square box=SIDE, got no box")
        self.rule: MaskRule | None = None
        if box is not None:
            self.rule = Box(box, margin)
        elif lines is not None:
            self.rule = Lines(lines, axis)
        elif text is not None:
            self.rule = Text(text, text_height)
        elif mask is None:
            self.rule = RandomPixels(0.3 if keep is None else keep)
        self.register_buffer("mask", None if mask is None else as_mask(mask))
        self.seed = seed
        self._drawn: dict[tuple, Tensor] = {}  # masks are a pure function of the size; drawn once for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        fixed = isinstance(self.rule, Text) or (isinstance(self.rule, Box) and self.rule.margin is None)
        if self.mask is not None or fixed or (isinstance(self.rule, Lines) and self.rule.lines >= 1):
            return {}
        return {"mask": Drawn("operator.mask=FILE", rule=("keep", "box", "margin", "lines"))}

    @property
    def keep(self) -> float | None:
        """Fraction of the pixels kept, where they are drawn at random."""
        return self.rule.keep if isinstance(self.rule, RandomPixels) else None

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
                "inpainting: random masks need the side of a square box or a fraction of lines below 1, got "
                f"box={box}, lines={lines}"
            )
        rule = cls(keep=keep, box=box, margin=None if box is None else margin, lines=lines, axis=axis).rule
        assert rule is not None  # no mask was given
        generator = torch.Generator().manual_seed(seed)
        return cls(mask=torch.cat([rule.draw(tuple(shape[-2:]), generator) for _ in range(images)]))

    def mask_of(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """The measured pixels of images of this (C, H, W): bool (1 or B, 1, H, W). Raises ValueError where none fit."""
        size = tuple(shape[-2:])
        if self.rule is None:
            assert self.mask is not None  # one of rule and mask
            own = tuple(self.mask.shape[-2:])
            if own != size:
                raise ValueError(
                    f"inpainting: the mask is {describe_shape(own)} pixels, the image {describe_shape(size)}"
                )
            return self.mask.to(device)
        key = (size, torch.device(device))
        if key not in self._drawn:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                self._drawn[key] = self.rule.draw(size, torch.Generator().manual_seed(self.seed)).to(device)
        return self._drawn[key]

    def forward(self, x: Tensor) -> Tensor:
        # `where` and not a product: unmeasured entries of y may be NaN, and the adjoint is this same function.
        return torch.where(self.mask_of(tuple(x.shape[1:]), x.device), x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor) -> Tensor:
        return self(y)

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor:
        return self.mask_of(measurement_shape, "cpu" if self.mask is None else self.mask.device)

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

    @classmethod
    def variants(cls) -> Variants:
        shape = (3, 8, 9)
        given = torch.arange(72).reshape(8, 9) % 5 < 2
        return {
            "example": cls.example(),
            "box": (cls(box=0.5), shape),
            "box-at-random": (cls(box=2, margin=1, seed=2), shape),
            "lines": (cls(lines=0.5, seed=2), shape),
            "every-third-column": (cls(lines=3, axis="columns"), shape),
            "text": (cls(text="l"), (1, 12, 10)),
            "mask": (cls(mask=given), shape),
            "mask-per-image": (cls.random(shape, keep=0.3, seed=1, images=3), shape),
            "lines-per-image": (cls.random(shape, lines=0.5, axis="columns", seed=1, images=4), shape),
        }
