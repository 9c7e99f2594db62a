"""Pictures: image files and folders of them as arrays in [0, 1], and arrays as image files."""

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from invdiff.io.errors import BadInput
from invdiff.io.formats import DICOM, NIFTI

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *DICOM, *NIFTI)

# What Pillow may try; among the others it knows are scripts (EPS) and depths that it does not scale (JPEG 2000).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")
_EIGHT_BIT = {"1", "L", "RGB", "P", "LA", "RGBA", "PA"}
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I"}

# Tags of a TIFF file.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339

# What Pillow raises on damaged files, besides its own errors, which are OSErrors.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_picture(path: Path) -> np.ndarray:
    """One picture file as float32 [H, W, C] in [0, 1], C = 1 (grey) or 3 (colour), upright as its EXIF data says.

    8 and 16 bit, grey and colour, palettes, and float TIFF in [0, 1]. An alpha channel is dropped where it is opaque
    and refused where it is not; so is everything else that could only be read with a loss or a guess. A colour file
    whose channels are equal stays colour here; see `match_channels`.
    """
    try:
        # Opened here and not by Pillow, which would map the file and scramble uncompressed TIFF that lies on its side.
        with (
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as raw,
            Image.open(raw, formats=_FORMATS) as file,
        ):
            _refuse_lossy(file, path)
            image = np.asarray(_with_alpha(ImageOps.exif_transpose(file)))
            key = file.info.get("transparency")
    except BadInput:
        raise
    except _DAMAGED as error:
        raise BadInput(f"not an image: {path} ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    if image.dtype == np.uint16 and key is not None and (image == key).any():
        raise BadInput(f"the image has transparent parts: {path}; flatten it onto a background first")
    return _to_unit(image, path)


def _refuse_lossy(file: Image.Image, path: Path) -> None:
    """BadInput for files that Pillow opens with fewer bits than they have, or whose full scale nobody knows."""
    if file.mode not in _EIGHT_BIT | _SIXTEEN_BIT | {"F"}:
        raise BadInput(f"unsupported kind of image: {path} (mode {file.mode}); save it as grey or RGB")
    # A phone's MPO is a JPEG photograph followed by previews or depth maps: the first is the one that viewers show.
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":
        raise BadInput(f"several images in one file: {path} ({frames} frames); save the one you want")
    sixteen = file.mode in _SIXTEEN_BIT
    if file.format == "PNG":
        with path.open("rb") as raw:
            depth = raw.read(25)[24]  # the bit depth of the IHDR chunk, which always comes first
        if depth == 16 and not sixteen:
            raise BadInput(f"16-bit colour PNG cannot be read without loss: {path}; save it with 8 bits, or as grey")
    elif isinstance(file, TiffImageFile) and file.mode != "F":
        tags = file.tag_v2
        bits, signed = max(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}
        if bits > 8 and not sixteen:
            raise BadInput(
                f"{bits}-bit colour TIFF cannot be read without loss: {path}; save it with 8 bits, or as grey"
            )
        if sixteen and (bits != 16 or signed or tags.get(_PHOTOMETRIC, 1) != 1):
            kind = "signed" if signed else "inverted" if bits == 16 else f"{bits}-bit"
            raise BadInput(
                f"{kind} integer TIFF has no agreed full scale: {path}; save it as 16-bit unsigned or floats in [0, 1]"
            )


def _with_alpha(file: Image.Image) -> Image.Image:
    """Palettes resolved, and a transparent colour made an alpha channel, so that it is not mistaken for a colour."""
    transparent = "transparency" in file.info
    if file.mode == "1" and not transparent:
        return file.convert("L")
    if file.mode == "PA" or (transparent and file.mode in ("1", "L", "P", "RGB")):
        return file.convert("RGBA" if file.mode in ("P", "PA", "RGB") else "LA")
    return file.convert("RGB") if file.mode == "P" else file


def _to_unit(image: np.ndarray, path: Path) -> np.ndarray:
    """Integers by their full scale, floats as they are; alpha removed."""
    if image.dtype == np.uint8:
        scaled = image.astype(np.float32) / 255
    elif image.dtype.kind in "iu":
        if image.min() < 0 or image.max() > 65535:
            raise BadInput(f"integer image beyond 16 bits: {path} (values {image.min()} to {image.max()})")
        scaled = image.astype(np.float32) / 65535
    else:
        scaled = image.astype(np.float32)
        if not np.isfinite(scaled).all():
            raise BadInput(f"the image holds NaN or infinity: {path}")
        if scaled.min() < 0 or scaled.max() > 1:
            raise BadInput(f"a float image must lie in [0, 1]: {path} has {scaled.min():.3g} to {scaled.max():.3g}")
    if scaled.ndim == 2:
        scaled = scaled[..., None]
    if scaled.shape[-1] in (2, 4):
        if (scaled[..., -1] < 1).any():
            raise BadInput(f"the image has transparent parts: {path}; flatten it onto a background first")
        scaled = scaled[..., :-1]
    return scaled


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
            f"images differ in size: {first} is {a[0]}x{a[1]}, {second} is {b[0]}x{b[1]}; size=256 brings them to one"
        )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def image_files(source: str | Path) -> list[Path]:
    """The image files of a folder, sorted by name, hidden ones left out; or the one file."""
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
