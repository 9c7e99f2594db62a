"""Masks: what of an image or of k-space was measured."""

import logging
from pathlib import Path

import numpy as np
from torch import Tensor

from invdiff.files.arrays import read_grey
from invdiff.files.errors import BadInput

log = logging.getLogger("invdiff")


def mask_values(mask: str | Path | Tensor | np.ndarray, what: str) -> np.ndarray:
    """The values of a mask that is given as an array or as a file, as `read_grey` reads it.

    what  begins messages, such as `inpainting: mask`
    """
    if isinstance(mask, (str, Path)):
        return read_grey(mask, what, "mask")
    return mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)


def as_measured(mask: np.ndarray, what: str) -> np.ndarray:
    """True where a mask says measured, in the shape of the mask.

    Of two values, one of them 0, the other one means measured. Any other real mask, such as one that was softened or
    stored as JPEG, is measured from half of its largest value on, which is logged as a warning. NaN is not measured.

    what  begins messages, such as `inpainting: mask`
    """
    if mask.dtype.kind == "b":
        return mask.copy()
    if mask.dtype.kind not in "fiu":
        raise BadInput(f"{what} must be real or boolean, got {mask.dtype}")
    known = np.nan_to_num(mask, nan=0.0) if mask.dtype.kind == "f" else mask
    values = np.unique(known)
    if len(values[values != 0]) <= 1:
        return known != 0
    half = values[-1] / 2
    kept: np.ndarray = known > half
    between = float(((known != 0) & (known != values[-1])).mean())
    log.warning(
        "%s has %d values, %.0f %% of them neither 0 nor %g; those above %g count as measured",
        what, len(values), 100 * between, values[-1], half,
    )  # fmt: skip
    return kept
