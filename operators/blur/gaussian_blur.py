"""Gaussian blur.

Model   A x = k * x with a separable Gaussian kernel, any boundary rule. Exact adjoint, pseudo-inverse, decomposition.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit.
Spec    The posterior-sampling papers use std 3, 61 taps, reflection at the boundary; their kernel is cut at 4 std.
"""

import torch
from torch import Tensor

from ..core.base import Variants
from ..core.separable import BOUNDARIES, SeparableOperator, folded_matrix


class GaussianBlur(SeparableOperator):
    """Blur by a Gaussian.

    std          its standard deviation in pixels, a float or one per image, (B,)
    kernel_size  taps, odd; weights beyond `truncate` standard deviations are zero
    boundary     values outside the image: `reflect`, `symmetric`, `replicate`, `circular`, `zero`
    """

    per_image = ("std",)
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
        if boundary not in BOUNDARIES:
            raise ValueError(f"gaussian_blur: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        if not truncate >= 0:
            raise ValueError(f"gaussian_blur: truncate must be >= 0 standard deviations, got {truncate}")
        self.register_buffer("std", std)
        self.kernel_size, self.boundary, self.truncate = kernel_size, boundary, truncate

    def kernel(self) -> Tensor:
        """The kernel along one axis, float64 (1 or B, kernel_size), each row summing to one."""
        offsets = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        std = self.std.cpu().double()[:, None]
        radius = (self.truncate * std + 0.5).floor()
        weights = torch.where(offsets.abs() <= radius, torch.exp(-0.5 * (offsets / std) ** 2), 0)
        return weights / weights.sum(1, keepdim=True)

    def matrix(self, length: int) -> Tensor:
        offsets = torch.arange(self.kernel_size) - self.kernel_size // 2
        positions = torch.arange(length)[:, None] + offsets
        return torch.stack(
            [folded_matrix(taps.expand(length, -1), positions, length, self.boundary) for taps in self.kernel()]
        )

    def measured_length(self, length: int) -> int:
        return length

    def image_length(self, measured: int) -> int:
        return measured

    def first_guess(self, y: Tensor) -> Tensor:
        return y  # better than the pseudo-inverse, which amplifies noise

    @classmethod
    def example(cls) -> tuple["GaussianBlur", tuple[int, ...]]:
        return cls(std=1.0, kernel_size=9), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "std-per-image": (cls(std=torch.tensor([0.5, 0.8, 1.1]), kernel_size=7), (3, 7, 6)),
        } | {name: (cls(std=0.8, kernel_size=9, boundary=name), (1, 8, 9)) for name in BOUNDARIES}
