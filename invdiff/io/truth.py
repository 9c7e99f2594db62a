"""True images: those of files, or an example, in the units, channels and size of a prior."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from invdiff.files import ARRAYS, HDF5, BadInput, read_array, split_name
from invdiff.io.examples import drawn_from_prior
from invdiff.io.images import image_files, match_channels, square, to_tensor
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import read_files
from invdiff.priors import Prior

ANY_SIZE = 128  # side of the images for a prior that takes any

Example = Callable[..., tuple[list[str], list[np.ndarray]]]  # of `prior` and `seed`


class TrueImages(NamedTuple):
    """Images (B, C, H, W) in image units, their names, and notes on how files were read.

    units  (scale, offset) of each: image * scale + offset has the unit of its file; None: it is not known
    """

    images: Tensor
    names: list[str]
    notes: list[str]
    units: list[tuple[float, float] | None]


def true_images(
    prior: Prior,
    *,
    files: str | Sequence[str] | None = None,
    example: Example | None = None,
    slicing: Slicing | None = None,
    size: int | None = None,
    seed: int = 0,
    most: int | None = None,
) -> TrueImages:
    """Images in the units, channels and size of a prior.

    files    a file, several or a folder; the `x` of a file of arrays, or its only one, is in image units already
    example  gives names and images where there are no files
    slicing  of volumes
    size     the shorter side is resized to it and the centre cropped; None: as they are
    most     files to read; None: all

    Raises BadInput where images and prior do not match.
    """
    notes: list[str] = []
    units: list[tuple[float, float] | None] = []
    if isinstance(files, str) and split_name(files)[0].name.lower().endswith((*ARRAYS, *HDF5)):
        return _from_arrays(files, prior, size, most)
    if files is not None:
        found = read_files(image_files(files)[:most], slicing)
        names, images, notes, units = found.names, found.images, found.notes, found.units
    elif example is not None:
        names, images = example(prior=prior, seed=seed)
    else:
        raise BadInput("give input=, a file or a folder, or data=, an example")
    try:
        images = [match_channels(image, prior.channels, name) for image, name in zip(images, names, strict=True)]
    except BadInput as error:
        if files is not None or prior.shape is None:
            raise
        raise BadInput(f"{error}; data=generated draws one from the prior itself") from error
    if size is not None:
        images = [square(image, size) for image in images]
    truth = to_tensor(images, names)
    if files is not None:
        low, high = prior.value_range
        truth = low + (high - low) * truth
        slopes = [None if u is None else (u[0] / (high - low), u[1]) for u in units]
        units = [None if u is None else (u[0], u[1] - low * u[0]) for u in slopes]
    _check(truth, prior)
    return TrueImages(truth, names, notes, units or [None] * len(names))


def _check(truth: Tensor, prior: Prior) -> None:
    reason = prior.mismatch(tuple(truth.shape[1:]))
    if reason is not None:
        hint = f"; size={prior.shape[-1]} resizes and crops" if prior.shape and truth.shape[1] == prior.shape[0] else ""
        raise BadInput(f"prior and image do not match: {reason}{hint}")


def _from_arrays(file: str, prior: Prior, size: int | None, most: int | None) -> TrueImages:
    """(B, C, H, W), or without the axes for images and for the channel of grey ones, or with channels last."""
    array = read_array(file, "images", "x")
    if array.dtype.kind == "c" or array.ndim not in (2, 3, 4) or not np.isfinite(array).all():
        raise BadInput(f"images must be finite real numbers (B, C, H, W), got {array.dtype} {array.shape}: {file}")
    known = (prior.channels,) if prior.channels is not None else (1, 2, 3)
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3:  # one image with channels, or grey ones
        array = array[None] if array.shape[0] in known or array.shape[-1] in known else array[:, None]
    if array.shape[1] not in known and array.shape[-1] in known:
        array = np.moveaxis(array, -1, 1)
    images = torch.from_numpy(np.ascontiguousarray(array[:most], np.float32))
    if size is not None and images.shape[-2:] != (size, size):
        raise BadInput(f"size= resizes pictures, not arrays: {file} holds {'x'.join(map(str, images.shape[-2:]))}")
    _check(images, prior)
    stem_, count = Path(split_name(file)[0]).stem, len(images)
    names = [stem_] if count == 1 else [f"{stem_}_{i:03d}" for i in range(count)]
    return TrueImages(images, names, [f"{file}: images in image units, as they are"], [(1.0, 0.0)] * count)


def images_to_check(
    prior: Prior, *, files: str | None, example: partial[Any], size: int | None, most: int, seed: int
) -> tuple[Tensor, list[str]]:
    """At most `most` images (N, C, H, W) of the size that a prior takes, in image units, and their names.

    example  where there are no files
    """
    drawn = files is None and example.func is drawn_from_prior
    side = size or (prior.shape[-1] if prior.shape is not None else ANY_SIZE)
    clean, names, *_ = true_images(
        prior, files=files, example=example, size=None if drawn else side, seed=seed, most=most
    )
    if files is None and not drawn:  # photographs from 0 to 1
        low, high = prior.value_range
        clean = low + (high - low) * clean
    return clean[:most], names[:most]
