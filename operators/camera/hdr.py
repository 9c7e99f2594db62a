"""High dynamic range: contrast beyond the range of the display, with clipped shadows and highlights.

Model   A x = clip(pivot + factor (x - pivot), 0, 1), for each value. The gradient of clipped values is zero: only the
        prior determines them.
Shapes  x (B, C, H, W), display values in [0, 1] -> y (B, C, H, W), display values in [0, 1].
Spec    "High dynamic range" of DAPS and RED-diff, clip(2x, -1, 1) of images in [-1, 1]: that is factor 2 about
        mid-grey, pivot 0.5, of images in [0, 1]; their noise level 0.05 in [-1, 1] is sigma 0.025 here. Noise comes
        after clipping, so that the Gaussian likelihood is exact.
"""

import math

import torch
from torch import Tensor

from invdiff.shapes import describe_shape, per_row

from ..core.base import SameShape, Variants


class HDR(SameShape):
    """Contrast about `pivot`, then clipping to [0, 1].

    factor  gain of the contrast, a number or one per image, (B,); > 1 clips values
    pivot   the fixed value: 0.5 clips shadows and highlights alike, 0 is a longer exposure, which clips highlights only
    """

    per_image = ("factor",)
    factor: Tensor

    def __init__(self, *, factor: float | Tensor = 2.0, pivot: float = 0.5) -> None:
        super().__init__()
        value = torch.as_tensor(factor, dtype=torch.float32)
        if value.dim() > 1:
            raise ValueError(
                f"hdr: factor must be a number or one per image, (B,), got shape {describe_shape(value.shape)}"
            )
        if not (value.isfinite().all() and (value > 0).all()):
            raise ValueError(f"hdr: factor must be > 0, got {factor}")
        if not math.isfinite(pivot):
            raise ValueError(f"hdr: pivot must be a finite display value, 0 (black) to 1 (white), got {pivot}")
        self.register_buffer("factor", value.reshape(-1))
        self.pivot = float(pivot)

    def forward(self, x: Tensor) -> Tensor:
        return (self.pivot + per_row(self.factor, x) * (x - self.pivot)).clamp(0, 1)

    def first_guess(self, y: Tensor) -> Tensor:
        """The inverse of the contrast; clipped values are those at which clipping starts."""
        return self.pivot + (y.clamp(0, 1) - self.pivot) / per_row(self.factor, y)

    @classmethod
    def example(cls) -> tuple["HDR", tuple[int, ...]]:
        return cls(), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "exposure": (cls(factor=1.5, pivot=0.0), (3, 7, 6)),
            "per-image": (cls(factor=torch.tensor([1.0, 1.5, 3.0])), (1, 8, 9)),
        }
