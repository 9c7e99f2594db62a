"""Measurement files: arrays, pictures, image-like data of scanners, raw k-space, with what they say of the operator.

Pictures are y itself, as a camera gives it; `true_images` reads those that an operator is still to measure.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.files import ARRAYS, HDF5, BadInput, Choice, is_picture, is_stack, must_be_a_file, read_arrays, split_name
from invdiff.files.pictures import PICTURES
from invdiff.files.tiff import TIFF
from invdiff.io.formats import DICOM, NIFTI, is_dicom, is_nifti
from invdiff.io.images import image_files, match_channels, to_tensor
from invdiff.io.kspace import is_kspace, read_kspace
from invdiff.io.measurement import PARAMETERS, Measurement
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import read_files

MEASUREMENT_SUFFIXES = (*ARRAYS, *HDF5, *DICOM, *NIFTI, *PICTURES, *TIFF)


def load_measurement(
    path: str | Path | Sequence[str],
    *,
    parameters: Collection[str] = PARAMETERS,
    slicing: Slicing | None = None,
    size: int | None = None,
    allow_nan: bool = False,
    of_coils: bool = False,
    grey: bool = False,
) -> Measurement:
    """A measurement with all that its file knows about it.

    Arrays   `.npy`, `.npz`, `.pt`, `.mat`, `.h5` (the one that the path is followed by, `y.h5:/scan/y`, else `y`, or
             the only one beside the parameters), `.csv`, `.txt`, BART's `.cfl`, TIFF of several pages
    Pictures a file, several or a folder: integers by their full scale in [0, 1], floats as they are
    k-space  `.h5` as of fastMRI or ISMRMRD, see `read_kspace`
    Scanners DICOM and NIfTI, see `read_slices`: for operators that measure images, such as `super_resolution`

    parameters  names of the operator's parameters to look for
    slicing     which slices of a volume or of k-space; the middle one where not given
    size        of k-space: lower the resolution to this many pixels a side
    allow_nan   let NaN pass, as a mark of what was not measured; `InverseProblem` knows whether that is so
    of_coils    k-space of three axes is (coils, H, W), and not (slices, H, W): the operator has coils
    grey        three equal channels of a picture are one
    """
    if not isinstance(path, (str, Path)):
        return _read_pictures(image_files(path), slicing, allow_nan, grey)
    file, name = split_name(path)
    if file.is_dir():
        return _read_pictures(image_files(file), slicing, allow_nan, grey)
    must_be_a_file(file, "a measurement")
    if name is None and file.name.lower().endswith(HDF5) and is_kspace(file):
        return read_kspace(file, slicing or Slicing(), parameters, size, of_coils=of_coils)
    if size is not None:
        raise BadInput(f"size= lowers the resolution of k-space and of images in input=, not of {file}")
    if is_nifti(file) or is_dicom(file) or (is_picture(file) and not is_stack(file)):
        return _read_pictures([file], slicing, allow_nan, grey)
    if file.name.lower().endswith(MEASUREMENT_SUFFIXES):
        return _read_arrays(file, name, parameters, allow_nan)
    raise BadInput(f"a measurement is a {', '.join(MEASUREMENT_SUFFIXES)} file or a folder of pictures, got {file}")


def read_measurement(path: str | Path, *, allow_nan: bool = False) -> Tensor:
    """The y of `load_measurement` alone."""
    return load_measurement(path, parameters=(), allow_nan=allow_nan).y


def _read_pictures(paths: Sequence[Path], slicing: Slicing | None, allow_nan: bool, grey: bool) -> Measurement:
    found = read_files(paths, slicing, measured=True)
    images, names, notes = found.images, found.names, list(found.notes)
    if grey:
        images = [match_channels(image, 1, name) for image, name in zip(images, names, strict=True)]
    y = to_tensor(images, names)
    _check_values(y, paths[0], allow_nan)
    if any(is_picture(path) for path in paths):
        scaled = "" if set(found.units) == {(1.0, 0.0)} else ", grey levels from 0 to 1"
        notes.append(f"{paths[0]}: read as the measurement itself{scaled}")
    return Measurement(y, names=names, notes=notes, units=found.units)


def _read_arrays(path: Path, name: str | None, parameters: Collection[str], allow_nan: bool) -> Measurement:
    arrays = read_arrays(path, _choice(name, parameters))
    found = {key: torch.from_numpy(arrays.pop(key)) for key in parameters if key in arrays and len(arrays) > 1}
    (array,) = arrays.values()
    if array.dtype.kind not in "fciub":
        raise BadInput(f"the measurement must be numeric: {path} holds {array.dtype}")
    if array.size == 0:
        raise BadInput(f"the measurement is empty: {path} has the shape {array.shape}")
    with np.errstate(over="ignore"):  # what becomes infinite in float32 is told below
        y = torch.from_numpy(array.astype(np.complex64 if array.dtype.kind == "c" else np.float32))
    _check_values(y, path, allow_nan)
    return Measurement(y, found, notes=[f"{path}: its {key} goes to the operator" for key in found])


def _check_values(y: Tensor, path: Path, allow_nan: bool) -> None:
    bad = y.isinf() if allow_nan else ~y.isfinite()
    if bad.any():
        raise BadInput(f"the measurement holds {int(bad.sum())} NaN or infinite value(s): {path}")


def _choice(name: str | None, parameters: Collection[str]) -> Choice:
    """Which arrays of a file are the measurement, the one of that name or `y`, and the parameters."""

    def choose(names: Sequence[str]) -> Sequence[str]:
        others = [other for other in names if other not in PARAMETERS or len(names) == 1]
        if name is not None and name not in names:
            raise ValueError(f"there is no array {name!r}, only {', '.join(names) or 'none'}")
        if name is None and "y" not in names and len(others) != 1:
            raise ValueError(
                f"it has the arrays {', '.join(names) or 'none'}; name the measurement 'y', or add :NAME to the file"
            )
        y = name or ("y" if "y" in names else others[0])
        return [y, *(key for key in parameters if key in names and key != y)]

    return choose
