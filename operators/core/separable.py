"""Separable linear operators: one matrix acts on the columns of an image, another on its rows.

Model   A X = L X R^T for each channel. Examples are resizing and blurs with a separable kernel, with any boundary
        rule. Exact adjoint, pseudo-inverse and solve: with L = U_l S_l V_l^T and R = U_r S_r V_r^T,
        A = (U_l x U_r)(S_l x S_r)(V_l x V_r)^T, so that two small decompositions give the one of A.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from .base import SpectralOperator


class Factor(NamedTuple):
    """One matrix (1 or B, m, n) with its full decomposition: u (.., m, m), s (.., n) padded by zeros, vt (.., n, n)."""

    matrix: Tensor
    u: Tensor
    s: Tensor
    vt: Tensor


class SeparableOperator(SpectralOperator):
    """A subclass defines the matrix that acts on an axis of a given length, and the lengths before and after."""

    def __init__(self) -> None:
        super().__init__()
        self._factors: dict[tuple, Factor] = {}  # a pure function of length and device; computed once for speed

    @abstractmethod
    def matrix(self, length: int) -> Tensor:
        """float64 (1 or B, measured length, length): the matrix along an axis of this many pixels."""

    @abstractmethod
    def measured_length(self, length: int) -> int:
        """Measured pixels along an axis of this many pixels of the image."""

    @abstractmethod
    def image_length(self, measured: int) -> int:
        """Pixels of the image along an axis of this many measured pixels."""

    def _factor(self, length: int, like: Tensor) -> Factor:
        key = (length, like.dtype, like.device)
        if key not in self._factors:
            with torch.inference_mode(False):  # kept tensors must serve a later call that differentiates
                matrix = self.matrix(length)
                u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
                s = torch.nn.functional.pad(s, (0, matrix.shape[2] - s.shape[1]))
                self._factors[key] = Factor(*(t.to(like.device, like.dtype) for t in (matrix, u, s, vt)))
        return self._factors[key]

    def select(self, index: Tensor) -> "SeparableOperator":
        chosen = super().select(index)
        if chosen is not self:
            chosen._factors = {
                key: Factor(*(t[index.to(t.device)] for t in factor)) for key, factor in self._factors.items()
            }
        return chosen

    def forward(self, x: Tensor) -> Tensor:
        left, right = self._factor(x.shape[-2], x), self._factor(x.shape[-1], x)
        return both_sides(left.matrix, x, right.matrix)

    def adjoint(self, y: Tensor) -> Tensor:
        left, right = self._factors_of(y)
        return both_sides(left.matrix.mT, y, right.matrix.mT)

    def _factors_of(self, y: Tensor) -> tuple[Factor, Factor]:
        return self._factor(self.image_length(y.shape[-2]), y), self._factor(self.image_length(y.shape[-1]), y)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = image_shape
        return channels, self.measured_length(height), self.measured_length(width)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(measurement_shape) != 3:
            raise ValueError(
                f"{type(self).__name__}: a measurement must be (C, H, W), got {describe_shape(measurement_shape)}"
            )
        channels, height, width = measurement_shape
        return channels, self.image_length(height), self.image_length(width)

    def singular_values(self, like: Tensor) -> Tensor:
        left, right = self._factor(like.shape[-2], like), self._factor(like.shape[-1], like)
        return (left.s[:, :, None] * right.s[:, None, :])[:, None]

    def vt(self, x: Tensor) -> Tensor:
        left, right = self._factor(x.shape[-2], x), self._factor(x.shape[-1], x)
        return both_sides(left.vt, x, right.vt)

    def v(self, z: Tensor) -> Tensor:
        left, right = self._factor(z.shape[-2], z), self._factor(z.shape[-1], z)
        return both_sides(left.vt.mT, z, right.vt.mT)

    def ut(self, y: Tensor) -> Tensor:
        left, right = self._factors_of(y)
        z = both_sides(left.u.mT, y, right.u.mT)
        rows, columns = left.matrix.shape[2] - z.shape[-2], right.matrix.shape[2] - z.shape[-1]
        return torch.nn.functional.pad(z, (0, columns, 0, rows))

    def u(self, z: Tensor) -> Tensor:
        left, right = self._factor(z.shape[-2], z), self._factor(z.shape[-1], z)
        return both_sides(left.u, z[..., : left.u.shape[-1], : right.u.shape[-1]], right.u)


def both_sides(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """left @ x @ right^T for every channel; the matrices are (1 or B, m, n), x is (B, C, n, n')."""
    return left[:, None] @ x @ right[:, None].mT


def folded_matrix(taps: Tensor, positions: Tensor, length: int, boundary: str) -> Tensor:
    """A filter as a matrix; taps outside the image are moved inside by a boundary rule.

    taps       (m, k) weight of each tap for each measured pixel
    positions  (m, k) integer pixel under each tap, possibly outside [0, length)
    boundary   `reflect` (mirror at the centre of the edge pixel), `symmetric` (at its outer side), `replicate`,
               `circular`, or `zero`

    Returns (m, length), the dtype of taps.
    """
    inside = fold(positions, length, boundary)
    matrix = torch.zeros(taps.shape[0], length, dtype=taps.dtype)
    if boundary == "zero":
        taps = torch.where((positions >= 0) & (positions < length), taps, 0)
    return matrix.scatter_add_(1, inside, taps)


BOUNDARIES = ("reflect", "symmetric", "replicate", "circular", "zero")
BLUR_BOUNDARIES = (*BOUNDARIES, "valid")  # valid: the image is larger than y, and none of it is made up


def fold(positions: Tensor, length: int, boundary: str) -> Tensor:
    """The pixels in [0, length) whose values a boundary rule puts at these positions."""
    if boundary == "circular":
        return positions % length
    if boundary in ("replicate", "zero"):
        return positions.clamp(0, length - 1)
    if boundary == "reflect":
        if length == 1:
            return torch.zeros_like(positions)
        period = 2 * (length - 1)
        wrapped = positions % period
        return torch.minimum(wrapped, period - wrapped)
    if boundary == "symmetric":
        wrapped = positions % (2 * length)
        return torch.minimum(wrapped, 2 * length - 1 - wrapped)
    raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
