"""Colourisation: greyscale measurement of a colour image.

Model   A x = w_r x_r + w_g x_g + w_b x_b in every pixel: rank one per pixel, so that the decomposition is one 3x3
        rotation of the colour axes. Exact adjoint, pseudo-inverse and decomposition.
Shapes  x (B, 3, H, W) -> y (B, 1, H, W), same unit where the weights sum to one.
Spec    `rec601`, luma of ITU-R BT.601, is what image libraries call grey; `mean` is the mean of the channels, used by
        DDRM and DDNM.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import SpectralOperator, Variants

WEIGHTS = {"rec601": (0.299, 0.587, 0.114), "mean": (1 / 3, 1 / 3, 1 / 3)}


class Colorization(SpectralOperator):
    """Grey from red, green and blue.

    weights  `rec601`, `mean`, or three numbers of positive sum, one for each of red, green and blue
    """

    def __init__(self, *, weights: str | Sequence[float] = "rec601") -> None:
        super().__init__()
        if isinstance(weights, str):
            if weights not in WEIGHTS:
                raise ValueError(
                    f"colorization: weights must be {', '.join(WEIGHTS)} or three numbers, got {weights!r}"
                )
            weights = WEIGHTS[weights]
        # Numbers and not a buffer: exact in every precision, on every device.
        self.weights = tuple(float(w) for w in weights)
        if len(self.weights) != 3 or not 0 < sum(self.weights) < float("inf"):
            raise ValueError(f"colorization: weights must be three numbers with a sum > 0, got {list(self.weights)}")
        self._norm = sum(w * w for w in self.weights) ** 0.5
        # Reflection of the first axis onto w / |w|: V = s (1 - 2 n n^T), symmetric, so its own inverse.
        direction = [w / self._norm for w in self.weights]
        self._sign = -1.0 if direction[0] >= 0 else 1.0  # the sign without cancellation in the next line
        normal = [direction[0] - self._sign, direction[1], direction[2]]
        length = sum(n * n for n in normal) ** 0.5
        self._normal = tuple(n / length for n in normal)

    def forward(self, x: Tensor) -> Tensor:
        return _weighted(self.weights, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([w * y for w in self.weights], 1)

    def first_guess(self, y: Tensor) -> Tensor:
        """The grey image in three channels. The pseudo-inverse has a tint, unless the weights are equal."""
        return (y / sum(self.weights)).expand(-1, 3, -1, -1).clone()

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return 1, *image_shape[1:]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(measurement_shape) != 3 or measurement_shape[0] != 1:
            raise ValueError(f"colorization: a measurement must be 1xHxW, got {describe_shape(measurement_shape)}")
        return 3, *measurement_shape[1:]

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 3 or shape[0] != 3:
            return f"colorization: an image must be RGB, 3xHxW, got {describe_shape(shape)}"
        return None

    def singular_values(self, like: Tensor) -> Tensor:
        first = torch.full_like(like[:1, :1], self._norm)
        return torch.cat([first, torch.zeros_like(first).expand(-1, 2, -1, -1)], 1)

    def vt(self, x: Tensor) -> Tensor:
        along = 2 * _weighted(self._normal, x)
        return self._sign * (x - torch.cat([n * along for n in self._normal], 1))

    def v(self, z: Tensor) -> Tensor:
        return self.vt(z)

    def ut(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y, (0, 0, 0, 0, 0, 2))

    def u(self, z: Tensor) -> Tensor:
        return z[:, :1]

    @classmethod
    def example(cls) -> tuple["Colorization", tuple[int, ...]]:
        return cls(), (3, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "mean": (cls(weights="mean"), (3, 7, 6))}


def _weighted(weights: tuple[float, ...], x: Tensor) -> Tensor:
    """Sum of three channels with these weights, (B, 3, H, W) -> (B, 1, H, W)."""
    if x.shape[1] != 3:
        raise ValueError(f"colorization: an image must be RGB, 3xHxW, got {describe_shape(tuple(x.shape[1:]))}")
    red, green, blue = weights
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]
