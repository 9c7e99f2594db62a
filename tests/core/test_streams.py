"""Random streams: the numbers of a row depend on its seed, image and sample, never on batch or device."""

import pytest
import torch

from invdiff.streams import Streams, generator

SHAPE = (1, 5, 7)


def rows(*pairs: tuple[int, int], seed: int = 0) -> Streams:
    return Streams([generator(seed, "sample", i, s) for i, s in pairs], SHAPE, "cpu")


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
    assert generator(0, "sample", 0, 0).initial_seed() == 12750949206108985319
    assert generator(1, "sample", 2, 3).initial_seed() == 16282019883069768460
    assert generator(0, "measure", 3).initial_seed() == 7216072773778891929


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
    with pytest.raises(KeyError):
        generator(5, "something else", 2)


def test_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    rows((0, 0), (1, 0)).normal()
    assert torch.equal(state, torch.get_rng_state())


def test_large_and_negative_seeds() -> None:
    draws = [torch.randn(8, generator=generator(seed, "sample", 0, 0)) for seed in (5, 5 + 2**32, 2**100)]
    assert len(torch.unique(torch.stack(draws), dim=0)) == 3
    with pytest.raises(ValueError, match="non-negative"):
        generator(-1, "sample", 0, 0)


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
