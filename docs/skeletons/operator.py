"""One line: the name of the forward model.

Source      Paper or instrument: authors, title, year, equation.
Measures    y of an image (C, H, W): its shape, its unit, real or complex.

Copy this file to my_operator.py (a file with the name of another module, as operator.py, is refused). The example codes
the pixels and adds pairs of rows. Check it and use it:

    invdiff check-operator operator=callable operator.file=my_operator.py:MyOperator
    invdiff reconstruct operator=callable operator.file=my_operator.py:MyOperator 'operator.parameters={seed: 1}'
"""

import torch
from torch import Tensor

from invdiff.operators import LinearOperator


class MyOperator(LinearOperator):
    """Image (C, H, W) -> y (C, H / 2, W): each row times a random code, then sums of two rows.

    seed  of the code

    Subclass `Operator` where A is not linear: then leave out `adjoint`. `SpectralOperator` asks for the singular value
    decomposition instead, and gives all data steps in closed form.
    """

    code: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        # Random choices belong here, from a seed: A must be the same at every call. A buffer moves with the operator.
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("code", torch.rand(2, 1, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-2, (-1, 2))  # (B, C, H / 2, 2, W)
        return (self.code.to(x) * pairs).sum(-2)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y; without this method autograd transposes `forward`."""
        return (self.code.to(y) * y.unsqueeze(-2)).flatten(-3, -2)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of y without batch axis: spares a call of A."""
        channels, height, width = image_shape
        return (channels, height // 2, width)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) of the image: without this method users give image_shape=."""
        channels, height, width = measurement_shape
        return (channels, 2 * height, width)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return None if shape[-2] % 2 == 0 else f"my operator: height must be even, got {shape[-2]}"

    @classmethod
    def example(cls) -> tuple["MyOperator", tuple[int, ...]]:
        return cls(), (1, 8, 6)
