"""Pictures: folders of image files as arrays of one size, and arrays as image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.files.errors import BadInput
from invdiff.io.formats import DICOM, NIFTI

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *DICOM, *NIFTI)


def match_channels(image: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """[H, W, C] with the channels a prior knows; a colour file with three equal channels passes as grey."""
    if channels is None or image.shape[-1] == channels:
        return image
    if channels == 1 and image.shape[-1] == 3 and np.ptp(image, axis=-1).max() == 0:
        return image[..., :1]
    kinds = {1: "grey", 3: "colour"}
    raise BadInput(
        f"prior and image do not match: {name} is {kinds[image.shape[-1]]} ({image.shape[-1]} channels), "
        f"the prior knows {kinds.get(channels, 'images')} ({channels} channels); choose another prior= or convert it"
    )


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The shorter side resized to `size` with antialiasing, then the centre cropped to size x size."""
    from skimage.transform import resize  # slow to import, and most runs do not need it

    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        image = resize(
            image, (max(size, round(height * scale)), max(size, round(width * scale))), anti_aliasing=scale < 1
        )
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size].clip(0, 1).astype(np.float32)


def to_tensor(images: Sequence[np.ndarray], names: Sequence[str]) -> Tensor:
    """[H, W, C] arrays of one size as (B, C, H, W)."""
    sizes: dict[tuple[int, ...], str] = {}
    for image, name in zip(images, names, strict=True):
        sizes.setdefault(image.shape[:2], name)
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise BadInput(
            f"images differ in size: {first} is {a[0]}x{a[1]}, {second} is {b[0]}x{b[1]}; size=256 brings those of "
            "input= to one, and a prior for images of any size takes each as it is"
        )
    channels = {image.shape[-1]: name for image, name in zip(images, names, strict=True)}
    if len(channels) > 1:
        (a, first), (b, second) = list(channels.items())[:2]
        raise BadInput(f"images differ in colour: {first} has {a} channel(s), {second} {b}; save them alike")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def image_files(source: str | Path | Sequence[str]) -> list[Path]:
    """The image files of a folder, sorted by name, hidden ones left out; or the one file, or those of a list."""
    if not isinstance(source, (str, Path)):
        return [Path(file) for file in source]
    source = Path(source)
    if source.is_dir():
        found = sorted(
            p
            for p in source.iterdir()
            if p.name.lower().endswith(SUFFIXES) and p.is_file() and not p.name.startswith(".")
        )
        if not found:
            raise BadInput(f"no images in {source}; known suffixes: {', '.join(SUFFIXES)}")
        return found
    if not source.exists():
        raise BadInput(f"no such file or folder: {source}")
    return [source]


def write_image(path: str | Path | BinaryIO, image: Tensor) -> None:
    """(C, H, W) in [0, 1], values outside clamped, as an 8-bit PNG; grey or RGB; into an open file or a new one.

    Raises OSError, naming the file, where it cannot be written.
    """
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    try:
        Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(path, "PNG")
    except OSError as error:
        if isinstance(path, (str, Path)):
            error.filename = error.filename or str(path)  # Pillow names it only where it cannot be opened
        raise
