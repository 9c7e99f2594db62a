"""Gaussian blur.

Model   A x = k * x with a separable Gaussian kernel, any boundary rule. Exact adjoint, pseudo-inverse, decomposition.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit.
Spec    The posterior-sampling papers use std 3, 61 taps, reflection at the boundary; their kernel is cut at 4 std.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.base import Variants
from ..core.separable import BLUR_BOUNDARIES, BOUNDARIES, SeparableOperator, folded_matrix


class GaussianBlur(SeparableOperator):
    """Blur by a Gaussian.

    std          its standard deviation in pixels, a float or one per image, (B,)
    kernel_size  taps, odd; weights beyond `truncate` standard deviations are zero
    boundary     values outside the image: `reflect`, `symmetric`, `replicate`, `circular`, `zero`; `valid`: the image
                 goes on, larger than y by the reach of the kernel, as in `Blur`
    """

    per_image = ("std",)
    of_scenes: ClassVar[Mapping[str, Any]] = {"boundary": "valid"}
    std: Tensor

    def __init__(
        self,
        *,
        std: float | Tensor = 3.0,
        kernel_size: int = 61,
        boundary: str = "reflect",
        truncate: float = 4.0,
    ) -> None:
        super().__init__()
        std = torch.as_tensor(std, dtype=torch.float32).reshape(-1)
        if not (std > 0).all():
            raise ValueError(f"gaussian_blur: std must be > 0 pixels, got {std.min().item()}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"gaussian_blur: kernel_size must be an odd integer >= 1, got {kernel_size}")
        if boundary not in BLUR_BOUNDARIES:
            raise ValueError(f"gaussian_blur: boundary must be one of {', '.join(BLUR_BOUNDARIES)}, got {boundary!r}")
        if not truncate >= 0:
            raise ValueError(f"gaussian_blur: truncate must be >= 0 standard deviations, got {truncate}")
        self.register_buffer("std", std)
        self.kernel_size, self.boundary, self.truncate = kernel_size, boundary, truncate
        # Pixels of the image beyond each side of y: the reach of the widest kernel, also after `select`.
        reach = min(int(truncate * float(std.max()) + 0.5), kernel_size // 2)
        self.margin = reach if boundary == "valid" else 0

    def kernel(self) -> Tensor:
        """The kernel along one axis, float64 (1 or B, kernel_size), each row summing to one."""
        offsets = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        std = self.std.cpu().double()[:, None]
        radius = (self.truncate * std + 0.5).floor()
        weights = torch.where(offsets.abs() <= radius, torch.exp(-0.5 * (offsets / std) ** 2), 0)
        return weights / weights.sum(1, keepdim=True)

    def matrix(self, length: int) -> Tensor:
        measured = self.measured_length(length)
        if measured < 1:
            raise ValueError(self._too_small(length))
        offsets = torch.arange(self.kernel_size) - self.kernel_size // 2
        positions = torch.arange(measured)[:, None] + self.margin + offsets
        boundary = "zero" if self.boundary == "valid" else self.boundary  # nothing is outside: taps there are zero
        return torch.stack(
            [folded_matrix(taps.expand(measured, -1), positions, length, boundary) for taps in self.kernel()]
        )

    def measured_length(self, length: int) -> int:
        return length - 2 * self.margin

    def image_length(self, measured: int) -> int:
        return measured + 2 * self.margin

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return None if self.measured_length(min(shape[-2:])) >= 1 else self._too_small(min(shape[-2:]))

    def _too_small(self, length: int) -> str:
        least = 2 * self.margin + 1
        return f"gaussian_blur: boundary=valid requires images of {least} pixels or more, got {length}"

    def frame(self, x: Tensor) -> Tensor:
        m = self.margin
        return x[..., m : x.shape[-2] - m, m : x.shape[-1] - m]

    def first_guess(self, y: Tensor) -> Tensor:
        """y, which is better than the pseudo-inverse, for that amplifies noise; its edges go on in the margin."""
        return torch.nn.functional.pad(y, [self.margin] * 4, mode="replicate") if self.margin else y

    @classmethod
    def example(cls) -> tuple["GaussianBlur", tuple[int, ...]]:
        return cls(std=1.0, kernel_size=9), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "valid": (cls(std=torch.tensor([0.5, 0.8, 1.1]), kernel_size=9, boundary="valid"), (1, 11, 12)),
            "std-per-image": (cls(std=torch.tensor([0.5, 0.8, 1.1]), kernel_size=7), (3, 7, 6)),
        } | {name: (cls(std=0.8, kernel_size=9, boundary=name), (1, 8, 9)) for name in BOUNDARIES}
