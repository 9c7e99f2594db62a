"""Super-resolution: downsampling.

Model   A x = downsampling by an integer factor. Exact adjoint, pseudo-inverse and decomposition.
Shapes  x (B, C, H, W) -> y (B, C, H / factor, W / factor), same unit; factor divides H and W.
Spec    `bicubic`: Keys' cubic (a = -1/2) stretched by the factor against aliasing, edges mirrored with the edge pixel
        repeated: MATLAB's imresize, as in DPS and DAPS. `average`: the mean of factor x factor blocks, as in DDRM, DDNM
        and PiGDM.
"""

import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import Variants
from ..core.separable import SeparableOperator, folded_matrix

KERNELS = ("bicubic", "average")


class SuperResolution(SeparableOperator):
    """Downsample by `factor` (2, 4, 8, ...) with `kernel` `bicubic` or `average`."""

    def __init__(self, *, factor: int = 4, kernel: str = "bicubic") -> None:
        super().__init__()
        if not isinstance(factor, int) or factor < 2:
            raise ValueError(f"super_resolution: factor must be an integer >= 2, got {factor}")
        if kernel not in KERNELS:
            raise ValueError(f"super_resolution: kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        self.factor, self.kernel = factor, kernel

    def matrix(self, length: int) -> Tensor:
        if length % self.factor:
            raise ValueError(f"super_resolution: factor={self.factor} must divide the image, got {length} pixels")
        measured = self.measured_length(length)
        # Centre of each measured pixel on the grid of image pixels.
        centre = (torch.arange(measured, dtype=torch.float64) + 0.5) * self.factor - 0.5
        reach = 2 * self.factor if self.kernel == "bicubic" else self.factor / 2
        first = (centre - reach).ceil().long()
        positions = first[:, None] + torch.arange(int(2 * reach) + 1)
        distance = (positions - centre[:, None]).abs() / self.factor
        taps = keys_cubic(distance) if self.kernel == "bicubic" else (distance < 0.5).double()
        return folded_matrix(taps / taps.sum(1, keepdim=True), positions, length, "symmetric")[None]

    def measured_length(self, length: int) -> int:
        return length // self.factor

    def image_length(self, measured: int) -> int:
        return measured * self.factor

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        fitting = tuple(n - n % self.factor for n in shape[-2:])
        if fitting == tuple(shape[-2:]):
            return None
        crop = f"; crop it to {describe_shape(fitting)}" if all(fitting) else ""
        size = describe_shape(shape[-2:])
        return f"super_resolution: factor={self.factor} must divide the image, got {size} pixels{crop}"

    @classmethod
    def example(cls) -> tuple["SuperResolution", tuple[int, ...]]:
        return cls(factor=2), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "average": (cls(factor=2, kernel="average"), (3, 6, 8)),
            "factor-4": (cls(factor=4), (1, 8, 12)),
            "factor-8-average": (cls(factor=8, kernel="average"), (1, 16, 8)),
        }


def keys_cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, at distances t >= 0."""
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t <= 1, near, torch.where(t <= 2, far, 0))
