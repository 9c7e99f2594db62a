"""TIFF files that Pillow cannot read: floats of any width and colour, and stacks of pages."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.files.choice import Choice
from invdiff.files.errors import BadInput, reading
from invdiff.files.limits import check_size

TIFF = (".tif", ".tiff")
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FULL = {"|u1": 255, "<u2": 65535}  # of the kinds of integers whose full scale is agreed


@contextmanager
def _pages(path: Path) -> Iterator[list[Any]]:
    """The pages of the file, whose reading stays within it: OME metadata may name other files."""
    import tifffile  # slow to import, and most runs do not need it

    with reading(path, "TIFF"), tifffile.TiffFile(path, _multifile=False) as file:
        yield list(file.pages)


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _STARTS


def float_pixels(path: Path) -> np.ndarray | None:
    """[H, W, C] of a TIFF of one page with floats that Pillow does not know; None for every other file."""
    if not _is_tiff(path):
        return None
    with warnings.catch_warnings(action="ignore"):
        try:
            with _pages(path) as pages:
                page = pages[0]
                if len(pages) > 1 or page.dtype.kind != "f" or (page.dtype.itemsize == 4 and len(page.shape) == 2):
                    return None
                return _pixels(page, path)
        except BadInput as error:
            if isinstance(error.__cause__, Exception) and "cannot be read" in str(error):
                return None  # a damaged file, of which Pillow gives the reason
            raise


def _pixels(page: Any, path: Path) -> np.ndarray:
    """[H, W, C] of one page."""
    check_size(page.size * page.dtype.itemsize, path)
    pixels: np.ndarray = page.asarray()
    if pixels.ndim == 3 and page.planarconfig == 2:  # colour by colour
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise BadInput(f"unsupported kind of TIFF: {path} has pages of {'x'.join(map(str, pixels.shape))}")
    return pixels.reshape(*pixels.shape[:2], -1)


def read_stack(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """A TIFF of several pages as an array, (pages, H, W) or (pages, C, H, W): integers in [0, 1], floats as they are.

    Pages of several sizes or kinds are refused, and integers without an agreed full scale.
    """
    choose([""])
    with _pages(path) as pages:
        kinds = {(page.shape, page.dtype) for page in pages}
        if len(kinds) > 1:
            raise BadInput(f"the pages of {path} differ in size or kind; save the ones you want")
        full = _FULL.get(pages[0].dtype.str) if pages[0].dtype.kind != "f" else 1
        if full is None:
            raise BadInput(f"{pages[0].dtype} TIFF has no agreed full scale: {path}; save it as floats")
        check_size(len(pages) * pages[0].size * 4, path)
        stack = np.moveaxis(np.stack([_pixels(page, path) for page in pages]).astype(np.float32) / full, -1, 1)
    return {"": stack[:, 0] if stack.shape[1] == 1 else stack}


def count_pages(path: Path) -> int:
    with _pages(path) as pages:
        return len(pages)
