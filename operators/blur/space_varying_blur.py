"""Space-varying blur, such as that of a lens that is sharp only in its centre.

Model   A x = sum_k h_k * (w_k x), with smooth maps w_k and kernels h_k (the product-convolution expansion, as in
        deepinv's `SpaceVaryingBlur`). Where the maps sum to one, the point spread function of a pixel is the mean of
        the kernels with its weights. Exact adjoint.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit where kernels and maps sum to one; equal for all channels.
"""

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, SameShape, Variants
from ..core.separable import BOUNDARIES
from .blur import convolve, convolve_adjoint


class SpaceVaryingBlur(SameShape, LinearOperator):
    """A lens out of focus towards its corners, or any kernels with any maps.

    std_center   standard deviation of the Gaussian in the centre of the image, pixels, a float or one per image, (B,)
    std_corner   standard deviation in the corners; it grows linearly with the distance from the centre
    kernels      number of kernels from centre to corner, which the maps interpolate
    kernel_size  taps, odd
    boundary     values outside the image: `reflect`, `symmetric`, `replicate`, `circular`, `zero`

    Or, instead of the lens, arrays:

    filters      kernels h_k, (K, h, w) or per image (B, K, h, w), or deepinv's (B, 1, K, h, w)
    multipliers  maps w_k of the size of the image, (K, H, W), (B, K, H, W) or (B, 1, K, H, W)
    """

    per_image = ("filters", "multipliers")
    filters: Tensor
    multipliers: Tensor | None

    def __init__(
        self,
        *,
        std_center: float | Tensor = 0.5,
        std_corner: float | Tensor = 4.0,
        kernels: int = 4,
        kernel_size: int = 25,
        boundary: str = "reflect",
        filters: Tensor | np.ndarray | None = None,
        multipliers: Tensor | np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if boundary not in BOUNDARIES:
            raise ValueError(f"space_varying_blur: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        if (filters is None) != (multipliers is None):
            raise ValueError("space_varying_blur: filters and multipliers must be given together, got one of them")
        maps = None
        if filters is None or multipliers is None:
            chosen = lens(std_center, std_corner, kernels, kernel_size)
        else:
            chosen, maps = _stack("filters", filters), _stack("multipliers", multipliers)
            (b, k), (c, m) = chosen.shape[:2], maps.shape[:2]
            if k != m or (b != c and 1 not in (b, c)):
                raise ValueError(
                    "space_varying_blur: filters and multipliers must be equally many, for equally many images, "
                    f"got filters {describe_shape(chosen.shape)} and multipliers {describe_shape(maps.shape)}"
                )
        self.register_buffer("filters", chosen)
        self.register_buffer("multipliers", maps)
        self.boundary = boundary

    def maps(self, like: Tensor) -> Tensor:
        """w_k for images like this one, (1 or B, K, H, W)."""
        size = tuple(like.shape[-2:])
        if self.multipliers is None:
            return radial_maps(self.filters.shape[1], size, like)
        reason = self.mismatch(tuple(like.shape[1:]))
        if reason is not None:
            raise ValueError(reason)
        return self.multipliers.to(like)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        blurred = [
            convolve(maps[:, k : k + 1] * x, self.filters[:, k : k + 1], self.boundary) for k in range(maps.shape[1])
        ]
        return torch.stack(blurred).sum(0)

    def adjoint(self, y: Tensor) -> Tensor:
        maps = self.maps(y)
        spread = [
            maps[:, k : k + 1] * convolve_adjoint(y, self.filters[:, k : k + 1], self.boundary)
            for k in range(maps.shape[1])
        ]
        return torch.stack(spread).sum(0)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if self.multipliers is None or shape[-2:] == self.multipliers.shape[-2:]:
            return None
        own = describe_shape(self.multipliers.shape[-2:])
        return f"space_varying_blur: multipliers are {own} pixels, the image {describe_shape(shape[-2:])}"

    def first_guess(self, y: Tensor) -> Tensor:
        return y  # better than the pseudo-inverse, which amplifies noise

    @classmethod
    def example(cls) -> tuple["SpaceVaryingBlur", tuple[int, ...]]:
        return cls(std_corner=1.5, kernels=3, kernel_size=7), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        draws = torch.Generator().manual_seed(9)
        filters = torch.randn(2, 3, 4, generator=draws)
        filters[:, 1, 2] += filters.abs().sum((-2, -1))  # well conditioned
        multipliers = (torch.rand(3, 2, 8, 9, generator=draws) < 0.5) + 0.5
        return {
            "example": cls.example(),
            "sharp": (cls(std_corner=0.6, kernel_size=5), (3, 7, 6)),
            "std-per-image": (cls(std_center=torch.tensor([0.4, 0.5, 0.6]), std_corner=0.7, kernel_size=5), (1, 8, 9)),
            "multipliers-per-image": (cls(filters=filters, multipliers=multipliers), (1, 8, 9)),
        }


def lens(std_center: float | Tensor, std_corner: float | Tensor, kernels: int, kernel_size: int) -> Tensor:
    """Gaussian kernels from the centre of the image to its corners, float32 (1 or B, kernels, size, size), sum one."""
    center, corner = torch.broadcast_tensors(
        *(torch.as_tensor(std, dtype=torch.float64).reshape(-1) for std in (std_center, std_corner))
    )
    for name, std in (("std_center", center), ("std_corner", corner)):
        if not (std > 0).all():
            raise ValueError(f"space_varying_blur: {name} must be > 0 pixels, got {std.min().item()}")
    if kernels < 1:
        raise ValueError(f"space_varying_blur: kernels must be an integer >= 1, got {kernels}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"space_varying_blur: kernel_size must be an odd integer >= 1, got {kernel_size}")
    std = center[:, None] + torch.linspace(0, 1, kernels, dtype=torch.float64) * (corner - center)[:, None]
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    taps = torch.exp(-0.5 * (offsets / std[..., None]) ** 2)
    taps = taps / taps.sum(-1, keepdim=True)
    return (taps[..., :, None] * taps[..., None, :]).float()


def radial_maps(count: int, size: tuple[int, ...], like: Tensor) -> Tensor:
    """Smooth maps of rings from the centre to the corners that sum to one at every pixel, (1, count, H, W)."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in size)
    radius = torch.hypot(rows[:, None], columns)
    radius = radius / radius[0, 0].clamp(min=1)
    knots = torch.arange(count, dtype=like.dtype, device=like.device)
    distance = (radius * (count - 1) - knots[:, None, None]).abs().clamp(max=1)
    return torch.cos(torch.pi / 2 * distance).square()[None]


def _stack(name: str, value: Tensor | np.ndarray) -> Tensor:
    """Any accepted shape as float32 (1 or B, K, ., .)."""
    tensor = torch.as_tensor(value).detach()
    if tensor.dim() == 5 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.dim() not in (3, 4):
        raise ValueError(
            f"space_varying_blur: {name} must be (K, h, w), (B, K, h, w) or (B, 1, K, h, w), "
            f"got {describe_shape(tensor.shape)}"
        )
    tensor = tensor.float().reshape(-1, *tensor.shape[-3:])
    if not tensor.isfinite().all():
        raise ValueError(f"space_varying_blur: {name} must be finite, got NaN or infinity")
    return tensor.clone()
