"""Image files: values exact where the format keeps them, refused in one line where they could only be guessed."""

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from invdiff.io import (
    SUFFIXES,
    BadInput,
    Slicing,
    image_files,
    match_channels,
    read_image,
    square,
    to_tensor,
    write_image,
)
from invdiff.io.volumes import read_files

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


def alpha(image: np.ndarray, value: int) -> np.ndarray:
    """The image with an alpha channel that is opaque but for one pixel, which has this value."""
    channel = np.full((*image.shape[:2], 1), 255, np.uint8)
    channel[2, 3] = value
    return np.concatenate([np.atleast_3d(image), channel], axis=2)


def png(
    path: Path, depth: int, colour_type: int, rows: bytes, extra: bytes = b"", size: tuple[int, int] = (2, 3)
) -> Path:
    """A PNG by hand: Pillow writes neither 16-bit colour nor a transparent grey of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def transparent_key(*samples: int) -> bytes:
    """A tRNS chunk: the one colour that is transparent."""
    data = struct.pack(f">{len(samples)}H", *samples)
    return struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))


def deep_rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


# -- what is read, exactly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "gif"])
def test_eight_bits_are_exact(tmp_path: Path, suffix: str) -> None:
    for name, pixels in (("grey", GREY), ("colour", COLOUR)):
        if suffix == "gif" and name == "colour":
            continue  # its palette may be another
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
        image = read_image(path)
        assert image.dtype == np.float32
        # WebP and GIF know no grey: what was grey comes back with three equal channels.
        expected = np.atleast_3d(pixels) / 255
        np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=1e-7)
        assert image.shape[-1] == 3 or suffix not in ("webp",)


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    for name, pixels in (("grey", smooth), ("colour", np.stack([smooth, smooth.T, 255 - smooth], -1))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=95)
        image = read_image(tmp_path / f"{name}.jpg")
        assert image.shape == np.atleast_3d(pixels).shape
        assert abs(image - np.atleast_3d(pixels) / 255).mean() < 0.01


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_exact(tmp_path: Path, suffix: str) -> None:
    DEEP[0, :2] = 0, 65535
    Image.fromarray(DEEP).save(tmp_path / f"deep.{suffix}")
    image = read_image(tmp_path / f"deep.{suffix}")
    assert image.shape == (6, 9, 1)
    assert np.array_equal(np.rint(image[..., 0] * 65535), DEEP)
    assert (image.min(), image.max()) == (0, 1)


def test_sixteen_bits_of_the_other_byte_order(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "big.tif", DEEP, byteorder=">", photometric="minisblack")
    assert np.array_equal(np.rint(read_image(tmp_path / "big.tif")[..., 0] * 65535), DEEP)


def test_one_bit(tmp_path: Path) -> None:
    for suffix in ("png", "tif", "bmp"):
        Image.fromarray(GREY > 127).save(tmp_path / f"bits.{suffix}")
        assert np.array_equal(read_image(tmp_path / f"bits.{suffix}")[..., 0], (GREY > 127).astype(np.float32))


def test_palette(tmp_path: Path) -> None:
    few = (COLOUR[..., :1] // 64 * 64).repeat(3, -1)
    few[..., 1] = 255 - few[..., 1]
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as file:
        assert file.mode == "P"
    np.testing.assert_allclose(read_image(tmp_path / "palette.png"), few / 255, atol=1e-7)


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    for name, pixels in (("grey", GREY), ("colour", COLOUR)):
        Image.fromarray(alpha(pixels, 255)).save(tmp_path / f"{name}.png")
        np.testing.assert_allclose(read_image(tmp_path / f"{name}.png"), np.atleast_3d(pixels) / 255, atol=1e-7)


def test_a_transparent_colour_that_does_not_occur_is_nothing(tmp_path: Path) -> None:
    pixels = GREY.clip(1)
    Image.fromarray(pixels).save(tmp_path / "grey.png", transparency=0)
    np.testing.assert_allclose(read_image(tmp_path / "grey.png")[..., 0], pixels / 255, atol=1e-7)


def test_float_tiff(tmp_path: Path) -> None:
    values = RNG.random((6, 9), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.array_equal(read_image(tmp_path / "float.tif")[..., 0], values)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((32, 48), np.uint8)
    upright[:16, :16], upright[16:, :16] = 255, 128  # no symmetry left
    # What a camera stores, so that turning it as the tag says gives the upright image (EXIF 2.32, tag 274).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"turned.{suffix}", exif=exif)
    image = read_image(tmp_path / f"turned.{suffix}")
    assert image.shape == (32, 48, 1)
    assert abs(image[..., 0] - upright / 255).max() < (0.02 if suffix == "jpg" else 1e-6)


def test_a_phones_photograph_with_a_depth_map_behind_it(tmp_path: Path) -> None:
    photo = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    photo.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with Image.open(tmp_path / "phone.jpg") as file:
        assert file.n_frames == 2
    image = read_image(tmp_path / "phone.jpg")
    assert image.shape == (16, 16, 3)
    assert abs(image - 200 / 255).max() < 0.02


# -- what is refused ---------------------------------------------------------------------------------------------------


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def _truncated(path: Path) -> Path:
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def _corrupt(path: Path) -> Path:
    _saved(path, Image.fromarray(COLOUR))
    data = bytearray(path.read_bytes())
    data[45] ^= 255  # inside the compressed pixels
    path.write_bytes(data)
    return path


def _tiff(path: Path, values: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


def _frames() -> list[Image.Image]:
    return [Image.fromarray(GREY), Image.fromarray(255 - GREY)]


def _holed_palette(path: Path) -> Path:
    image = Image.fromarray(GREY).convert("P")
    return _saved(path, image, transparency=int(np.asarray(image)[0, 0]))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda d: d / "absent.png", "no such file"),
    "folder": (lambda d: d, "a folder, not an image"),
    "text": (lambda d: _bytes(d / "a.png", b"this is no image"), "not an image"),
    "empty": (lambda d: _bytes(d / "a.png", b""), "not an image"),
    "truncated PNG": (lambda d: _truncated(d / "a.png"), "not an image"),
    "truncated JPEG": (lambda d: _truncated(d / "a.jpg"), "not an image"),
    "truncated TIFF": (lambda d: _truncated(d / "a.tif"), "not an image"),
    "corrupt PNG": (lambda d: _corrupt(d / "a.png"), "not an image"),
    "script": (lambda d: _saved(d / "a.eps", Image.fromarray(COLOUR)), "not an image"),
    "16-bit colour PNG": (
        lambda d: png(d / "a.png", 16, 2, deep_rows(RNG.integers(0, 65536, (2, 9)))),
        "16-bit colour PNG cannot be read without loss",
    ),
    "16-bit grey PNG with alpha": (
        lambda d: png(d / "a.png", 16, 4, deep_rows(np.full((2, 6), 65535))),
        "cannot be read without loss",
    ),
    "16-bit colour TIFF": (
        lambda d: _tiff(d / "a.tif", RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16), photometric="rgb"),
        "16-bit colour TIFF cannot be read without loss",
    ),
    "signed TIFF": (lambda d: _tiff(d / "a.tif", (DEEP // 2).astype(np.int16)), "no agreed full scale"),
    "32-bit TIFF": (lambda d: _tiff(d / "a.tif", DEEP.astype(np.uint32) * 9), "no agreed full scale"),
    "inverted 16-bit TIFF": (lambda d: _tiff(d / "a.tif", DEEP, photometric="miniswhite"), "no agreed full scale"),
    "float TIFF above 1": (lambda d: _saved(d / "a.tif", Image.fromarray(GREY.astype(np.float32))), r"in \[0, 1\]"),
    "float TIFF below 0": (
        lambda d: _saved(d / "a.tif", Image.fromarray(np.full((3, 3), -0.1, np.float32))),
        r"in \[0, 1\].* has -0.1 to",
    ),
    "NaN TIFF": (lambda d: _tiff(d / "a.tif", np.full((3, 3), np.nan, np.float32)), "NaN or infinity"),
    "infinite TIFF": (lambda d: _tiff(d / "a.tif", np.full((3, 3), np.inf, np.float32)), "NaN or infinity"),
    "animated GIF": (
        lambda d: _saved(d / "a.gif", _frames()[0], save_all=True, append_images=_frames()[1:]),
        r"several images in one file.*2 frames",
    ),
    "TIFF of several pages": (
        lambda d: _saved(d / "a.tif", _frames()[0], save_all=True, append_images=_frames()[1:]),
        r"several images in one file.*2 frames",
    ),
    "CMYK": (lambda d: _saved(d / "a.jpg", Image.fromarray(COLOUR).convert("CMYK")), "unsupported kind.*CMYK"),
    "grey with a hole": (lambda d: _saved(d / "a.png", Image.fromarray(alpha(GREY, 254))), "transparent"),
    "colour with a hole": (lambda d: _saved(d / "a.png", Image.fromarray(alpha(COLOUR, 0))), "transparent"),
    "palette with a hole": (lambda d: _holed_palette(d / "a.png"), "transparent"),
    "transparent grey": (
        lambda d: _saved(d / "a.png", Image.fromarray(GREY), transparency=int(GREY[0, 0])),
        "transparent",
    ),
    "transparent colour": (
        lambda d: _saved(d / "a.png", Image.fromarray(COLOUR), transparency=tuple(int(c) for c in COLOUR[0, 0])),
        "transparent",
    ),
    "transparent 16-bit grey": (
        lambda d: png(d / "a.png", 16, 0, deep_rows(np.arange(6).reshape(2, 3)), transparent_key(4)),
        "transparent",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str, recwarn: pytest.WarningsRecorder) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path)
    recwarn.clear()
    with pytest.raises(BadInput, match=words) as caught:
        read_image(path)
    assert not recwarn.list, "a warning is a second line on the terminal"
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# -- channels, sizes, folders ------------------------------------------------------------------------------------------


def test_channels_match() -> None:
    grey, colour = np.zeros((4, 5, 1), np.float32), np.zeros((4, 5, 3), np.float32)
    assert match_channels(grey, 1, "a") is grey
    assert match_channels(colour, 3, "a") is colour
    assert match_channels(grey, None, "a") is grey
    assert match_channels(colour, 1, "a").shape == (4, 5, 1)  # equal channels: grey in disguise
    colour[2, 2, 1] = 0.01
    with pytest.raises(BadInput, match=r"a is colour \(3 channels\), the prior knows grey"):
        match_channels(colour, 1, "a")
    with pytest.raises(BadInput, match=r"b is grey \(1 channels\), the prior knows colour"):
        match_channels(grey, 3, "b")


@pytest.mark.parametrize("shape", [(40, 40, 3), (40, 90, 1), (90, 41, 3), (7, 12, 1)])
def test_square(shape: tuple[int, int, int]) -> None:
    image = RNG.random(shape, dtype=np.float32)
    result = square(image, 20)
    assert result.shape == (20, 20, shape[2])
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1


def test_square_keeps_what_has_the_size_and_takes_the_centre() -> None:
    image = RNG.random((20, 31, 1), dtype=np.float32)
    assert np.array_equal(square(image, 20), image[:, 5:25])


def test_square_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))[..., None]
    assert abs(square(stripes, 16) - 0.5).max() < 0.1


def test_images_of_one_size_become_a_batch() -> None:
    a, b = RNG.random((4, 5, 3), dtype=np.float32), RNG.random((4, 5, 3), dtype=np.float32)
    batch = to_tensor([a, b], ["a", "b"])
    assert batch.shape == (2, 3, 4, 5)
    assert torch.equal(batch[1, 2], torch.from_numpy(b[..., 2]))


def test_images_of_several_sizes_are_named() -> None:
    a, b = np.zeros((4, 5, 1), np.float32), np.zeros((6, 5, 1), np.float32)
    with pytest.raises(BadInput, match=r"a is 4x5, b is 6x5; size=256"):
        to_tensor([a, a, b], ["a", "a2", "b"])


def test_folder(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.tiff", "notes.txt", "y.npy", "._b.png", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in image_files(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
    assert image_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # one named file: reading it will tell
    with pytest.raises(BadInput, match=r"no images in .*known suffixes: \.png"):
        image_files(tmp_path / "folder.png")
    with pytest.raises(BadInput, match="no such file or folder"):
        image_files(tmp_path / "absent")
    assert len(SUFFIXES) == len(set(SUFFIXES))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_again(tmp_path: Path, channels: int) -> None:
    levels = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", levels / 255)
    assert np.array_equal(np.rint(read_image(tmp_path / "a.png") * 255), levels.permute(1, 2, 0).numpy())


def test_written_values_are_clamped_and_rounded(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.tensor([[[-1.0, 2.0, 0.5, 0.4999 / 255, 0.51 / 255]]]))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 255, 128, 0, 1]]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_image(tmp_path / "a.png", torch.zeros(1, 2, 2))
    assert caught.value.filename == str(tmp_path / "a.png")


@pytest.mark.parametrize(("bits", "suffix"), [(10, ".png"), (12, ".tif"), (14, ".png")])
def test_fewer_bits_than_the_file_has(bits: int, suffix: str, tmp_path: Path) -> None:
    """A camera of 10, 12 or 14 bits in a file of 16: white is not 65535."""
    white, path = 2**bits - 1, tmp_path / f"a{suffix}"
    levels = np.linspace(0, white, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(path)
    assert f"if {white} is white, give volume.window=[{white / 2:g},{white}]" in read_files([path]).notes[0]
    found = read_files([path], Slicing(window=[white / 2, white]))
    assert "is white" not in found.notes[0]
    assert found.units == [(white, 0.0)]
    image = found.images[0].squeeze()
    np.testing.assert_allclose(image / image.max() * white, levels, atol=0.01)
