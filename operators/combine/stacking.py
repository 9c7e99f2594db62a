"""Several measurements of one image, by different instruments or with different settings.

Model   A x = (A_1 x, ..., A_n x); linear where every part is, differentiable where every part is.
Shapes  x (B, C, H, W) -> y (B, M): the parts' measurements, flattened and concatenated; `split` is the inverse.
        Where all parts are complex, y is complex; where only some are, their entries become pairs (real, imaginary).
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from invdiff.shapes import describe_shape

from ..camera.hdr import HDR
from ..core.base import LinearOperator, Operator, Variants, as_image_shape, kind_of_measurement, shape_mismatch
from ..core.parts import OperatorOfParts
from ..mri.mri import MRI
from ..noise.base import Noise
from ..pixels.inpainting import Inpainting
from ..pixels.super_resolution import SuperResolution


class Stacking(OperatorOfParts):
    """Several operators on the same image; `stack` returns the linear class where every part is linear.

    parts        the operators
    image_shape  (C, H, W) of the image, which determines the sizes of the measurements
    """

    def __init__(self, parts: Sequence[Operator], *, image_shape: Sequence[int]) -> None:
        super().__init__(parts)
        self._image_shape = as_image_shape("stacking", image_shape)
        reason = self.mismatch(self._image_shape)
        if reason is not None:
            raise ValueError(reason)
        kinds = [kind_of_measurement(part, self._image_shape) for part in self.operators]
        self.shapes, self.complex = [shape for shape, _ in kinds], [is_complex for _, is_complex in kinds]
        self.complex_measurement = all(self.complex)

    @property
    def ambiguous(self) -> bool:
        """Where one part tells the images apart, all do."""
        return all(part.ambiguous for part in self.operators)

    @property
    def in_pairs(self) -> bool:
        """Whether complex entries are stacked as pairs of reals."""
        return any(self.complex) and not all(self.complex)

    @property
    def sizes(self) -> list[int]:
        """Number of entries of y for each part."""
        pairs = self.in_pairs
        return [
            torch.Size(shape).numel() * (2 if pairs and is_complex else 1)
            for shape, is_complex in zip(self.shapes, self.complex, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self._stack([part(x) for part in self.operators])

    def surrogate(self, x: Tensor) -> Tensor:
        return self._stack([part.surrogate(x) for part in self.operators])

    def _stack(self, measurements: list[Tensor]) -> Tensor:
        if self.in_pairs:
            measurements = [torch.view_as_real(y) if y.is_complex() else y for y in measurements]
        return torch.cat([y.flatten(1) for y in measurements], dim=1)

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements of the parts, each (B, ...), from a stacked one, (B, M)."""
        found = []
        for piece, shape, is_complex in zip(y.split(self.sizes, dim=1), self.shapes, self.complex, strict=True):
            if self.in_pairs and is_complex:
                piece = torch.view_as_complex(piece.unflatten(1, (-1, 2)).contiguous())
            found.append(piece.unflatten(1, shape))
        return found

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor | None:
        masks = [part.measured(shape) for part, shape in zip(self.operators, self.shapes, strict=True)]
        if all(mask is None for mask in masks):
            return None
        rows = max(mask.shape[0] for mask in masks if mask is not None)
        device = next(mask.device for mask in masks if mask is not None)
        full = []
        for mask, shape, is_complex in zip(masks, self.shapes, self.complex, strict=True):
            mask = torch.ones((), dtype=torch.bool, device=device) if mask is None else mask
            flat = mask.expand(rows, *shape).flatten(1)
            full.append(flat.repeat_interleave(2, dim=1) if self.in_pairs and is_complex else flat)
        return torch.cat(full, dim=1)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (sum(self.sizes),)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        reasons = (part.mismatch(shape) for part in self.operators)
        return shape_mismatch("stacking", self._image_shape, shape) or next(filter(None, reasons), None)

    @classmethod
    def example(cls) -> tuple["Stacking", tuple[int, ...]]:
        return cls([HDR(), SuperResolution(factor=2)], image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example()}


class LinearStacking(Stacking, LinearOperator):
    """Linear operators on the same image; the adjoint is the sum of their adjoints."""

    def adjoint(self, y: Tensor) -> Tensor:
        images = []
        for part, piece in zip(self.operators, self.split(y), strict=True):
            assert isinstance(part, LinearOperator)
            images.append(part.adjoint(piece))
        return torch.stack(images).sum(0)

    @classmethod
    def example(cls) -> tuple["LinearStacking", tuple[int, ...]]:
        return cls([Inpainting(keep=0.5), SuperResolution(factor=2)], image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        shape = (1, 6, 8)
        some, kspace = Inpainting.random(shape, keep=0.4, seed=1, images=3), MRI(acceleration=2, center_fraction=0.3)
        return {
            "example": cls.example(),
            "pairs-per-image": (cls([some, kspace], image_shape=shape), shape),
            "complex": (cls([kspace, MRI(acceleration=3, seed=1)], image_shape=shape), shape),
        }


def stack(parts: Sequence[Operator], *, image_shape: Sequence[int]) -> Stacking:
    """Several operators on the same image; a `LinearOperator` where all of them are."""
    linear = len(parts) > 0 and all(isinstance(part, LinearOperator) for part in parts)
    return (LinearStacking if linear else Stacking)(parts, image_shape=image_shape)


class StackedNoise(Noise):
    """A noise model for each part of a stacked measurement.

    parts  one per part; where complex entries are stacked as pairs of reals, levels are those of a real entry
    sizes  number of entries of each part: `Stacking.sizes`
    """

    def __init__(self, parts: Sequence[Noise], sizes: Sequence[int]) -> None:
        super().__init__()
        if len(parts) != len(sizes) or not parts:
            raise ValueError(
                f"stacked noise: parts and sizes must be as many, at least one, got {len(parts)} and {len(sizes)}"
            )
        self.parts = nn.ModuleList(parts)
        self.sizes = [int(n) for n in sizes]

    @property
    def noises(self) -> list[Noise]:
        return list(self.parts)  # type: ignore[arg-type]  # a ModuleList is typed as one of modules

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        pieces = zip(self.noises, clean.split(self.sizes), strict=True)
        return torch.cat([noise.draw(piece, generator) for noise, piece in pieces])

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        pieces = zip(self.noises, y.split(self.sizes, 1), clean.split(self.sizes, 1), strict=True)
        return torch.cat([noise.entry_nll(a, b) for noise, a, b in pieces], dim=1)

    def variance(self, clean: Tensor) -> Tensor:
        pieces = zip(self.noises, clean.split(self.sizes, 1), strict=True)
        return torch.cat([noise.variance(piece).expand(piece.shape) for noise, piece in pieces], dim=1)

    def entry_misfit(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        pieces = zip(self.noises, y.split(self.sizes, 1), clean.split(self.sizes, 1), strict=True)
        found, expected = zip(*(noise.entry_misfit(a, b) for noise, a, b in pieces), strict=True)
        return torch.cat(found, dim=1), torch.cat(expected, dim=1)

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        if y.dim() != 2 or y.shape[1] != sum(self.sizes):
            return f"stacked noise: y must have {sum(self.sizes)} entries, got {describe_shape(y.shape[1:])}"
        masks = [None] * len(self.sizes) if observed is None else observed.split(self.sizes, 1)
        pieces = zip(self.noises, y.split(self.sizes, 1), masks, strict=True)
        return next((reason for noise, a, b in pieces if (reason := noise.mismatch(a, b)) is not None), None)

    @property
    def images(self) -> int:
        return max(noise.images for noise in self.noises)

    def select(self, index: Tensor) -> Self:
        if self.images == 1:
            return self
        return type(self)([noise.select(index) for noise in self.noises], self.sizes)
