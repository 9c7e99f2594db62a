"""Measurement files: arrays, image-like data of scanners, and raw k-space, with what they say of the operator."""

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from invdiff.io.errors import BadInput, must_be_a_file
from invdiff.io.formats import ARRAYS, DICOM, HDF5, NIFTI, is_dicom, is_nifti
from invdiff.io.measurement import PARAMETERS, Measurement
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import read_slices

MEASUREMENT_SUFFIXES = (*ARRAYS, *HDF5, *DICOM, *NIFTI)


def load_measurement(
    path: str | Path,
    *,
    parameters: Collection[str] = PARAMETERS,
    slicing: Slicing | None = None,
    size: int | None = None,
    allow_nan: bool = False,
) -> Measurement:
    """A measurement with all that its file knows about it.

    Arrays   `.npy`, `.npz` (array `y`, or the only one beside the parameters), `.pt` (a tensor, or several likewise)
    k-space  `.h5` as of fastMRI, see `read_kspace`
    Images   DICOM and NIfTI, see `read_slices`: for operators that measure images, such as `super_resolution`

    parameters  names of the operator's parameters to look for
    slicing     which slices of a volume or of k-space; the middle one where not given
    size        of k-space: lower the resolution to this many pixels a side
    allow_nan   let NaN pass, as a mark of what was not measured; `InverseProblem` knows whether that is so
    """
    path = Path(path)
    must_be_a_file(path, "a measurement")
    name = path.name.lower()
    if name.endswith(HDF5):
        from invdiff.io.kspace import read_kspace

        return read_kspace(path, slicing or Slicing(), parameters, size)
    if name.endswith(ARRAYS):
        return _read_arrays(path, parameters, allow_nan)
    if is_nifti(path) or is_dicom(path):
        found = read_slices(path, slicing)
        y = torch.from_numpy(np.stack(found.images)).permute(0, 3, 1, 2).contiguous()
        return Measurement(y, names=found.names, notes=found.notes)
    raise BadInput(f"a measurement is a {', '.join(MEASUREMENT_SUFFIXES)} file, got {path}; pictures go in input=")


def read_measurement(path: str | Path, *, allow_nan: bool = False) -> Tensor:
    """The y of `load_measurement` alone."""
    return load_measurement(path, parameters=(), allow_nan=allow_nan).y


def _read_arrays(path: Path, parameters: Collection[str], allow_nan: bool) -> Measurement:
    try:
        load = _load_tensors if path.suffix.lower() == ".pt" else _load_arrays
        arrays = load(path, parameters)
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        KeyError,
        TypeError,
        BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        words = (str(error) or "it ends too early").splitlines()[0].partition(". ")[0]
        reason = _SAFE if isinstance(error, pickle.UnpicklingError) else words
        raise BadInput(f"the measurement cannot be read: {path} ({reason})") from error
    found = {name: torch.from_numpy(np.ascontiguousarray(arrays.pop(name))) for name in parameters if name in arrays}
    (array,) = arrays.values()
    if array.dtype.kind not in "fciub":
        raise BadInput(f"the measurement must be numeric: {path} holds {array.dtype}")
    if array.size == 0:
        raise BadInput(f"the measurement is empty: {path} has the shape {array.shape}")
    with np.errstate(over="ignore"):  # what becomes infinite in float32 is told below
        y = torch.from_numpy(array.astype(np.complex64 if array.dtype.kind == "c" else np.float32))
    bad = y.isinf() if allow_nan else ~y.isfinite()
    if bad.any():
        raise BadInput(f"the measurement holds {int(bad.sum())} NaN or infinite value(s): {path}")
    notes = [f"{path}: its {name} goes to the operator" for name in found]
    return Measurement(y, found, notes=notes)


_SAFE = "only plain arrays and tensors are loaded, nothing that could run code"


def _load_arrays(path: Path, parameters: Collection[str]) -> dict[str, np.ndarray]:
    """The measurement as `y`, and the parameters that there are."""
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] != b"PK" and start != b"\x93NUMPY":
        # NumPy would take it for a pickle and advise to load it as one.
        raise ValueError(f"it is no NumPy file; {_SAFE}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"y": loaded}
        with loaded:
            chosen = _choose(loaded.files, parameters)
            return {key: loaded[name] for key, name in chosen.items()}
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"it holds Python objects; {_SAFE}") from error
        raise


def _choose(names: Collection[str], parameters: Collection[str]) -> dict[str, str]:
    """Which arrays of a file are the measurement, `y`, and the parameters."""
    others = [name for name in names if name not in PARAMETERS or len(names) == 1]
    if "y" not in names and len(others) != 1:
        raise ValueError(f"it has the arrays {', '.join(names) or 'none'}; name the measurement 'y'")
    return {"y": "y" if "y" in names else others[0], **{name: name for name in parameters if name in names}}


def _load_tensors(path: Path, parameters: Collection[str]) -> dict[str, np.ndarray]:
    with warnings.catch_warnings(action="ignore"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        return {"y": _as_array(loaded)}
    chosen = _choose([str(key) for key in loaded], parameters)
    return {key: _as_array(loaded[name]) for key, name in chosen.items()}


def _as_array(loaded: object) -> np.ndarray:
    if not isinstance(loaded, Tensor):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a tensor")
    if loaded.layout != torch.strided or loaded.is_quantized:
        raise ValueError("it holds a sparse or quantised tensor, not a dense one")
    if loaded.dtype == torch.bfloat16:  # which NumPy does not know
        loaded = loaded.float()
    return loaded.detach().resolve_conj().resolve_neg().numpy()
