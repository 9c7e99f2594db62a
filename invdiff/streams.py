"""Random streams: every number is a function of what it is for, never of where it is computed.

Image i, sample s draws the same numbers whatever the batch size, the chunking or the device. A stream has a key of 128
bits, the hash of (seed, purpose, indices). `Streams` counts its draws: number n of a stream is Philox 4x64-10 of key
and n, on the CPU by numpy, on CUDA in the tensors of the device, to the same bits. `generator` is for what torch draws
itself, on the CPU: its whole state of 19,968 bits comes from the key.

Paper   Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011, for Philox; Box and Muller 1958 for normal
        numbers, which here take additions, multiplications, divisions and square roots alone: all devices round them
        alike.
"""

import hashlib
import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

PURPOSES = ("sample", "measure", "generate", "exact")

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF
_BLOCK = 4  # words of 64 bits of one value of the counter
# Degree of the series of the logarithm and of sine and cosine: below the rounding of the type.
_DEGREES = {torch.float32: (9, 10), torch.float64: (21, 18)}


def key(seed: int, purpose: str, *indices: int) -> int:
    """The key of a stream, 128 bits: the same for the same arguments alone."""
    if purpose not in PURPOSES:
        raise ValueError(f"the purpose of a stream must be one of {', '.join(PURPOSES)}, got {purpose!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    words = f"{int(seed)} {purpose} {' '.join(str(int(i)) for i in indices)}"
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """The stream of one purpose and one row for torch's own draws, on the CPU."""
    found = torch.Generator().manual_seed(0)
    state = found.get_state().numpy().view(np.uint64).copy()
    words = np.random.Philox(key=key(seed, purpose, *indices)).random_raw(312).view(np.uint32)
    state[3:627] = words  # of the Mersenne twister; before it stand its seed and its place, behind it no cached number
    return found.set_state(torch.from_numpy(state.view(np.uint8)))


class Streams:
    """The streams of the rows of a batch.

    keys    of each row, see `key`
    shape   shape of one row, the default of `normal`
    device  where the numbers are wanted
    dtype   real type of the numbers, the default of `normal`
    """

    def __init__(
        self,
        keys: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.keys, self.shape, self.device, self.dtype = list(keys), tuple(shape), torch.device(device), dtype
        self._counter = 0
        self._sources = [np.random.Philox(key=key) for key in self.keys] if self.device.type != "cuda" else []

    def __len__(self) -> int:
        return len(self.keys)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers, (rows, *shape); complex ones have unit variance E|n|^2 = 1."""
        shape, dtype = self.shape if shape is None else tuple(shape), dtype or self.dtype
        if dtype.is_complex:
            parts = self.normal((*shape, 2), dtype=dtype.to_real())
            return torch.view_as_complex(parts * math.sqrt(0.5))
        wide = dtype == torch.float64
        count = math.prod(shape)
        pairs = -(-count // 2)
        bits = self._words(2 * pairs if wide else pairs)
        found = box_muller(bits.unflatten(1, (-1, 2)) if wide else bits, torch.float64 if wide else torch.float32)
        return found[:, :count].to(self.device, dtype).reshape(len(self), *shape)

    def _words(self, count: int) -> Tensor:
        """(rows, count) words of 64 bits, as int64: on CUDA on the device, otherwise on the CPU."""
        blocks = -(-count // _BLOCK)
        before, self._counter = self._counter, self._counter + blocks
        if self.device.type == "cuda":
            # numpy counts before it draws: its first block is that of 1.
            return philox(self.keys, 1 + before, blocks, self.device)[:, :count]
        rows = [source.random_raw(blocks * _BLOCK)[:count] for source in self._sources]
        return torch.from_numpy(np.stack(rows).view(np.int64))


def box_muller(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Pairs of standard normal numbers: float32 from words, (rows, n); float64 from pairs of words, (rows, n, 2).

    Returns (rows, 2 n).
    """
    halves = bits if dtype == torch.float64 else bits.view(torch.int32).unflatten(1, (-1, 2))
    width = 8 * halves.element_size() - 1
    length = (_log((halves[..., 1] & 2**width - 1).to(dtype) + 0.5, -width) * -2.0).sqrt()
    # The angle is an eighth of a turn, (0, pi / 4), and which one: as good as any order of the eight.
    low = halves[..., 0]
    place = (low >> 3) & 2 ** (width - 2) - 1
    sine, cosine = _sine_cosine((place.to(dtype) + 0.5) * (2.0 ** (2 - width) * math.pi / 4))
    swapped = (low & 4).bool()
    first, second = torch.where(swapped, cosine, sine), torch.where(swapped, sine, cosine)
    signs = (1 - (low & 2)).to(dtype), (1 - 2 * (low & 1)).to(dtype)
    return torch.stack([first * length * signs[0], second * length * signs[1]], -1).flatten(1)


def _log(x: Tensor, power: int) -> Tensor:
    """Natural logarithm of 2^power x, x > 0, by the series of 2 artanh((m - 1) / (m + 1)), for x = m 2^e, m about 1."""
    integers, shift = (torch.int64, 52) if x.dtype == torch.float64 else (torch.int32, 23)
    bits = x.view(integers)
    middle = int(torch.tensor(math.sqrt(0.5), dtype=x.dtype).view(integers))
    e = (bits - middle) >> shift
    m = (bits - (e << shift)).view(x.dtype)  # from sqrt(1/2) to sqrt(2)
    s = (m - 1) / (m + 1)
    found = _even(s * s, [2 / n for n in range(_DEGREES[x.dtype][0], 0, -2)])
    return found.mul_(s).add_((e + power).to(x.dtype) * math.log(2))


def _sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of angles from 0 to an eighth of a turn by their series."""
    square, degree = angle * angle, _DEGREES[angle.dtype][1]
    sine, cosine = (
        _even(square, [(-1) ** (n // 2) / math.factorial(n) for n in range(last, -1, -2)])
        for last in (degree - 1, degree)
    )
    return sine.mul_(angle), cosine


def _even(square: Tensor, coefficients: Sequence[float]) -> Tensor:
    """A polynomial by Horner's rule, the coefficient of the highest power first."""
    found = square * coefficients[0]
    for coefficient in coefficients[1:-1]:
        found.add_(coefficient).mul_(square)  # two roundings: a fused product would have one on some devices
    return found.add_(coefficients[-1])


def philox(keys: Sequence[int], first: int, blocks: int, device: torch.device | str) -> Tensor:
    """Philox 4x64-10 of the counters first, first + 1, ... of each key: (rows, 4 blocks) words, as int64.

    torch has no unsigned arithmetic: sums and products wrap alike, and shifts are masked.
    """
    count = torch.arange(first, first + blocks, device=device).expand(len(keys), blocks)
    c = [count, *[torch.zeros_like(count) for _ in range(3)]]
    halves = [[_signed(key >> 64 * i) for key in keys] for i in range(2)]
    k = [torch.tensor(half, device=device)[:, None] for half in halves]
    for _ in range(10):
        (high0, low0), (high1, low1) = (_product(c[2 * i], _MULTIPLIERS[i]) for i in range(2))
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [k[i] + _signed(_WEYL[i]) for i in range(2)]
    return torch.stack(c, -1).flatten(1)


def _signed(value: int) -> int:
    """The low 64 bits as a signed number."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of the product of unsigned words, by halves of 32 bits."""
    a_high, a_low, b_high, b_low = (a >> 32) & _LOW, a & _LOW, b >> 32, b & _LOW
    low, left, right = a_low * b_low, a_high * b_low, a_low * b_high
    middle = ((low >> 32) & _LOW) + (left & _LOW) + (right & _LOW)
    high = a_high * b_high + ((left >> 32) & _LOW) + ((right >> 32) & _LOW) + ((middle >> 32) & _LOW)
    return high, a * _signed(b)
