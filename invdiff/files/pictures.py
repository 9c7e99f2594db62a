"""Pictures as arrays in [0, 1], and Pillow restricted to formats that hold pictures alone."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from invdiff.files.choice import Choice
from invdiff.files.errors import BadInput
from invdiff.files.limits import check_size
from invdiff.files.tiff import float_pixels

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")

# What Pillow may try; among the others it knows are scripts (EPS) and depths that it does not scale (JPEG 2000).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM")
_EIGHT_BIT = {"1", "L", "RGB", "P", "LA", "RGBA", "PA"}
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I"}

# Tags of a TIFF file.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339

# What Pillow raises on damaged files, besides its own errors, which are OSErrors.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def opened_picture(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """The open file; whatever Pillow raises on it becomes one line.

    data  the contents, where the path only names them, such as a member of an archive
    """
    try:
        # Opened here and not by Pillow, which would map the file and scramble uncompressed TIFF that lies on its side.
        with (
            warnings.catch_warnings(action="ignore"),
            BytesIO(data) if data is not None else path.open("rb") as raw,
            Image.open(raw, formats=_FORMATS) as file,
        ):
            size = 4 * len(file.getbands()) * file.width * file.height
            check_size(size, path, stored=None if data is None else len(data))
            yield file
    except BadInput:
        raise
    except _DAMAGED as error:
        raise BadInput(f"not an image: {path} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    words = (str(error) or type(error).__name__).splitlines()[0]
    return "no PNG, JPEG, TIFF, BMP, WebP or GIF" if words.startswith("cannot identify image file") else words


def read_picture(path: Path) -> np.ndarray:
    """One picture file as float32 [H, W, C] in [0, 1], C = 1 (grey) or 3 (colour), upright as its EXIF data says.

    8 and 16 bit, grey and colour, palettes, and float TIFF in [0, 1]. An alpha channel is dropped where it is opaque
    and refused where it is not; so is everything else that could only be read with a loss or a guess. A colour file
    whose channels are equal stays colour here; see `match_channels`.
    """
    values, full = read_levels(path)
    return to_unit(values, full, path)


def to_unit(values: np.ndarray, full: int | None, path: Path) -> np.ndarray:
    """Values of `read_levels` in [0, 1]; floats must lie there."""
    if full is not None:
        return values / np.float32(full)
    if not np.isfinite(values).all():
        raise BadInput(f"the image holds NaN or infinity: {path}")
    if values.min() < 0 or values.max() > 1:
        raise BadInput(
            f"a float image must lie in [0, 1]: {path} has {values.min():.3g} to {values.max():.3g}; "
            "volume.window=[centre, width] scales it"
        )
    return values


def read_levels(path: Path) -> tuple[np.ndarray, int | None]:
    """A picture as `read_picture` takes it, [H, W, C], with the values of its file, and their full scale.

    The full scale is 255 or 65535, None for floats, which have none.
    """
    values = float_pixels(path)
    if values is None:
        with opened_picture(path) as file:
            _refuse_lossy(file, path)
            values = np.asarray(_with_alpha(ImageOps.exif_transpose(file)))
            key = file.info.get("transparency")
        if values.dtype == np.uint16 and key is not None and (values == key).any():
            raise BadInput(f"the image has transparent parts: {path}; flatten it onto a background first")
    full = {"b": 1, "u": 65535, "i": 65535}.get(values.dtype.kind)
    if values.dtype == np.uint8:
        full = 255
    elif values.dtype.kind in "iu" and (values.min() < 0 or values.max() > 65535):
        raise BadInput(f"integer image beyond 16 bits: {path} (values {values.min()} to {values.max()})")
    values = values.astype(np.float32).reshape(*values.shape[:2], -1)
    if values.shape[-1] in (2, 4):
        if (values[..., -1] < (full or 1)).any():
            raise BadInput(f"the image has transparent parts: {path}; flatten it onto a background first")
        values = values[..., :-1]
    return values, full


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture that stands upright, from its header."""
    pixels = float_pixels(path)
    if pixels is not None:
        return pixels.shape[0], pixels.shape[1]
    with opened_picture(path) as file:
        turned = file.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (file.width, file.height) if turned else (file.height, file.width)


def read_pixels(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """A picture as an array, (H, W) or (C, H, W): integers by their full scale in [0, 1], floats as they are."""
    choose([""])
    values, full = read_levels(path)
    values = np.moveaxis(values if full is None else values / np.float32(full), -1, 0)
    return {"": values[0] if len(values) == 1 else values}


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
