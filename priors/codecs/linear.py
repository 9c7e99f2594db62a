"""A linear codec: blocks of pixels in a basis of fewer components."""

import torch
from torch import Tensor
from torch.nn import functional

from ..codec import BlockCodec


class LinearCodec(BlockCodec):
    """decode(z) = W z in each block of pixels; encode is its least-squares inverse.

    basis    (C factor^2, c): W, of full column rank, the pixels of a block channel first, then by rows
    factor   side of a block
    """

    basis: Tensor
    inverse: Tensor
    linear = True

    def __init__(self, basis: Tensor, factor: int, *, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if basis.dim() != 2 or len(basis) % factor**2 or int(torch.linalg.matrix_rank(basis)) < basis.shape[1]:
            raise ValueError(
                f"codec: basis must be a matrix with C x {factor**2} rows and independent columns, "
                f"got {tuple(basis.shape)}"
            )
        self.register_buffer("basis", basis)
        self.register_buffer("inverse", torch.linalg.pinv(basis.double()).to(basis))
        self.factor, self.value_range = factor, value_range
        self.channels, self.code_channels = len(basis) // factor**2, basis.shape[1]

    def decode(self, codes: Tensor) -> Tensor:
        pixels = torch.einsum("pc,bchw->bphw", self.basis.to(codes), codes)
        return functional.pixel_shuffle(pixels, self.factor)

    def encode(self, images: Tensor) -> Tensor:
        pixels = functional.pixel_unshuffle(images, self.factor)
        return torch.einsum("cp,bphw->bchw", self.inverse.to(images), pixels)

    @classmethod
    def example(cls) -> tuple["LinearCodec", tuple[int, ...]]:
        draw = torch.Generator().manual_seed(0)
        return cls(torch.randn(4, 2, generator=draw), 2), (2, 4, 4)
