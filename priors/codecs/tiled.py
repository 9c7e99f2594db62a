"""Codecs that work on overlapping tiles, one at a time: memory of a tile, not of the image.

Form        Sides are cut into tiles of equal length; neighbours overlap, and their images are blended with weights that
            sum to 1: of each tile 0 in the outer quarter of the overlap, rising linearly, and 1 in its inner quarter.
            A tile is computed again in the backward pass (gradient checkpointing), so that products with the Jacobian
            hold the activations of one tile too.
Departures  from the codec on the whole image: tiles end in padding, which convolutions carry inwards; it is left out
            where they reach less than a quarter of the overlap. Norms and attention over the whole image, which
            autoencoders of `diffusers` have, see a tile alone, so that its colours may differ slightly.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..codec import BlockCodec
from .convolutional import ConvolutionalCodec


class TiledCodec(BlockCodec):
    """Another codec on tiles.

    codec    a codec of square blocks
    side     of a tile, in codes, >= 4; an image that is no larger is one tile
    overlap  of neighbouring tiles, in codes; None: a quarter of the side
    """

    def __init__(self, codec: BlockCodec, side: int, overlap: int | None = None) -> None:
        super().__init__()
        overlap = side // 4 if overlap is None else overlap
        if side < 4 or not 0 < overlap <= side // 2:
            raise ValueError(
                f"tiles must be an integer >= 4 with an overlap from 1 to half of it, got {side} with {overlap}"
            )
        self.codec, self.side, self.overlap = codec, side, overlap
        self.channels, self.code_channels, self.factor = codec.channels, codec.code_channels, codec.factor
        self.value_range, self.linear = codec.value_range, codec.linear

    def encode(self, images: Tensor) -> Tensor:
        return self._blended(self.codec.encode, images, self.factor, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self._blended(self.codec.decode, codes, 1, self.factor)

    def _blended(self, function: Callable[[Tensor], Tensor], x: Tensor, unit_in: int, unit_out: int) -> Tensor:
        """function on tiles of x, whose places are multiples of `unit_in` pixels there and `unit_out` in the result."""
        height, width = (length // unit_in for length in x.shape[-2:])
        if max(height, width) <= self.side:
            return function(x)
        total: Tensor | None = None
        for (top, rows), (left, columns) in product(self._pieces(height, unit_out), self._pieces(width, unit_out)):
            high, wide = len(rows) // unit_out, len(columns) // unit_out
            tile = x[..., top * unit_in : (top + high) * unit_in, left * unit_in : (left + wide) * unit_in]
            again = torch.is_grad_enabled() and tile.requires_grad
            part: Tensor = checkpoint(function, tile, use_reentrant=False) if again else function(tile)
            part = rows.outer(columns).to(part) * part
            around = [left, width - left - wide, top, height - top - high]
            part = torch.nn.functional.pad(part, [unit_out * n for n in around])
            total = part if total is None else total + part
        assert total is not None
        return total

    def _pieces(self, length: int, unit: int) -> Iterator[tuple[int, Tensor]]:
        """Of each tile along a side of `length` codes: its start, and its weight in each of `unit` pixels of a code."""
        side = min(self.side, length)
        count = 1 if side == length else -(-(length - self.overlap) // (side - self.overlap))
        starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
        rising = (torch.arange(self.overlap * unit, dtype=torch.float64) + 0.5) / (self.overlap * unit)
        rising = (2 * rising - 0.5).clamp(0, 1)
        total, ramps = torch.zeros(length * unit, dtype=torch.float64), []
        for start in starts:
            ramp = torch.ones(side * unit, dtype=torch.float64)
            if start > 0:
                ramp[: len(rising)] = rising
            if start + side < length:
                ramp[-len(rising) :] = torch.minimum(ramp[-len(rising) :], rising.flip(0))
            total[start * unit : (start + side) * unit] += ramp
            ramps.append(ramp)
        for start, ramp in zip(starts, ramps, strict=True):
            yield start, ramp / total[start * unit : (start + side) * unit]

    @classmethod
    def example(cls) -> tuple["TiledCodec", tuple[int, ...]]:
        codec, shape = ConvolutionalCodec.example()
        return cls(codec, 4), (shape[0], 7, 10)
