"""Random streams: one generator per row, derived from what the row is, never from where it runs.

Image i, sample s draws the same numbers whatever the batch size, the chunking or the device: numbers are drawn on the
CPU from (seed, purpose, image index, sample index) and moved.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_PURPOSES = {"sample": 0, "measure": 1, "generate": 2, "exact": 3}


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """The stream of one purpose (`sample`, `measure`, `generate`, `exact`) and one row."""
    state = np.random.SeedSequence((seed, _PURPOSES[purpose], *indices)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


class Streams:
    """The streams of the rows of a batch.

    generators  one per row
    shape       shape of one row, the default of `normal`
    device      where the numbers are wanted
    """

    def __init__(
        self, generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device | str
    ) -> None:
        self.generators, self.shape, self.device = list(generators), tuple(shape), torch.device(device)

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, (rows, *shape); complex ones have unit variance E|n|^2 = 1."""
        shape = self.shape if shape is None else tuple(shape)
        rows = [torch.randn(shape, generator=g, dtype=dtype) for g in self.generators]
        return torch.stack(rows).to(self.device)
