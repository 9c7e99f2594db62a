"""MATLAB's `.mat`: up to version 7 by SciPy, version 7.3, which is HDF5, by h5py."""

import math
from pathlib import Path

import numpy as np

from invdiff.files.choice import Choice
from invdiff.files.errors import reading
from invdiff.files.hdf5 import read_hdf5
from invdiff.files.limits import check_size

# MATLAB's numeric classes.
_NUMERIC = {"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}

_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_mat(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """Numeric arrays with the axes of MATLAB; structs, cells and sparse matrices are not listed."""
    with path.open("rb") as file:
        start = file.read(520)
    if start[512:] == _HDF5 or start[:8] == _HDF5:  # which stores the axes in reverse order
        return {name: array.transpose() for name, array in read_hdf5(path, choose).items()}
    from scipy.io import loadmat, whosmat  # slow to import, and most runs do not need it

    with reading(path, "MATLAB"):
        sizes = {
            name: 16 * math.prod(shape) for name, shape, kind in whosmat(path, appendmat=False) if kind in _NUMERIC
        }
        chosen = choose(list(sizes))
        check_size(sum(sizes[name] for name in chosen), path)
        return {
            name: array
            for name, array in loadmat(path, appendmat=False, variable_names=list(chosen)).items()
            if name in chosen
        }
