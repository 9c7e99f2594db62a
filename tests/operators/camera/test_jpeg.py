"""JPEG: the codec, a transcription of the standard against it, and the gradients."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from invdiff.contracts import check_operator
from invdiff.operators import JPEG
from invdiff.operators.camera.jpeg import FROM_CHROMA, SUBSAMPLINGS, TO_CHROMA, interpolate

Normal = Callable[..., Tensor]

# ITU T.81, tables K.1 and K.2.
LUMA = """
    16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMA = (
    """
    17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99"""
    + 32 * " 99"
)


def picture(*shape: int, seed: int = 0) -> Tensor:
    """Smooth colours with some texture, well within [0, 1]: compression means something on them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, shape[0], 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True)
    return (0.2 + 0.6 * smooth + 0.02 * torch.randn(1, *shape, generator=generator)).clamp(0.02, 0.98)


def table(text: str, quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([int(word) for word in text.split()]).reshape(8, 8)
    return ((base * scale + 50) // 100).clamp(1, 255).double()


def half_up(z: Tensor) -> Tensor:
    """Rounding of libjpeg, halves away from zero: they are frequent among sums of integers."""
    return z.sign() * (z.abs() + 0.5 + 1e-9).floor()


def blocks_rounded(plane: Tensor, steps: Tensor) -> Tensor:
    """Cosine transform of 8x8 blocks, rounded to multiples of the steps, and back; (H, W), levels of 1 about zero."""
    height, width = plane.shape
    padded = pad(plane[None, None], (0, -width % 8, 0, -height % 8), mode="replicate")[0, 0]
    k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    dct = torch.cos(torch.pi * k * (2 * n + 1) / 16) / 2
    dct[0] /= 2**0.5
    blocks = padded.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).movedim(1, 2)
    back = dct.T @ (half_up(dct @ blocks @ dct.T / steps) * steps) @ dct
    return back.movedim(2, 1).flatten(2, 3).flatten(0, 1)[:height, :width].round()


def averaged(plane: Tensor, down: int, right: int) -> Tensor:
    """Means of integers, halves and quarters rounded down and up in turn along a row, as libjpeg does."""
    total = avg_pool2d(plane, (down, right), divisor_override=1)
    lift = torch.arange(total.shape[-1]) % 2 + (1 if down == 2 else 0)
    return ((total + (lift if right == 2 else 0)) / (down * right)).floor()


def by_hand(x: Tensor, quality: int, subsampling: str) -> Tensor:
    """The surrogate's parts with the rounding put back in: (1, C, H, W) in [0, 1]."""
    down, right = SUBSAMPLINGS[subsampling]
    pixels = (255 * x[0].double()).round()
    grey = torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]).double(), pixels).round()
    luma = blocks_rounded((pixels[0] if len(pixels) == 1 else grey) - 128, table(LUMA, quality)) + 128
    if len(pixels) == 1:
        return (luma.clamp(0, 255) / 255)[None, None]
    height, width = luma.shape
    chroma = torch.einsum("kc,chw->khw", torch.tensor(TO_CHROMA).double(), pixels).round()
    chroma = pad(chroma[None], (0, -width % 16, 0, -height % 2), mode="replicate")
    coarse = averaged(chroma, down, right)[0]
    coarse = torch.stack([blocks_rounded(plane, table(CHROMA, quality)) for plane in coarse])[None]
    coarse = coarse[..., : -(-width // right)]
    for axis, factor in ((-2, down), (-1, right)):
        coarse = interpolate(coarse, axis) if factor == 2 else coarse
    back = luma + torch.einsum("ck,khw->chw", torch.tensor(FROM_CHROMA).double(), coarse[0, :, :height, :width])
    return (back.round().clamp(0, 255) / 255)[None]


@pytest.mark.parametrize("shape", [(1, 24, 32), (3, 32, 32), (3, 37, 21), (3, 9, 50)])
def test_is_the_standard_codec(shape: tuple[int, ...]) -> None:
    """libjpeg and the standard differ by roundings: at most 2 grey levels on nearly all pixels.

    At quality 95 half steps are whole numbers, which its integer arithmetic rounds either way.
    """
    for quality in [5, 10, 50, 95, 100]:
        for subsampling in SUBSAMPLINGS:
            x = picture(*shape)
            difference = (
                255 * (JPEG(quality=quality, subsampling=subsampling)(x) - by_hand(x, quality, subsampling)).abs()
            )
            assert (difference <= 2.001).double().mean() >= (0.9 if quality == 95 else 0.96)
            assert difference.mean() <= (1 if quality == 95 else 0.5)


def test_is_the_file_that_pillow_writes() -> None:
    """Its defaults are ours, for grey and RGB."""
    for shape in ((1, 13, 20), (3, 13, 20)):
        x = picture(*shape)
        pixels = (255 * x[0]).round().to(torch.uint8).movedim(0, -1).squeeze(-1).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=30)
        wanted = np.asarray(Image.open(file)).reshape(13, 20, -1)
        assert torch.equal((255 * JPEG(quality=30)(x)[0]).round().movedim(0, -1).int(), torch.tensor(wanted).int())


@pytest.mark.parametrize(
    ("shape", "subsampling"),
    [((3, 21, 33), "4:2:0"), ((3, 21, 33), "4:2:2"), ((3, 8, 8), "4:4:4"), ((1, 7, 5), "4:2:0")],
)
def test_surrogate_is_the_codec_at_the_best_quality(shape: tuple[int, ...], subsampling: str) -> None:
    x, operator = picture(*shape), JPEG(quality=100, subsampling=subsampling)
    difference = 255 * (operator(x) - operator.surrogate(x)).abs()
    assert (difference <= 2).double().mean() >= 0.95
    assert difference.mean() <= 0.7


def test_losses_grow_as_quality_falls() -> None:
    x = picture(3, 48, 48)
    operators = [JPEG(quality=quality) for quality in (95, 50, 20, 5)]
    errors = [255 * float((operator(x) - operator.surrogate(x)).square().mean().sqrt()) for operator in operators]
    assert errors == sorted(errors)
    assert errors[0] <= 3 < errors[-1]


@pytest.mark.parametrize("quality", [10, 50, 95])
def test_compressing_again_changes_little(quality: int) -> None:
    """The coefficients are on their grid already; only 8-bit pixels move some of them, and colour is averaged again."""
    for shape, subsampling in (((1, 24, 24), "4:2:0"), ((3, 24, 24), "4:4:4")):
        operator = JPEG(quality=quality, subsampling=subsampling)
        y = operator(picture(*shape))
        again = 255 * (operator(y) - y).abs()
        assert (again <= 2).double().mean() >= 0.95
        assert again.mean() <= 0.3 * 255 * (y - picture(*shape)).abs().mean() + 0.05


def test_gradient_is_that_of_the_surrogate(normal: Normal) -> None:
    x, v = picture(3, 10, 7).requires_grad_(True), normal(1, 3, 10, 7, dtype=torch.float32)
    operator = JPEG(quality=10)
    (gradient,) = torch.autograd.grad(operator(x), x, v)
    (wanted,) = torch.autograd.grad(operator.surrogate(x), x, v)
    assert torch.equal(gradient, wanted)
    grey = torch.full((1, 1, 8, 8), 1.3)  # outside [0, 1] too
    assert torch.equal(JPEG(quality=10).vjp(grey, torch.ones_like(grey)), torch.ones_like(grey))


def test_a_quality_per_image() -> None:
    qualities = torch.tensor([5, 40, 95])
    check_operator(JPEG(quality=qualities), (3, 12, 17))
    x = picture(3, 16, 16).repeat(3, 1, 1, 1)
    for y, quality in zip(JPEG(quality=qualities)(x), qualities.tolist(), strict=True):
        assert torch.equal(y, JPEG(quality=quality)(x[:1])[0])


def test_a_sick_image_harms_no_other() -> None:
    x = torch.cat([picture(3, 16, 16), picture(3, 16, 16, seed=1)])
    wanted = JPEG()(x)[0]
    x[1, 0, 3, 3] = torch.nan
    y = JPEG()(x)
    assert torch.equal(y[0], wanted)
    assert y[1].isnan().all()


def test_double_precision_is_exact() -> None:
    y = JPEG()(picture(3, 16, 16).double())
    assert y.dtype == torch.float64
    assert ((255 * y) - (255 * y).round()).abs().max() <= 1e-12


@pytest.mark.parametrize("quality", [0, 101, 7.5, torch.tensor([10, 0])])
def test_bad_quality(quality: float | Tensor) -> None:
    with pytest.raises(ValueError, match=r"jpeg: quality must be an integer from 1 \(worst\) to 100, got"):
        JPEG(quality=quality)  # type: ignore[arg-type]


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"jpeg: quality must be an integer or one per image, \(B,\), got shape 2x1"):
        JPEG(quality=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"jpeg: subsampling must be one of 4:4:4, 4:2:2, 4:2:0, got '4:1:1'"):
        JPEG(subsampling="4:1:1")
    assert JPEG().mismatch((2, 8, 8)) == "jpeg: an image must be grey or RGB, 1 or 3 channels, got 2x8x8"
    assert JPEG().mismatch((1, 8, 70000)) == "jpeg: an image must have <= 65500 pixels per side, got 1x8x70000"
