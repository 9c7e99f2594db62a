"""Random streams: the numbers of a row depend on its seed, image and sample, never on batch or device."""

import math

import numpy as np
import pytest
import torch

from invdiff.streams import Streams, box_muller, generator, key, philox

SHAPE = (1, 5, 7)


def rows(*pairs: tuple[int, int], seed: int = 0) -> Streams:
    return Streams([key(seed, "sample", i, s) for i, s in pairs], SHAPE)


def test_a_row_draws_the_same_whatever_the_batch() -> None:
    together = rows((0, 0), (0, 1), (3, 2), (7, 0))
    alone = rows((3, 2))
    for shape in (None, (4,), (2, 3, 3)):  # the third draw still agrees: no row has taken from another
        assert torch.equal(together.normal(shape)[2], alone.normal(shape)[0])


def test_the_same_stream_twice_and_the_next_numbers_of_it() -> None:
    first, second = rows((1, 2)), rows((1, 2))
    a = first.normal()
    assert torch.equal(a, second.normal())
    assert not torch.equal(a, first.normal())


def test_seed_0_is_a_seed() -> None:
    zero, again, one = (rows((0, 0), seed=seed).normal() for seed in (0, 0, 1))
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)
    torch.manual_seed(1234)
    assert torch.equal(zero, rows((0, 0)).normal())


def test_streams_are_for_ever() -> None:
    """Another number here means that every published result of a seed changes: the changelog must state it."""
    found = [rows((0, 0)).normal((2,)), rows((2, 3), seed=1).normal((2,))]
    assert torch.cat(found).flatten().tolist() == [
        0.4221120774745941,
        0.5583860278129578,
        0.7420697808265686,
        1.190772294998169,
    ]
    assert torch.randn(2, generator=generator(0, "measure", 3)).tolist() == [-0.3386960029602051, 0.6963351368904114]


def test_every_purpose_seed_image_and_sample_has_its_own_stream() -> None:
    streams = [generator(seed, "sample", i, s) for seed in range(3) for i in range(4) for s in range(4)]
    streams += [
        generator(seed, purpose, i) for purpose in ("measure", "generate") for seed in range(3) for i in range(4)
    ]
    draws = torch.stack([torch.randn(8, generator=g) for g in streams])
    assert len(torch.unique(draws, dim=0)) == len(streams)


def test_purposes_differ_for_the_same_indices() -> None:
    draws = [torch.randn(8, generator=generator(5, purpose, 2)) for purpose in ("sample", "measure", "generate")]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
    with pytest.raises(ValueError, match="one of sample, measure"):
        generator(5, "something else", 2)


def test_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    rows((0, 0), (1, 0)).normal()
    assert torch.equal(state, torch.get_rng_state())


def test_large_and_negative_seeds() -> None:
    draws = [torch.randn(8, generator=generator(seed, "sample", 0, 0)) for seed in (5, 5 + 2**32, 2**100, -5)]
    assert len(torch.unique(torch.stack(draws), dim=0)) == 4


def test_a_million_keys_differ() -> None:
    """Of 32 bits about 116 pairs would be equal; samples (726, 65) and (886, 51) of seed 0 once were."""
    assert len({key(0, "sample", i, s) for i in range(1000) for s in range(1000)}) == 1_000_000
    twins = [torch.randn(8, generator=generator(0, "sample", *row)) for row in ((726, 65), (886, 51))]
    assert not torch.equal(*twins)
    assert key(1, "sample", 23) != key(12, "sample", 3)
    assert key(0, "sample", 0) != key(0, "sample", 0, 0)


# Philox 4x64-10 of Salmon et al.: words of the counter, of the key, and of the block, least significant first; from the
# known-answer file of their library, Random123.
KNOWN = [
    ([0] * 4, [0] * 2, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
    (
        [2**64 - 1] * 4,
        [2**64 - 1] * 2,
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
    ),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], block: list[int]) -> None:
    """Of numpy, which counts before it draws, and of the arithmetic in tensors."""
    whole = sum(word << 64 * i for i, word in enumerate(counter))
    source = np.random.Philox(key=key[0] + (key[1] << 64), counter=(whole - 1) % 2**256)
    assert source.random_raw(4).tolist() == block
    if counter[1:] == [0] * 3:  # tensors count in one word
        found = philox([key[0] + (key[1] << 64)], counter[0], 1, "cpu")
        assert found.numpy().view(np.uint64).tolist() == [block]


def test_tensors_and_numpy_give_the_same_bits() -> None:
    """The path of a GPU, here on the CPU."""
    keys = [key(3, "sample", i) for i in range(5)] + [2**128 - 1, 1 << 63]
    expected = np.stack([np.random.Philox(key=k).random_raw(1000) for k in keys]).view(np.int64)
    found = philox(keys, 1, 250, "cpu").numpy()
    assert np.array_equal(found, expected)
    assert np.array_equal(philox(keys, 101, 50, "cpu").numpy(), expected[:, 400:600])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_bits_of_the_cpu() -> None:
    keys = [key(3, "sample", i) for i in range(5)]
    for dtype in (torch.float32, torch.float64):
        here, there = (Streams(keys, (3, 64, 65), device, dtype) for device in ("cpu", "cuda"))
        for shape in (None, (7,), None):
            assert torch.equal(here.normal(shape), there.normal(shape).cpu())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_the_series_give_the_formula_of_box_and_muller(dtype: torch.dtype, error: float) -> None:
    words = torch.from_numpy(np.random.Philox(key=1).random_raw(20_000).view(np.int64))[None]
    halves = words.unflatten(1, (-1, 2)) if dtype == torch.float64 else words.view(torch.int32).unflatten(1, (-1, 2))
    bits = 63 if dtype == torch.float64 else 31
    u = ((halves[..., 1] & 2**bits - 1).double() + 0.5) / 2.0**bits
    pairs = box_muller(words if dtype == torch.float32 else halves, dtype).double().unflatten(1, (-1, 2))
    assert (pairs.square().sum(-1) + 2 * u.log()).abs().max() < error
    turn = torch.atan2(pairs[..., 0], pairs[..., 1]) / (2 * math.pi) % 1
    for eighth in range(8):  # every octant as often, and evenly
        assert abs(int((turn * 8).long().eq(eighth).sum()) - turn.numel() / 8) < 5 * (turn.numel() * 7 / 64) ** 0.5
    assert abs(float((turn * 8 % 1).mean()) - 0.5) < 5 / (12 * turn.numel()) ** 0.5


def test_numbers_are_standard_normal() -> None:
    streams = rows(*((0, s) for s in range(200)))
    assert len(streams) == 200
    x = streams.normal((100,))
    assert x.shape == (200, 100)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 5 / 20000**0.5
    assert abs(float(x.var()) - 1) < 5 * (2 / 20000) ** 0.5
    # Neighbouring rows must be independent, which a seed that is merely counted up would not ensure.
    assert abs(float((x[1:] * x[:-1]).mean())) < 5 / 19900**0.5


def test_complex_numbers_have_unit_variance_together() -> None:
    x = rows(*((0, s) for s in range(200))).normal((100,), dtype=torch.complex64)
    assert x.is_complex()
    assert abs(float(x.abs().square().mean()) - 1) < 5 / 20000**0.5
    assert float(x.real.var()) == pytest.approx(0.5, abs=0.03)
