"""Demosaicing: a sensor with a colour filter array measures one colour per pixel.

Model   A x = at each pixel, the channel of its filter. Exact adjoint, pseudo-inverse and decomposition (singular values
        0 and 1).
Shapes  x (B, 3, H, W) -> y (B, 1, H, W), same unit: the mosaic of raw files, every entry measured.
Spec    Bayer (US patent 3971065): blocks of 2x2 with two green filters, in four phases.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from invdiff.shapes import describe_shape

from ..core.base import SpectralOperator, Variants

PATTERNS = ("RGGB", "GRBG", "GBRG", "BGGR")


class Demosaicing(SpectralOperator):
    """A Bayer mosaic.

    pattern  colours of the four pixels at the top left, row by row: `RGGB`, `GRBG`, `GBRG` or `BGGR`
    """

    block: Tensor  # channel of each pixel of the 2x2 block

    def __init__(self, *, pattern: str = "RGGB") -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise ValueError(f"demosaicing: pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
        self.pattern = pattern
        self.register_buffer("block", torch.tensor(["RGB".index(c) for c in pattern]).reshape(2, 2))

    def mask_of(self, like: Tensor) -> Tensor:
        """The measured channel of each pixel of images of this height and width: bool (1, 3, H, W)."""
        device = like.device
        rows, columns = (torch.arange(n, device=device) % 2 for n in like.shape[-2:])
        channel = self.block.to(device)[rows[:, None], columns]
        return (channel == torch.arange(3, device=device)[:, None, None])[None]

    def forward(self, x: Tensor) -> Tensor:
        reason = self.mismatch(tuple(x.shape[1:]))
        if reason is not None:
            raise ValueError(reason)
        return torch.where(self.mask_of(x), x, 0).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.where(self.mask_of(y), y, 0)

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def first_guess(self, y: Tensor) -> Tensor:
        """Bilinear demosaicing: a missing colour is the mean of the nearest pixels with that colour."""
        mask = self.mask_of(y)
        colours, weights = tent(torch.where(mask, y, 0)), tent(mask.to(y.dtype))
        return torch.where(mask, y, colours / weights)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return 1, *image_shape[1:]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(measurement_shape) != 3 or measurement_shape[0] != 1:
            raise ValueError(
                f"demosaicing: a measurement must be a mosaic, 1xHxW, got {describe_shape(measurement_shape)}"
            )
        return 3, *measurement_shape[1:]

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 3 or shape[0] != 3 or min(shape[1:]) < 2:
            return f"demosaicing: an image must be RGB, 3xHxW, with H and W >= 2, got {describe_shape(shape)}"
        return None

    def singular_values(self, like: Tensor) -> Tensor:
        return self.mask_of(like).to(like.dtype)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, z: Tensor) -> Tensor:
        return z

    def ut(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def u(self, z: Tensor) -> Tensor:
        return self(z)

    @classmethod
    def example(cls) -> tuple["Demosaicing", tuple[int, ...]]:
        return cls(), (3, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example()} | {pattern: (cls(pattern=pattern), (3, 7, 6)) for pattern in PATTERNS}


def tent(x: Tensor) -> Tensor:
    """Sum over 3x3 neighbourhoods with weights 1 at the centre, 1/2 at the sides and 1/4 at the corners."""
    for _ in range(2):
        padded = pad(x, (1, 1))
        x = (x + (padded[..., :-2] + padded[..., 2:]) / 2).mT
    return x
