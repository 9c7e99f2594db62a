"""Masking: only some pixels are measured.

Model   A x = mask * x. Exact adjoint, pseudo-inverse and decomposition (singular values 0 and 1).
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit, zero where nothing was measured; a pixel is kept or dropped in all
        its channels together.
"""

from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .base import SpectralOperator, describe_shape


class Inpainting(SpectralOperator):
    """Random pixels, a box, or any mask.

    Give one of these; without any, keep = 0.3.

    keep  fraction of pixels kept, in (0, 1]; which ones is drawn from `seed`, an exact count, the same for all images
    box   the missing rectangle: (top, left, height, width) in pixels, or one number, the side of a centred square, in
          pixels or, below 1, as a fraction of the shorter side
    mask  what is kept, non-zero means measured: a file (image, `.npy` or `.npz`) or a tensor; (H, W), or one per image,
          (B, H, W) or (B, 1, H, W)

    `Inpainting.random(shape, keep=..., seed=..., images=B)` draws another mask for every image.
    """

    per_image = ("mask",)
    mask: Tensor | None

    def __init__(
        self,
        *,
        keep: float | None = None,
        box: float | tuple[int, int, int, int] | None = None,
        mask: str | Path | Tensor | np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sum(option is not None for option in (keep, box, mask)) > 1:
            raise ValueError("inpainting takes one of keep, box and mask")
        if box is None and mask is None and keep is None:
            keep = 0.3
        if keep is not None:
            _check_fraction(keep)
        self.keep, self.seed = keep, seed
        self.box = box if box is None or isinstance(box, (int, float)) else _four(box)
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
    def random(cls, shape: tuple[int, ...], *, keep: float, seed: int, images: int = 1) -> Self:
        """A different random mask for each of `images` images of this (C, H, W)."""
        _check_fraction(keep)
        generator = torch.Generator().manual_seed(seed)
        return cls(mask=torch.cat([random_mask(shape[-2:], keep, generator) for _ in range(images)]))

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
                self._drawn[key] = self._draw(size).to(device)
        return self._drawn[key]

    def _draw(self, size: tuple[int, ...]) -> Tensor:
        if self.keep is not None:
            return random_mask(size, self.keep, torch.Generator().manual_seed(self.seed))
        assert self.box is not None  # __init__ checked that one of the three is given
        top, left, height, width = _centred(self.box, size) if isinstance(self.box, (int, float)) else self.box
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > size[0] or left + width > size[1]:
            raise ValueError(
                f"inpainting: box {(top, left, height, width)} does not fit an image of {describe_shape(size)}"
            )
        mask = torch.ones(1, 1, *size, dtype=torch.bool)
        mask[..., top : top + height, left : left + width] = False
        if not mask.any():
            raise ValueError("inpainting: the box covers the whole image")
        return mask

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

    def refuses(self, shape: tuple[int, ...]) -> str | None:
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


def _check_fraction(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"inpainting: keep is the fraction of pixels kept, in (0, 1], got {keep}")


def _centred(side: float, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    pixels = round(side * min(size)) if 0 < side < 1 else int(side)
    return (size[0] - pixels) // 2, (size[1] - pixels) // 2, pixels, pixels


def _four(box: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(box) != 4:
        raise ValueError(f"inpainting: box is one number or (top, left, height, width), got {tuple(box)}")
    top, left, height, width = (int(n) for n in box)
    return top, left, height, width
