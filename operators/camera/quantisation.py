"""Quantisation: rounding to a few levels.

Model   A x = round((L - 1) clip(x, 0, 1)) / (L - 1) with L = 2^bits levels from 0 to 1. Gradients are those of the
        identity, so that they do not vanish outside [0, 1]; the residual is zero for a value that rounds to the
        measured level.
Shapes  x (B, C, H, W) in [0, 1] -> y (B, C, H, W) in [0, 1].
Spec    "Quantization" of RED-diff, which rounds in the same way and has no noise (`noise=none`).

`QuantisationNoise` is the exact likelihood of rounding after noise, as in an analogue-to-digital converter, and after
other operators, as in one-bit compressed sensing.
"""

import torch
from torch import Tensor

from ..core.base import SameShape, Variants, straight_through


class Quantisation(SameShape):
    """Rounding to 2^bits levels.

    bits  an integer, 1 to 8
    """

    def __init__(self, *, bits: int = 3) -> None:
        super().__init__()
        self.bits = check_bits("quantisation", bits)

    def forward(self, x: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        return straight_through(torch.round(steps * x.clamp(0, 1)) / steps, self.surrogate(x))

    def surrogate(self, x: Tensor) -> Tensor:
        return x

    def first_guess(self, y: Tensor) -> Tensor:
        return y

    @classmethod
    def example(cls) -> tuple["Quantisation", tuple[int, ...]]:
        return cls(), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "one-bit": (cls(bits=1), (3, 7, 6))}


def check_bits(name: str, bits: int) -> int:
    """A number of bits. Raises ValueError unless it is an integer from 1 to 8; `name` is for the message."""
    if bits != int(bits) or not 1 <= bits <= 8:
        raise ValueError(f"{name}: bits must be an integer from 1 to 8, got {bits}")
    return int(bits)
