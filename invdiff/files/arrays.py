"""One table of readers for whatever holds arrays: measurements, masks, kernels, coil maps."""

from pathlib import Path

import numpy as np

from invdiff.files.bart import read_cfl
from invdiff.files.choice import Choice, only
from invdiff.files.errors import BadInput, must_be_a_file
from invdiff.files.hdf5 import read_hdf5
from invdiff.files.matlab import read_mat
from invdiff.files.numpy_files import read_numpy, read_pt
from invdiff.files.pictures import PICTURES, read_pixels
from invdiff.files.text import read_text
from invdiff.files.tiff import TIFF, count_pages, read_stack

HDF5 = (".h5", ".hdf5")


def _read_tiff(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    return (read_stack if is_stack(path) else read_pixels)(path, choose)


READERS = {
    ".npy": read_numpy,
    ".npz": read_numpy,
    ".pt": read_pt,
    ".mat": read_mat,
    ".csv": read_text,
    ".txt": read_text,
    ".cfl": read_cfl,
    ".hdr": read_cfl,
    **dict.fromkeys(HDF5, read_hdf5),
    **dict.fromkeys(TIFF, _read_tiff),
    **dict.fromkeys(PICTURES, read_pixels),
}
"""From the suffix of a file to the function that reads its arrays."""

ARRAYS = tuple(suffix for suffix in READERS if suffix not in (*TIFF, *PICTURES, *HDF5))


def split_name(file: str | Path) -> tuple[Path, str | None]:
    """`scan.h5:/raw/k` as path and name of an array; the name is None where only a path is given."""
    before, colon, name = str(file).rpartition(":")
    if colon and Path(before).suffix.lower() in (".npz", ".pt", ".mat", *HDF5) and not Path(file).exists():
        return Path(before), name.strip("/")
    return Path(file), None


def read_arrays(file: str | Path, choose: Choice) -> dict[str, np.ndarray]:
    """The chosen arrays of a file, whatever its kind; one without a name is ''. Raises BadInput, in one line."""
    path, _ = split_name(file)
    must_be_a_file(path, "a file of numbers")
    if path.suffix.lower() not in READERS:
        raise BadInput(f"{path} must be one of {', '.join(READERS)}")
    found = READERS[path.suffix.lower()](path, choose)
    return {name: _native(array) for name, array in found.items()}


def _native(array: np.ndarray) -> np.ndarray:
    """Contiguous and in the byte order of this machine, which torch wants."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def read_array(file: str | Path, what: str, name: str) -> np.ndarray:
    """One array: that whose name follows the file (`masks.npz:left`), else the one called `name`, else the only one.

    what  begins the message of BadInput, such as `blur: kernel`
    """
    try:
        (array,) = read_arrays(file, only(name, split_name(file)[1])).values()
    except BadInput as error:
        raise BadInput(f"{what}: {error}") from error
    if array.dtype.kind not in "fciub":
        raise BadInput(f"{what} must be numeric: {file} holds {array.dtype}")
    if array.size == 0:
        raise BadInput(f"{what} is empty: {file} has the shape {array.shape}")
    return array


def read_grey(file: str | Path, what: str, name: str) -> np.ndarray:
    """As `read_array`; of one picture in colour the mean of its channels, (H, W)."""
    array = read_array(file, what, name)
    colour = array.ndim == 3 and is_picture(file) and not is_stack(file)
    return array.mean(0) if colour else array


def is_picture(file: str | Path) -> bool:
    """Whether values are grey levels, of one picture or of a stack, without a unit of their own."""
    return str(file).lower().endswith((*PICTURES, *TIFF))


def is_stack(file: str | Path) -> bool:
    """Whether a file is a TIFF of several pages, the images of an array."""
    return str(file).lower().endswith(TIFF) and count_pages(Path(file)) > 1
