"""Training arrays in physical units: float `.npy` or `.npz` files, of any order of axes that can be told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from invdiff.files import read_array

Axes = Literal["NCHW", "NHWC"]
COLOURS = (1, 2, 3, 4)  # lengths of an axis that may be the channels


def is_fields(source: str | Path) -> bool:
    """True for a file of arrays that are no 8-bit pictures."""
    path = Path(source)
    return path.suffix in (".npy", ".npz") and path.is_file() and _stack(path).dtype != np.uint8


def read_fields(
    source: str | Path, *, channels: int, axes: Axes | None = None, value_range: Sequence[float] | None = None
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Fields as float32 (H, W, C), their range taken to 0 ... 255 as of pictures, and that range in their own units.

    source       (N, H, W), (N, C, H, W), (N, H, W, C), or signals (N, L), which become (1, L); in a .npz the array
                 `images`, or the only one
    channels     of the prior
    axes         of four-dimensional arrays; None: told by the axis of 1 to 4 entries
    value_range  in the units of the fields; None: from their least to their greatest value

    Raises ValueError for other arrays, values that are not finite, and constant fields.
    """
    path = Path(source)
    stack = _stack(path)
    if stack.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold real numbers, got {stack.dtype}")
    stack = _channels_last(stack, axes, path)
    if stack.shape[-1] != channels:
        raise ValueError(
            f"{path} has {stack.shape[-1]} channel(s), the prior {channels}; set recipe.unet.channels or "
            f"mixture.channels to {stack.shape[-1]}"
        )
    fields = stack.astype(np.float32)
    if not len(fields) or not np.isfinite(fields).all():
        raise ValueError(f"{path} must hold finite numbers, got {'NaN or infinity' if len(fields) else 'no fields'}")
    low, high = (float(fields.min()), float(fields.max())) if value_range is None else map(float, value_range)
    if not low < high:
        raise ValueError(f"value_range of {path} must be [low, high] with low < high, got [{low:g}, {high:g}]")
    return list((fields - np.float32(low)) * np.float32(255 / (high - low))), (low, high)


def _stack(path: Path) -> np.ndarray:
    return read_array(path, "data", "images")


def _channels_last(stack: np.ndarray, axes: Axes | None, path: Path) -> np.ndarray:
    if stack.ndim == 2:
        return stack[:, None, :, None]
    if stack.ndim == 3:
        return stack[..., None]
    if stack.ndim != 4:
        raise ValueError(f"{path} must be (N, H, W), (N, C, H, W), (N, H, W, C) or (N, L), got {stack.shape}")
    first, last = stack.shape[1] in COLOURS, stack.shape[3] in COLOURS
    if axes is None and first == last:
        raise ValueError(
            f"{path} has the shape {stack.shape}: which axis are the channels? give axes=NCHW or axes=NHWC"
        )
    return stack.transpose(0, 2, 3, 1) if axes == "NCHW" or (axes is None and first) else stack
