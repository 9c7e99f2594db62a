"""Masks: which pixels exactly, from which of the five options, and one clear line for every mistake."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from invdiff.operators import MRI, Inpainting

Normal = Callable[..., Tensor]


def bits(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


# -- keep --------------------------------------------------------------------------------------------------------------


def test_keeps_an_exact_count() -> None:
    for keep in [0.001, 0.08, 0.3, 0.5, 1.0]:
        for size in [(16, 16), (7, 9), (1, 5)]:
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


def test_box() -> None:
    """A number of pixels, a fraction of the shorter side, and a rectangle, in an image of 10x12."""
    for box, wanted in [
        (4, (3, 4, 4, 4)),
        (0.5, (2, 3, 5, 5)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ([0, 0, 10, 11], (0, 0, 10, 11)),
        (1, (4, 5, 1, 1)),
    ]:
        assert missing(Inpainting(box=box), 10, 12) == rectangle(*wanted)


@pytest.mark.parametrize(("side", "pixels"), [(4, 4), (0.25, 3)])
def test_box_at_random(side: float, pixels: int) -> None:
    """Every place that the margin allows, and no other."""
    found = set()
    for seed in range(200):
        gone = missing(Inpainting(box=side, margin=3, seed=seed), 12, 14)
        corner = min(gone)
        assert gone == rectangle(*corner, pixels, pixels)
        found.add(corner)
    assert found == rectangle(3, 3, 12 - 6 - pixels + 1, 14 - 6 - pixels + 1)


def test_margin_too_wide(normal: Normal) -> None:
    operator = Inpainting(box=4, margin=4)
    words = "a box of 4x4 with margin=4 does not fit an image of 12x11"
    assert operator.mismatch((1, 12, 12)) is None
    assert operator.mismatch((1, 12, 11)) == f"inpainting: {words}"
    with pytest.raises(ValueError, match=words):
        operator(normal(1, 1, 12, 11))


@pytest.mark.parametrize("options", [{"keep": 0.5, "margin": 2}, {"box": (1, 1, 2, 2), "margin": 2}, {"margin": 0}])
def test_margin_of_no_square(options: dict) -> None:
    with pytest.raises(ValueError, match=r"inpainting: margin"):
        Inpainting(**options)


def test_margin_below_zero() -> None:
    with pytest.raises(
        ValueError, match=r"margin must be an integer >= 0 of pixels around a square box=SIDE, got margin=-1, box=3"
    ):
        Inpainting(box=3, margin=-1)


def test_box_follows_the_image() -> None:
    operator = Inpainting(box=0.5)
    assert missing(operator, 8, 8) == rectangle(2, 2, 4, 4)
    assert missing(operator, 16, 8) == rectangle(6, 2, 4, 4)


def test_box_outside(normal: Normal) -> None:
    for box in [(4, 4, 8, 8), (-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0), 11, 0, -3, 0.01]:
        operator = Inpainting(box=box)
        with pytest.raises(ValueError, match=r"box \(.*\) does not fit an image of 10x10"):
            operator(normal(1, 1, 10, 10))
        reason = operator.mismatch((1, 10, 10))
        assert reason is not None
        assert "does not fit an image of 10x10" in reason


def test_box_everywhere(normal: Normal) -> None:
    with pytest.raises(ValueError, match="the box covers the whole image"):
        Inpainting(box=10)(normal(1, 1, 10, 10))


def test_box_of_three_numbers() -> None:
    with pytest.raises(ValueError, match=r"box must be one number or \(top, left, height, width\), got \(1, 2, 3\)"):
        Inpainting(box=(1, 2, 3))  # type: ignore[arg-type]


# -- lines -------------------------------------------------------------------------------------------------------------


def test_every_nth_line() -> None:
    for lines in [1, 2, 3, 40]:
        for axis, dim, count in [("rows", 0, 12), ("columns", 1, 10)]:
            mask = Inpainting(lines=lines, axis=axis).mask_of((1, 12, 10))[0, 0]
            assert torch.equal(mask.all(1 - dim), mask.any(1 - dim))  # a line is kept or dropped as a whole
            assert mask.all(1 - dim).nonzero().flatten().tolist() == list(range(0, count, lines))


def test_lines_at_random() -> None:
    for lines in [0.01, 0.3, 0.8]:
        for axis, dim, count in [("rows", 0, 12), ("columns", 1, 10)]:
            masks = torch.cat(
                [Inpainting(lines=lines, axis=axis, seed=seed).mask_of((1, 12, 10))[:, 0] for seed in range(200)]
            )
            kept = masks.any(2 - dim)
            assert torch.equal(kept, masks.all(2 - dim))
            assert (kept.sum(1) == max(1, round(lines * count))).all()
            assert len(kept.unique(dim=0)) > 5
            assert kept.any(0).all()


def test_lines_out_of_range() -> None:
    for lines in [0.0, -1, 2.5, float("nan")]:
        with pytest.raises(
            ValueError, match=rf"lines must be a fraction in \(0, 1\) or an integer n for every n-th line, got {lines}"
        ):
            Inpainting(lines=lines)


def test_unknown_axis() -> None:
    with pytest.raises(ValueError, match="axis must be one of rows, columns, got 'x'"):
        Inpainting(lines=2, axis="x")


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_is_written_everywhere() -> None:
    """Strokes in every part of the image, and image between them."""
    mask = Inpainting(text="posterior sampling").mask_of((3, 96, 128))
    parts = mask.unfold(2, 24, 24).unfold(3, 32, 32).flatten(4).float().mean(4)
    assert ((parts > 0.4) & (parts < 0.95)).all()


def test_text_grows_with_the_image() -> None:
    """Twice the size has the same share of ink, in strokes twice as long."""
    small, large = (Inpainting(text="oooo").mask_of((1, n, n))[0, 0].float() for n in (128, 256))
    assert abs(small.mean() - large.mean()) < 0.1
    edges = [float(mask.diff(dim=1).abs().sum()) for mask in (small, large)]
    assert 1.5 < edges[1] / edges[0] < 2.5  # lines of letters: as many, twice as high


def test_text_height() -> None:
    def lines(height: float) -> int:
        ink = ~Inpainting(text="x", text_height=height).mask_of((1, 200, 200))[0, 0]
        return int((ink.any(1).int().diff() == 1).sum())

    assert lines(0.1) == 200 // 25  # of 20 pixels, and a quarter between them
    assert lines(0.2) == 200 // 50


def test_text_says_what_it_is_told() -> None:
    shape = (1, 32, 32)
    assert not torch.equal(Inpainting(text="a").mask_of(shape), Inpainting(text="b").mask_of(shape))
    assert torch.equal(Inpainting(text=" a\n b ").mask_of(shape), Inpainting(text="a b").mask_of(shape))


def test_text_without_letters() -> None:
    with pytest.raises(ValueError, match="inpainting: text must contain a letter"):
        Inpainting(text=" \n")


def test_text_height_out_of_range() -> None:
    for height in [0.0, 1.5, float("nan")]:
        with pytest.raises(
            ValueError, match=rf"text_height must be a fraction of the shorter side in \(0, 1\], got {height}"
        ):
            Inpainting(text="a", text_height=height)


# -- mask --------------------------------------------------------------------------------------------------------------


def test_mask_tensor() -> None:
    for kind in [torch.bool, torch.float32, torch.uint8]:
        for shape in [(6, 5), (1, 6, 5), (1, 1, 6, 5), (4, 6, 5), (4, 1, 6, 5)]:
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
    with pytest.raises(ValueError, match=r"mask must be \(H, W\), .* got " + "x".join(map(str, shape))):
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


def test_mask_file(tmp_path: Path) -> None:
    for as_text in [True, False]:
        for name, write in [
            ("m.png", write_png),
            ("m.PNG", write_png),
            ("m.bmp", write_rgb),
            ("m.npy", write_npy),
            ("m.NPY", write_npy),
            ("m.npz", write_npz),
        ]:
            mask = bits(6, 5)
            write(tmp_path / name, mask.numpy())
            operator = Inpainting(mask=str(tmp_path / name) if as_text else tmp_path / name)
            assert torch.equal(operator.mask_of((3, 6, 5))[0, 0], mask)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA"])
def test_a_mask_of_a_picture_is_cut_at_half(mode: str, tmp_path: Path) -> None:
    """Soft edges and the greys of a JPEG are no values of their own."""
    mask = bits(32, 32)
    soft = Image.fromarray(np.where(mask.numpy(), 190, 60).astype(np.uint8))
    soft.convert(mode, dither=Image.Dither.NONE).save(tmp_path / "m.png")
    assert torch.equal(Inpainting(mask=tmp_path / "m.png").mask_of((1, 32, 32))[0, 0], mask)
    if mode in ("L", "RGB"):
        wide = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
        Image.fromarray(wide.numpy().astype(np.uint8) * 255).convert(mode).save(tmp_path / "m.jpg", quality=75)
        assert torch.equal(Inpainting(mask=tmp_path / "m.jpg").mask_of((1, 256, 256))[0, 0], wide)


@pytest.mark.parametrize("operator", [Inpainting, MRI])
def test_the_array_named_mask(operator: type, tmp_path: Path) -> None:
    """Of several; without one of this name they are listed."""
    mask = bits(6, 5).numpy()
    np.savez(tmp_path / "m.npz", other=~mask, mask=mask)
    assert torch.equal(operator(mask=tmp_path / "m.npz").mask.squeeze(), torch.from_numpy(mask))
    np.savez(tmp_path / "m.npz", left=mask, right=mask)
    with pytest.raises(ValueError, match="left, right; name one 'mask'"):
        operator(mask=tmp_path / "m.npz")


@pytest.mark.parametrize("operator", [Inpainting, MRI])
def test_nan_in_a_mask_is_not_measured(operator: type, tmp_path: Path) -> None:
    mask = bits(6, 5)
    holed = np.where(mask.numpy(), 1.0, np.nan)
    np.save(tmp_path / "m.npy", holed)
    for given in (tmp_path / "m.npy", holed, torch.from_numpy(holed)):
        assert torch.equal(operator(mask=given).mask.squeeze(), mask)


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 1, 6, 5)])
def test_mask_file_per_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    mask = bits(*shape)
    write_npy(tmp_path / "m.npy", mask.numpy())
    operator = Inpainting(mask=tmp_path / "m.npy")
    assert operator.images == 3
    assert torch.equal(operator.mask_of((1, 6, 5)), mask.reshape(3, 1, 6, 5))


def test_a_stack_of_masks_is_one_per_image(tmp_path: Path) -> None:
    """The pages of a TIFF are no colours, whose mean is taken; a mask of NumPy may run backwards."""
    mask = bits(3, 6, 5)
    tifffile.imwrite(tmp_path / "m.tif", mask.numpy().astype(np.uint8) * 255, photometric="minisblack")
    assert torch.equal(Inpainting(mask=tmp_path / "m.tif").mask_of((1, 6, 5)), mask[:, None])
    assert torch.equal(MRI(mask=tmp_path / "m.tif").mask_of((6, 5)), mask[:, None])
    assert torch.equal(Inpainting(mask=mask.numpy()[:, ::-1]).mask_of((1, 6, 5)), mask.flip(1)[:, None])


def test_mask_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mask: no such file: .*nowhere\.png"):
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
    with pytest.raises(ValueError, match=rf"mask: (the NumPy file cannot be read|not an image): .*{name}"):
        Inpainting(mask=tmp_path / name)


def test_mask_of_another_size(normal: Normal) -> None:
    operator = Inpainting(mask=bits(6, 5))
    with pytest.raises(ValueError, match="the mask is 6x5 pixels, the image 5x6"):
        operator(normal(1, 1, 5, 6))
    assert operator.mismatch((1, 5, 6)) == "inpainting: the mask is 6x5 pixels, the image 5x6"


@pytest.mark.parametrize("mask", [torch.zeros(4, 4), torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])])
def test_empty_mask(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask must keep at least one pixel"):
        Inpainting(mask=mask)


# -- options -----------------------------------------------------------------------------------------------------------


def test_at_most_one_option() -> None:
    for names in list(itertools.combinations(("keep", "box", "lines", "text", "mask"), 2)):
        values = {"keep": 0.5, "box": 3, "lines": 2, "text": "a", "mask": bits(4, 4)}
        words = f"inpainting: give one of keep, box, lines, text and mask, got {names[0]} and {names[1]}"
        with pytest.raises(ValueError, match=words):
            Inpainting(**{name: values[name] for name in names})


def test_without_an_option() -> None:
    assert torch.equal(Inpainting().mask_of((1, 8, 8)), Inpainting(keep=0.3).mask_of((1, 8, 8)))


def test_keep_out_of_range() -> None:
    for keep in [0.0, -0.1, 1.1, 70, float("nan")]:
        words = rf"keep must be a fraction of pixels in \(0, 1\], got {keep}"
        with pytest.raises(ValueError, match=words):
            Inpainting(keep=keep)
        with pytest.raises(ValueError, match=words):
            Inpainting.random((1, 8, 8), keep=keep, seed=0)


@pytest.mark.parametrize(
    "options", [{"keep": 0.3}, {"lines": 0.4}, {"lines": 0.4, "axis": "columns"}, {"box": 3, "margin": 2}]
)
def test_random_masks_begin_with_the_shared_one(options: dict) -> None:
    """The same seed is the same first mask; every image then has another, whatever the size of the batch."""
    shape = (3, 20, 16)
    shared = Inpainting(**options, seed=4).mask_of(shape)
    operator = Inpainting.random(shape, **options, seed=4, images=5)
    assert operator.images == 5
    masks = operator.mask_of(shape)
    assert torch.equal(masks[:1], shared)
    assert len(masks.flatten(1).unique(dim=0)) == 5
    assert torch.equal(Inpainting.random(shape, **options, seed=4, images=2).mask_of(shape), masks[:2])


@pytest.mark.parametrize("options", [{"box": (1, 1, 2, 2)}, {"lines": 2}])
def test_nothing_to_draw(options: dict) -> None:
    with pytest.raises(
        ValueError, match=r"random masks need the side of a square box or a fraction of lines below 1, got"
    ):
        Inpainting.random((1, 8, 8), **options, seed=0)


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
