"""True images: those of files, or an example, in the units, channels and size of a prior."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from invdiff.files.errors import BadInput
from invdiff.io.examples import drawn_from_prior
from invdiff.io.formats import stem
from invdiff.io.images import image_files, match_channels, square, to_tensor
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import read_slices
from invdiff.priors import Prior

ANY_SIZE = 128  # side of the images for a prior that takes any

Example = Callable[..., tuple[list[str], list[np.ndarray]]]  # of `prior` and `seed`


def true_images(
    prior: Prior,
    *,
    files: str | None = None,
    example: Example | None = None,
    slicing: Slicing | None = None,
    size: int | None = None,
    seed: int = 0,
    most: int | None = None,
) -> tuple[Tensor, list[str], list[str]]:
    """Images (B, C, H, W) in image units, their names, and notes on how files were read.

    files    a file or a folder
    example  gives names and images where there are no files
    slicing  of volumes
    size     the shorter side is resized to it and the centre cropped; None: as they are
    most     files to read; None: all

    Raises BadInput where images and prior do not match.
    """
    notes: list[str] = []
    if files is not None:
        names, images, notes = _read(files, slicing, most)
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
    reason = prior.mismatch(tuple(truth.shape[1:]))
    if reason is not None:
        hint = f"; size={prior.shape[-1]} resizes and crops" if prior.shape and truth.shape[1] == prior.shape[0] else ""
        raise BadInput(f"prior and image do not match: {reason}{hint}")
    return truth, names, notes


def _read(source: str, slicing: Slicing | None, most: int | None) -> tuple[list[str], list[np.ndarray], list[str]]:
    paths = image_files(source)[:most]
    found = [read_slices(path, slicing) for path in paths]
    names = [name for slices in found for name in slices.names]
    if len(set(names)) < len(names):  # a folder may hold a.png and a.jpg
        names = [f"{p.name}{n.removeprefix(stem(p))}" for p, s in zip(paths, found, strict=True) for n in s.names]
    images = [image for slices in found for image in slices.images]
    return names, images, [note for slices in found for note in slices.notes]


def images_to_check(
    prior: Prior, *, files: str | None, example: partial[Any], size: int | None, most: int, seed: int
) -> tuple[Tensor, list[str]]:
    """At most `most` images (N, C, H, W) of the size that a prior takes, in image units, and their names.

    example  where there are no files
    """
    drawn = files is None and example.func is drawn_from_prior
    side = size or (prior.shape[-1] if prior.shape is not None else ANY_SIZE)
    clean, names, _ = true_images(
        prior, files=files, example=example, size=None if drawn else side, seed=seed, most=most
    )
    if files is None and not drawn:  # photographs from 0 to 1
        low, high = prior.value_range
        clean = low + (high - low) * clean
    return clean[:most], names[:most]
