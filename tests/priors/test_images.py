"""Training images: what is read, what is refused, and random crops."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invdiff.files import BadInput
from invdiff.priors.training.images import random_batch, read_images, split


def picture(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two formats without loss, one in a subfolder, and something that is no image."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    Image.fromarray(picture(1)).save(root / "b.png")
    Image.fromarray(picture(2)).save(root / "a.PNG")
    Image.fromarray(picture(3)).save(root / "more" / "c.bmp")
    (root / "notes.txt").write_text("no image")
    return root


def test_folder(folder: Path) -> None:
    images = read_images(folder, channels=3)
    assert len(images) == 3
    wanted = [picture(2), picture(1), picture(3)]  # a.PNG, b.png, more/c.bmp
    assert all(np.array_equal(a, b) for a, b in zip(images, wanted, strict=True))


def test_channels_are_converted(folder: Path, tmp_path: Path) -> None:
    grey = read_images(folder, channels=1)
    assert all(image.shape == (6, 9, 1) and image.dtype == np.uint8 for image in grey)
    (tmp_path / "grey").mkdir()
    Image.fromarray(picture(1)[..., 0]).save(tmp_path / "grey" / "a.png")
    (colour,) = read_images(tmp_path / "grey", channels=3)
    assert np.array_equal(colour, np.repeat(picture(1)[..., :1], 3, axis=2))


def test_npz(tmp_path: Path) -> None:
    stack = np.stack([picture(1), picture(2)])
    np.savez(tmp_path / "colour.npz", images=stack)
    np.savez(tmp_path / "grey.npz", images=stack[..., 0])
    assert np.array_equal(np.stack(read_images(tmp_path / "colour.npz", channels=3)), stack)
    assert np.array_equal(np.stack(read_images(str(tmp_path / "grey.npz"), channels=1)), stack[..., :1])


def test_tar(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, "x")
    images = read_images(tmp_path / "images.tar", channels=3)
    assert sorted(image.sum() for image in images) == sorted(picture(i).sum() for i in (1, 2, 3))


def test_padding(folder: Path) -> None:
    (image, *_) = read_images(folder, channels=3, pad_to=12)
    assert image.shape == (12, 12, 3)
    assert np.array_equal(image[3:9, 1:10], picture(2))
    assert image.sum() == picture(2).sum(dtype=np.int64)
    with pytest.raises(ValueError, match="cannot pad an image of 6x9 to 8x8"):
        read_images(folder, channels=3, pad_to=8)


def no_images(root: Path) -> Path:
    (root / "readme.txt").write_text("")
    return root


def broken_image(root: Path) -> Path:
    (root / "a.png").write_bytes(b"no png at all")
    return root


def cut_image(root: Path) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(picture(1, 64, 64)).save(buffer, "png")
    (root / "a.png").write_bytes(buffer.getvalue()[:2000])
    return root


def floats(root: Path) -> Path:
    np.savez(root / "a.npz", images=np.zeros((2, 4, 4)))
    return root / "a.npz"


def other_name(root: Path) -> Path:
    np.savez(root / "a.npz", pictures=np.zeros((2, 4, 4), np.uint8))
    return root / "a.npz"


def other_channels(root: Path) -> Path:
    np.savez(root / "a.npz", images=np.zeros((2, 4, 4, 1), np.uint8))
    return root / "a.npz"


def objects(root: Path) -> Path:
    np.savez(root / "a.npz", images=np.array([{"a": 1}], dtype=object))
    return root / "a.npz"


def script(root: Path) -> Path:
    """EPS under the name of a PNG: Pillow would start Ghostscript."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "a.eps")
    (root / "a.eps").rename(root / "a.png")
    return root


def no_archive(root: Path) -> Path:
    (root / "a.tar").write_bytes(b"0" * 2000)
    return root / "a.tar"


def no_zip(root: Path) -> Path:
    (root / "a.npz").write_bytes(b"PK\x03\x04" + b"0" * 200)
    return root / "a.npz"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_images, "no images in .*known suffixes: .png"),
        (broken_image, "not an image: .*a.png"),
        (cut_image, "not an image: .*a.png"),
        (script, "not an image: .*a.png .no PNG"),
        (floats, r"must be uint8 \[N, H, W, 3\], got float64"),
        (other_name, "no array 'images', only pictures"),
        (other_channels, r"must be uint8 \[N, H, W, 3\], got uint8 \(2, 4, 4, 1\)"),
        (objects, "Python objects"),
        (lambda root: root / "a.zip", "a folder, a .npz or a .tar of images, got .*a.zip"),
        (lambda root: root / "nowhere", "a folder, a .npz or a .tar of images, got .*nowhere"),
        (no_archive, "a.tar"),
        (no_zip, "a.npz"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_images(make(tmp_path), channels=3)


@pytest.mark.parametrize("name", ["a.npz", "a.tar"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, BadInput), match=name):
        read_images(tmp_path / name, channels=3)


# -- splits and crops --------------------------------------------------------------------------------------------------


def test_split_holds_out_evenly_and_always_the_same() -> None:
    images = [np.full((2, 2, 1), i, np.uint8) for i in range(20)]
    train, held_out = split(images, 4)
    values = [int(image[0, 0, 0]) for image in held_out]
    assert values == [0, 6, 13, 19]
    assert sorted(values + [int(image[0, 0, 0]) for image in train]) == list(range(20))
    assert [int(image[0, 0, 0]) for image in split(images, 4)[1]] == values
    for count in (0, 20, 21):
        with pytest.raises(ValueError, match=f"cannot hold out {count} of 20"):
            split(images, count)


def test_crops_are_parts_of_the_images() -> None:
    images = [picture(1, 8, 10), picture(2, 12, 8)]
    batch = random_batch(images, np.random.default_rng(0), batch=20, crop=5, flip=False, rotate=False)
    assert batch.shape == (20, 3, 5, 5)
    assert batch.dtype == np.float32
    known = {
        image[top : top + 5, left : left + 5].tobytes()
        for image in images
        for top in range(image.shape[0] - 4)
        for left in range(image.shape[1] - 4)
    }
    crops = {np.ascontiguousarray(np.round(crop.transpose(1, 2, 0) * 255).astype(np.uint8)).tobytes() for crop in batch}
    assert crops <= known
    assert len(crops) > 10


def test_flips_and_turns() -> None:
    image = picture(1, 4, 4)
    turned = [np.rot90(image, k) for k in range(4)]
    everything = {np.ascontiguousarray(view).tobytes() for t in turned for view in (t, t[:, ::-1])}
    flips = {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}
    for flip, rotate, wanted in ((True, True, everything), (True, False, flips)):
        batch = random_batch([image], np.random.default_rng(0), batch=100, crop=4, flip=flip, rotate=rotate)
        views = {np.ascontiguousarray(np.round(c.transpose(1, 2, 0) * 255).astype(np.uint8)).tobytes() for c in batch}
        assert views == wanted


def test_a_crop_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a crop of 16 does not fit an image of 6x9"):
        random_batch([picture(1)], np.random.default_rng(0), batch=1, crop=16, flip=False, rotate=False)
