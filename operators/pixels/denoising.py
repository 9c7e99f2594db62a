"""Denoising: the identity.

Model   A x = x.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit.
"""

import torch
from torch import Tensor

from ..core.base import SameShape, SpectralOperator


class Denoising(SameShape, SpectralOperator):
    """A = I: the only degradation is noise."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def singular_values(self, like: Tensor) -> Tensor:
        return torch.ones(1, 1, *like.shape[2:], dtype=like.dtype, device=like.device)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, z: Tensor) -> Tensor:
        return z

    def ut(self, y: Tensor) -> Tensor:
        return y

    def u(self, z: Tensor) -> Tensor:
        return z

    @classmethod
    def example(cls) -> tuple["Denoising", tuple[int, ...]]:
        return cls(), (1, 16, 16)
