"""Codecs on tiles beside the same codec on the whole image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from invdiff.priors.codec import BlockCodec
from invdiff.priors.codecs.convolutional import CodecSpec, ConvolutionalCodec
from invdiff.priors.codecs.tiled import TiledCodec

Normal = Callable[..., Tensor]
SIDE, REACH = 12, 4  # of a tile, and of the convolutions of a decoder, in codes


@pytest.fixture(scope="module")
def codec() -> ConvolutionalCodec:
    """Two codes a pixel across, and convolutions that reach less than four codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ConvolutionalCodec(CodecSpec(channels=1, code_channels=2, widths=(8,), blocks=(1,)))
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made.double().eval().requires_grad_(False)


@pytest.mark.slow
def test_tiles_are_the_whole_away_from_seams(codec: BlockCodec, normal: Normal) -> None:
    """Exactly where a single tile lies, further from its end than convolutions reach; continuous at the seam."""
    tiled, codes = TiledCodec(codec, SIDE, 4), normal(1, 2, 20, 9)  # tiles of codes 0 to 12 and 8 to 20
    whole, found = codec.decode(codes), tiled.decode(codes)
    lone = 2 * (SIDE - 4 - REACH)
    assert torch.allclose(found[..., :lone, :], whole[..., :lone, :], atol=1e-12)
    assert torch.allclose(found[..., -lone:, :], whole[..., -lone:, :], atol=1e-12)
    assert (found - whole).abs().max() > 1e-3  # the reach is more than a quarter of the overlap
    first = codec.decode(codes[..., :SIDE, :])
    assert torch.allclose(found[..., 14:18, :], first[..., 14:18, :], atol=1e-12)  # where the second tile ends
    wide = TiledCodec(codec, 40, 4 * REACH)
    codes = normal(1, 2, 60, 9)
    assert torch.allclose(wide.decode(codes), codec.decode(codes), atol=1e-12)  # and less than that: everywhere
    images = normal(1, 1, 120, 18, seed=1)
    assert torch.allclose(wide.encode(images), codec.encode(images), atol=1e-12)
    assert torch.equal(tiled.decode(codes[..., :9, :]), codec.decode(codes[..., :9, :]))


@pytest.mark.slow
def test_a_constant_image_has_no_seams() -> None:
    """Weights of tiles sum to 1 everywhere, with every overlap."""

    class Same(BlockCodec):
        channels, code_channels, factor = 1, 1, 3

        def encode(self, images: Tensor) -> Tensor:
            return images[..., ::3, ::3]

        def decode(self, codes: Tensor) -> Tensor:
            return codes.repeat_interleave(3, -1).repeat_interleave(3, -2)

        @classmethod
        def example(cls) -> tuple["Same", tuple[int, ...]]:
            return cls(), (1, 8, 8)

    for side, overlap, shape in ((4, 1, (4, 9)), (5, 2, (11, 6)), (8, 4, (13, 9)), (6, 1, (7, 31))):
        codes = torch.rand(1, 1, *shape)
        tiled = TiledCodec(Same(), side, overlap)
        assert torch.allclose(tiled.decode(codes), Same().decode(codes), atol=1e-6)
        assert torch.allclose(tiled.encode(Same().decode(codes)), codes, atol=1e-6)


@pytest.mark.slow
def test_products_with_the_jacobian(codec: BlockCodec, normal: Normal) -> None:
    """J^T is the adjoint of J, and J that of differences."""
    tiled, codes, direction = TiledCodec(codec, 8), normal(1, 2, 13, 9), normal(1, 2, 13, 9, seed=1)
    weights = normal(1, 1, 26, 18, seed=2)
    _, forward = torch.func.jvp(tiled.decode, (codes,), (direction,))
    step = 1e-5
    differences = (tiled.decode(codes + step * direction) - tiled.decode(codes - step * direction)) / (2 * step)
    assert torch.allclose(forward, differences, rtol=1e-6, atol=1e-8)
    leaf = codes.clone().requires_grad_(True)
    (back,) = torch.autograd.grad(tiled.decode(leaf), leaf, weights)
    assert torch.allclose((forward * weights).sum(), (direction * back).sum(), rtol=1e-10)


@pytest.mark.parametrize(("side", "overlap"), [(3, None), (8, 0), (8, 5)])
def test_settings_of_tiles(side: int, overlap: int | None, codec: BlockCodec) -> None:
    with pytest.raises(ValueError, match="tiles must be an integer >= 4"):
        TiledCodec(codec, side, overlap)
