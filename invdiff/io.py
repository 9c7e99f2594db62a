"""Reading what users have and writing what they look at: images, folders of images, measurements."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from skimage.transform import resize
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MEASUREMENT_SUFFIXES = (".npy", ".npz", ".pt")

# What Pillow opens without loss; 16-bit colour files would silently lose half of their bits.
_EIGHT_BIT = {"1", "L", "RGB", "P", "LA", "RGBA", "PA"}
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I"}


class BadInput(ValueError):
    """Something a user gave cannot be used; the message is one line that says what and what to do."""


def read_image(path: str | Path) -> np.ndarray:
    """One image file as float32 [H, W, C] in [0, 1], C = 1 (grey) or 3 (colour).

    8 and 16 bit, grey and colour, palettes, and float TIFF in [0, 1]. An alpha channel is dropped where it is opaque
    and refused where it is not. A colour file whose channels are equal stays colour here; see `match_channels`.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    try:
        with Image.open(path) as file:
            _refuse_lossy(file, path)
            image = np.asarray(_without_palette(file))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise BadInput(f"not an image: {path} ({str(error).splitlines()[0]})") from error
    return _to_unit(image, path)


def _refuse_lossy(file: Image.Image, path: Path) -> None:
    if file.format == "PNG" and file.mode in ("RGB", "RGBA"):
        with path.open("rb") as raw:
            depth = raw.read(25)[24]  # the bit depth of the IHDR chunk, which always comes first
        if depth == 16:
            raise BadInput(f"16-bit colour PNG cannot be read without loss: {path}; save it with 8 bits, or as grey")
    if file.mode not in _EIGHT_BIT | _SIXTEEN_BIT | {"F"}:
        raise BadInput(f"unsupported kind of image: {path} (mode {file.mode}); save it as grey or RGB")
    if getattr(file, "n_frames", 1) > 1:
        raise BadInput(f"several images in one file: {path} ({file.n_frames} frames); save the one you want")


def _without_palette(file: Image.Image) -> Image.Image:
    if file.mode == "1":
        return file.convert("L")
    if file.mode in ("P", "PA"):
        return file.convert("RGBA" if "transparency" in file.info or file.mode == "PA" else "RGB")
    return file


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
        f"the prior knows {kinds.get(channels, 'images')} ({channels} channels); choose another prior= or convert the image"
    )


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The shorter side resized to `size` with antialiasing, then the centre cropped to size x size."""
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
    sizes = {image.shape[:2]: name for image, name in zip(images, names, strict=True)}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise BadInput(
            f"images differ in size: {first} is {a[0]}x{a[1]}, {second} is {b[0]}x{b[1]}; size=256 brings them to one"
        )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def image_files(source: str | Path) -> list[Path]:
    """The image files of a folder, sorted by name, or the one file."""
    source = Path(source)
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise BadInput(f"no images in {source}; known suffixes: {', '.join(SUFFIXES)}")
        return found
    if not source.exists():
        raise BadInput(f"no such file or folder: {source}")
    return [source]


def read_measurement(path: str | Path) -> Tensor:
    """A measurement from `.npy`, `.npz` (array `y`, or the only one) or `.pt` (one tensor); float32 or complex64."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    if path.suffix not in MEASUREMENT_SUFFIXES:
        raise BadInput(f"a measurement is a {', '.join(MEASUREMENT_SUFFIXES)} file, got {path}; images go in input=")
    try:
        array = _load_array(path)
    except (OSError, ValueError, EOFError, RuntimeError, KeyError) as error:
        raise BadInput(f"the measurement cannot be read: {path} ({str(error).splitlines()[0]})") from error
    if array.dtype.kind not in "fciub":
        raise BadInput(f"the measurement must be numeric: {path} holds {array.dtype}")
    y = torch.from_numpy(array.astype(np.complex64 if array.dtype.kind == "c" else np.float32))
    if not y.isfinite().all():
        raise BadInput(f"the measurement holds {int((~y.isfinite()).sum())} NaN or infinite value(s): {path}")
    return y


def _load_array(path: Path) -> np.ndarray:
    if path.suffix == ".pt":
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Tensor):
            raise ValueError(f"it holds a {type(loaded).__name__}, not a tensor")
        return loaded.resolve_conj().numpy()
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    names = loaded.files
    if "y" not in names and len(names) != 1:
        raise ValueError(f"it has the arrays {', '.join(names)}; name the measurement 'y'")
    return loaded["y" if "y" in names else names[0]]


def write_image(path: str | Path, image: Tensor) -> None:
    """(C, H, W) in [0, 1], values outside clamped, as an 8-bit PNG; grey or RGB."""
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(path)
