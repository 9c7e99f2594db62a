"""Single-pixel camera: one detector behind patterns of +1 and -1, the Walsh functions.

Model   A x = some entries of W x W^T for each channel, W the orthonormal Walsh-Hadamard transform along an axis.
        Exact adjoint, pseudo-inverse and decomposition (singular values 0 and 1).
Shapes  x (B, C, H, W) -> y (B, C, H, W), zero at unmeasured coefficients, with the mean of the image (times sqrt(H W))
        at the top left and rows and columns in the order of sequency (sign changes, a frequency). H and W are powers of
        two. The transform is orthonormal: noise of a given sigma is equally strong in y and in x.
Paper   Duarte et al., Single-pixel imaging via compressive sampling, IEEE Signal Processing Magazine 25 (2008).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import Drawn, SameShape, SpectralOperator, Variants

ORDERS = ("sequency", "random")
BLOCK = 64  # pixels up to which a matrix product is faster than butterflies


class HadamardSensing(SameShape, SpectralOperator):
    """Some coefficients of the Walsh-Hadamard transform, equal for all channels.

    ratio  fraction of measured coefficients, in (0, 1]
    order  their choice: `sequency`, those of lowest row plus column frequency; `random`, the mean and others drawn from
           `seed`
    """

    def __init__(self, *, ratio: float = 0.25, order: str = "sequency", seed: int = 0) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"hadamard: ratio must be a fraction of coefficients in (0, 1], got {ratio}")
        if order not in ORDERS:
            raise ValueError(f"hadamard: order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.ratio, self.order, self.seed = ratio, order, seed
        self._drawn: dict[tuple, Tensor] = {}  # masks are a pure function of the size; drawn once for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"order": Drawn("operator.order=sequency")} if self.order == "random" else {}

    def mask_of(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """The measured coefficients of images of this (C, H, W): bool (1, 1, H, W)."""
        reason = self.mismatch(shape)
        if reason is not None:
            raise ValueError(reason)
        key = (tuple(shape[-2:]), torch.device(device))
        if key not in self._drawn:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                self._drawn[key] = self._draw(*shape[-2:]).to(device)
        return self._drawn[key]

    def _draw(self, height: int, width: int) -> Tensor:
        if self.order == "sequency":
            rows, columns = torch.arange(height)[:, None], torch.arange(width)
            frequency = rows * width + columns * height  # in cycles per pixel along either axis, times 2 H W
            chosen = torch.argsort((frequency * width + columns).flatten())  # at equal frequency, by column
        else:
            others = torch.randperm(height * width - 1, generator=torch.Generator().manual_seed(self.seed)) + 1
            chosen = torch.cat([torch.zeros(1, dtype=torch.long), others])
        mask = torch.zeros(height * width, dtype=torch.bool)
        mask[chosen[: max(1, round(self.ratio * height * width))]] = True
        return mask.reshape(1, 1, height, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask_of(tuple(x.shape[1:]), x.device), self.vt(x), 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.v(self.ut(y))

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor:
        return self.mask_of(measurement_shape)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if any(n < 1 or n & (n - 1) for n in shape[-2:]):
            return f"hadamard: height and width must be powers of 2, got {describe_shape(tuple(shape[-2:]))}"
        return None

    def singular_values(self, like: Tensor) -> Tensor:
        return self.mask_of(tuple(like.shape[1:]), like.device).to(like.dtype)

    def vt(self, x: Tensor) -> Tensor:
        return walsh(walsh(x).mT).mT

    def v(self, z: Tensor) -> Tensor:
        return self.vt(z)

    def ut(self, y: Tensor) -> Tensor:
        # `where` and not a product: unmeasured entries of y may be NaN.
        return torch.where(self.mask_of(tuple(y.shape[1:]), y.device), y, 0)

    def u(self, z: Tensor) -> Tensor:
        return self.ut(z)

    @classmethod
    def example(cls) -> tuple["HadamardSensing", tuple[int, ...]]:
        return cls(), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "random": (cls(ratio=0.4, order="random", seed=1), (3, 4, 8)),
            "everything": (cls(ratio=1.0), (1, 8, 2)),
        }


def walsh(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform along the last axis, a power of two, in the order of sequency.

    Symmetric, so its own inverse.
    """
    n = x.shape[-1]
    block = min(n, BLOCK)
    within = butterflies(torch.eye(block, dtype=x.dtype, device=x.device)[..., None])
    return butterflies(x.unflatten(-1, (-1, block)) @ within) / n**0.5


def butterflies(parts: Tensor) -> Tensor:
    """The transform of the whole, (..., intervals * n), from those of neighbouring intervals, (..., intervals, n).

    The Walsh functions 2k and 2k + 1 are function k in both halves, with opposite signs of the second half: one
    continues without a sign change at the middle, the other with one.
    """
    while parts.shape[-2] > 1:
        signs = 1 - 2 * (torch.arange(parts.shape[-1], device=parts.device) % 2).to(parts.dtype)
        first, second = parts[..., 0::2, :], parts[..., 1::2, :] * signs
        parts = torch.stack([first + second, first - second], -1).flatten(-2)
    return parts[..., 0, :]
