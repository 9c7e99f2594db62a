"""Training images: a folder, a `.npz` or a `.tar` of images, and random crops of them."""

import tarfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from invdiff.files import only, opened_picture, read_arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def read_images(source: str | Path, *, channels: int, pad_to: int | None = None) -> list[np.ndarray]:
    """All images of a folder, a `.npz` (array `images`, uint8 [N, H, W] or [N, H, W, C]) or a `.tar`.

    channels  1 converts to grey, 3 to RGB
    pad_to    zero-pad smaller images to this height and width, centred

    Returns uint8 arrays [H, W, C]. Raises ValueError if there are none or one cannot be read.
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
        images = [_decode(p.read_bytes(), str(p), channels) for p in files]
    elif source.suffix in (".npz", ".tar"):
        try:
            images = _read_npz(source, channels) if source.suffix == ".npz" else _read_tar(source, channels)
        except (tarfile.TarError, BadZipFile, EOFError) as error:
            raise ValueError(f"not a {source.suffix} file, or a damaged one: {source} ({error})") from error
    else:
        raise ValueError(f"data must be a folder, a .npz or a .tar of images, got {source}")
    if not images:
        raise ValueError(f"no images in {source}; known suffixes: {', '.join(SUFFIXES)}")
    return images if pad_to is None else [_pad(image, pad_to) for image in images]


def _decode(data: bytes, name: str, channels: int) -> np.ndarray:
    with opened_picture(Path(name), data) as file:
        image = np.asarray(file.convert("L" if channels == 1 else "RGB"))
    return image.reshape(*image.shape[:2], channels)


def _read_npz(source: Path, channels: int) -> list[np.ndarray]:
    (stack,) = read_arrays(source, only("images", "images")).values()
    if stack.ndim == 3:
        stack = stack[..., None]
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != channels:
        raise ValueError(f"images in {source} must be uint8 [N, H, W, {channels}], got {stack.dtype} {stack.shape}")
    return list(stack)


def _read_tar(source: Path, channels: int) -> list[np.ndarray]:
    images = []
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                file = archive.extractfile(member)
                assert file is not None  # a regular file always has contents
                images.append(_decode(file.read(), f"{source}:{member.name}", channels))
    return images


def _pad(image: np.ndarray, size: int) -> np.ndarray:
    rows, columns = size - image.shape[0], size - image.shape[1]
    if rows < 0 or columns < 0:
        raise ValueError(f"cannot pad an image of {image.shape[0]}x{image.shape[1]} to {size}x{size}")
    return np.pad(image, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))


def split(images: Sequence[np.ndarray], held_out: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and validation part: every k-th image is held out, `held_out` of them, the same at every call."""
    if not 0 < held_out < len(images):
        raise ValueError(f"cannot hold out {held_out} of {len(images)} images for validation")
    chosen = set(np.linspace(0, len(images) - 1, held_out).round().astype(int).tolist())
    return [x for i, x in enumerate(images) if i not in chosen], [images[i] for i in sorted(chosen)]


def channel_means(images: Sequence[np.ndarray]) -> list[float]:
    """Mean of every channel over images of any sizes, each of the same weight, in [0, 1]."""
    return (np.mean([image.mean((0, 1)) for image in images], 0) / 255).tolist()


def random_batch(
    images: Sequence[np.ndarray], rng: np.random.Generator, *, batch: int, crop: int, flip: bool, rotate: bool
) -> np.ndarray:
    """A batch of random square crops, float32 [batch, C, crop, crop] in [0, 1].

    flip    mirror left and right with probability one half
    rotate  turn by a random multiple of 90 degrees
    """
    patches = []
    for index in rng.integers(len(images), size=batch):
        image = images[index]
        if min(image.shape[:2]) < crop:
            raise ValueError(f"a crop of {crop} does not fit an image of {image.shape[0]}x{image.shape[1]}")
        top = rng.integers(image.shape[0] - crop + 1)
        left = rng.integers(image.shape[1] - crop + 1)
        patch = image[top : top + crop, left : left + crop]
        if flip and rng.random() < 0.5:
            patch = patch[:, ::-1]
        if rotate:
            patch = np.rot90(patch, int(rng.integers(4)))
        patches.append(patch)
    return np.stack(patches).transpose(0, 3, 1, 2).astype(np.float32) / 255
