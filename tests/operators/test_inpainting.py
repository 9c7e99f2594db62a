"""Masks: which pixels exactly, from which of the three options, and one clear line for every mistake."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from invdiff.operators import Inpainting

Normal = Callable[..., Tensor]


def bits(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# -- keep --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (7, 9), (1, 5)])
@pytest.mark.parametrize("keep", [0.001, 0.08, 0.3, 0.5, 1.0])
def test_keeps_an_exact_count(keep: float, size: tuple[int, int]) -> None:
    mask = Inpainting(keep=keep).mask_of((3, *size))
    assert mask.shape == (1, 1, *size)
    assert mask.dtype == torch.bool
    assert mask.sum() == max(1, round(keep * size[0] * size[1]))


def test_seed_decides_the_pixels() -> None:
    shape = (1, 16, 16)
    first = Inpainting(keep=0.5, seed=0).mask_of(shape)
    torch.manual_seed(123)  # no global random state
    assert torch.equal(Inpainting(keep=0.5, seed=0).mask_of(shape), first)
    assert not torch.equal(Inpainting(keep=0.5, seed=1).mask_of(shape), first)


def test_pixels_are_drawn_everywhere() -> None:
    """Each pixel is kept as often as any other: 400 seeds at keep = 1/4, five standard errors."""
    mean = torch.cat([Inpainting(keep=0.25, seed=seed).mask_of((1, 6, 6)) for seed in range(400)]).float().mean(0)
    assert ((mean - 0.25).abs() < 5 * (0.25 * 0.75 / 400) ** 0.5).all()


def test_channels_are_dropped_together(normal: Normal) -> None:
    y = Inpainting(keep=0.5)(normal(2, 3, 8, 8))
    dropped = (y == 0).all(1, keepdim=True)
    assert ((y == 0) == dropped).all()
    assert dropped.any()


def test_a_mask_per_image() -> None:
    operator = Inpainting.random((3, 8, 8), keep=0.25, seed=4, images=5)
    assert operator.images == 5
    mask = operator.mask_of((3, 8, 8))
    assert (mask.flatten(1).sum(1) == 16).all()
    assert len(mask.flatten(1).unique(dim=0)) == 5
    # image i has the same mask whatever the size of the batch
    assert torch.equal(Inpainting.random((3, 8, 8), keep=0.25, seed=4, images=2).mask_of((3, 8, 8)), mask[:2])
    assert not torch.equal(Inpainting.random((3, 8, 8), keep=0.25, seed=5, images=5).mask_of((3, 8, 8)), mask)


# -- box ---------------------------------------------------------------------------------------------------------------


def missing(operator: Inpainting, height: int, width: int) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in (~operator.mask_of((1, height, width))[0, 0]).nonzero()}


def rectangle(top: int, left: int, height: int, width: int) -> set[tuple[int, int]]:
    return {(i, j) for i in range(top, top + height) for j in range(left, left + width)}


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        (4, (3, 4, 4, 4)),
        (0.5, (2, 3, 5, 5)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ([0, 0, 10, 11], (0, 0, 10, 11)),
        (1, (4, 5, 1, 1)),
    ],
)
def test_box(box: float | tuple[int, int, int, int], wanted: tuple[int, int, int, int]) -> None:
    """A number of pixels, a fraction of the shorter side, and a rectangle, in an image of 10x12."""
    assert missing(Inpainting(box=box), 10, 12) == rectangle(*wanted)


def test_box_follows_the_image() -> None:
    operator = Inpainting(box=0.5)
    assert missing(operator, 8, 8) == rectangle(2, 2, 4, 4)
    assert missing(operator, 16, 8) == rectangle(6, 2, 4, 4)


@pytest.mark.parametrize(
    "box", [(4, 4, 8, 8), (-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0), 11, 0, -3, 0.01]
)
def test_box_outside(box: float | tuple[int, int, int, int], normal: Normal) -> None:
    operator = Inpainting(box=box)
    with pytest.raises(ValueError, match=r"box \(.*\) does not fit an image of 10x10"):
        operator(normal(1, 1, 10, 10))
    reason = operator.refuses((1, 10, 10))
    assert reason is not None
    assert "does not fit an image of 10x10" in reason


def test_box_everywhere(normal: Normal) -> None:
    with pytest.raises(ValueError, match="the box covers the whole image"):
        Inpainting(box=10)(normal(1, 1, 10, 10))


def test_box_of_three_numbers() -> None:
    with pytest.raises(ValueError, match=r"box is one number or \(top, left, height, width\), got \(1, 2, 3\)"):
        Inpainting(box=(1, 2, 3))  # type: ignore[arg-type]


# -- mask --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (1, 1, 6, 5), (4, 6, 5), (4, 1, 6, 5)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.uint8])
def test_mask_tensor(shape: tuple[int, ...], kind: torch.dtype) -> None:
    mask = bits(*shape)
    operator = Inpainting(mask=mask.to(kind) * 3 if kind != torch.bool else mask)
    assert operator.images == mask.numel() // 30
    assert torch.equal(operator.mask_of((3, 6, 5)), mask.reshape(-1, 1, 6, 5))


def test_mask_array() -> None:
    mask = bits(6, 5)
    assert torch.equal(Inpainting(mask=mask.numpy()).mask_of((3, 6, 5))[0, 0], mask)


def test_mask_is_a_copy() -> None:
    """An operator is the same at every call, whatever its maker does next."""
    mask = bits(6, 5)
    operator = Inpainting(mask=mask)
    wanted = operator.mask_of((1, 6, 5)).clone()
    mask.logical_not_()
    assert torch.equal(operator.mask_of((1, 6, 5)), wanted)


@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (5,), (1, 1, 1, 6, 5)])
def test_mask_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    """A mask per channel would silently be taken for one per image."""
    with pytest.raises(ValueError, match=r"a mask is \(H, W\), .* got " + "x".join(map(str, shape))):
        Inpainting(mask=bits(*shape))


def write_png(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_rgb(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(np.stack([mask.astype(np.uint8) * 200] * 3, -1)).save(path)


def write_npy(path: Path, mask: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, mask.astype(np.float32))


def write_npz(path: Path, mask: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, mask=mask)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.png", write_png),
        ("m.PNG", write_png),
        ("m.bmp", write_rgb),
        ("m.npy", write_npy),
        ("m.NPY", write_npy),
        ("m.npz", write_npz),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_mask_file(name: str, write: Callable[[Path, np.ndarray], None], as_text: bool, tmp_path: Path) -> None:
    mask = bits(6, 5)
    write(tmp_path / name, mask.numpy())
    operator = Inpainting(mask=str(tmp_path / name) if as_text else tmp_path / name)
    assert torch.equal(operator.mask_of((3, 6, 5))[0, 0], mask)


def test_mask_file_per_image(tmp_path: Path) -> None:
    mask = bits(3, 6, 5)
    write_npy(tmp_path / "m.npy", mask.numpy())
    assert torch.equal(Inpainting(mask=tmp_path / "m.npy").mask_of((1, 6, 5))[:, 0], mask)


def test_mask_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mask file not found: .*nowhere\.png"):
        Inpainting(mask=tmp_path / "nowhere.png")


def write_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.png", lambda path: path.write_text("no image")),
        ("m.npy", lambda path: path.write_bytes(b"")),
        ("m.npy", lambda path: path.write_text("no array")),
        ("m.npy", write_pickle),
        ("m.npz", lambda path: path.write_bytes(b"PK\x03\x04 cut short")),
        ("m.npz", lambda path: np.savez(path)),
    ],
    ids=["text.png", "empty.npy", "text.npy", "pickle.npy", "broken.npz", "empty.npz"],
)
def test_mask_file_unreadable(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    """A pickle too: it could run code."""
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"mask file cannot be read: .*{name}"):
        Inpainting(mask=tmp_path / name)


def test_mask_of_another_size(normal: Normal) -> None:
    operator = Inpainting(mask=bits(6, 5))
    with pytest.raises(ValueError, match="the mask is 6x5 pixels, the image 5x6"):
        operator(normal(1, 1, 5, 6))
    assert operator.refuses((1, 5, 6)) == "inpainting: the mask is 6x5 pixels, the image 5x6"


@pytest.mark.parametrize("mask", [torch.zeros(4, 4), torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])])
def test_empty_mask(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="a mask keeps no pixel at all"):
        Inpainting(mask=mask)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"keep": 0.5, "box": 3}, {"keep": 0.5, "mask": bits(4, 4)}, {"box": 3, "mask": bits(4, 4)}]
)
def test_at_most_one_option(options: dict) -> None:
    with pytest.raises(ValueError, match="inpainting takes one of keep, box and mask"):
        Inpainting(**options)


def test_without_an_option() -> None:
    assert torch.equal(Inpainting().mask_of((1, 8, 8)), Inpainting(keep=0.3).mask_of((1, 8, 8)))


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, 70, float("nan")])
def test_keep_out_of_range(keep: float) -> None:
    words = rf"keep is the fraction of pixels kept, in \(0, 1\], got {keep}"
    with pytest.raises(ValueError, match=words):
        Inpainting(keep=keep)
    with pytest.raises(ValueError, match=words):
        Inpainting.random((1, 8, 8), keep=keep, seed=0)


# -- what was not measured ---------------------------------------------------------------------------------------------


def test_measured_is_the_mask(normal: Normal) -> None:
    operator = Inpainting.random((3, 8, 8), keep=0.5, seed=0, images=2)
    x = normal(2, 3, 8, 8)
    observed = operator.measured((3, 8, 8))
    assert observed.dtype == torch.bool
    assert torch.equal(operator(x), torch.where(observed, x, 0))


def test_what_was_not_measured_may_be_nan(normal: Normal) -> None:
    """Real data mark missing pixels so; they must not reach the adjoint or the baseline."""
    operator = Inpainting(keep=0.5)
    y = operator(normal(2, 1, 8, 8))
    marked = torch.where(operator.measured((1, 8, 8)), y, torch.nan)
    for function in (operator.adjoint, operator.pinv, operator.ut):
        assert torch.equal(function(marked), function(y))
