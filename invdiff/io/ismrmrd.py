"""Cartesian k-space of ISMRMRD (MRD) files, from their HDF5 layout, without the package of that name.

Spec    Inati et al. (2017), doi:10.1002/mrm.26089: group `dataset` with `xml`, the header, and `data`, one acquisition
        a row (`head`, `traj`, `data`). Read are two-dimensional Cartesian scans with symmetric echoes, of one contrast,
        phase, repetition, set and average; anything else is refused.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from invdiff.files import BadInput, check_size
from invdiff.files.hdf5 import dataset

_XML, _DATA = "dataset/xml", "dataset/data"
_NAMES = {"m": "http://www.ismrm.org/ISMRMRD"}
# Bits of `flags`, counted from 1 as in the specification.
_NOISE = 19
_OTHERS = {20: "calibration", 22: "reversed", 23: "navigation", 24: "phase-correction", 28: "feedback", 27: "dummy"}
_ONE = ("kspace_encode_step_2", "average", "contrast", "phase", "repetition", "set")


def is_ismrmrd(file: Any) -> bool:
    """Whether an open HDF5 file is one of ISMRMRD."""
    rows = dataset(file, _DATA)
    return rows is not None and set(rows.dtype.names or ()) >= {"head", "data"} and dataset(file, _XML) is not None


def read_ismrmrd(file: Any, path: Path) -> np.ndarray:
    """complex64 (slices, coils, readout, lines), the centre in the middle, zero where no line was acquired."""
    rows = dataset(file, _DATA)[()]  # type: ignore[index]  # as `is_ismrmrd` found
    width, lines, middle = _encoding(dataset(file, _XML), path)
    flags = rows["head"]["flags"].astype(np.uint64)
    rows = rows[flags & np.uint64(1 << (_NOISE - 1)) == 0]
    head, index = rows["head"], rows["head"]["idx"]
    if not len(rows):
        raise BadInput(f"there is no acquisition of an image: {path}")
    for bit, kind in _OTHERS.items():
        if (head["flags"].astype(np.uint64) & np.uint64(1 << (bit - 1))).any():
            raise BadInput(f"{kind} acquisitions of ISMRMRD are not read: {path}")
    for name in _ONE:
        if np.ptp(index[name]) > 0:
            raise BadInput(f"ISMRMRD of several {name} is not read, only one: {path}")
    for name, wanted in (
        ("number_of_samples", width),
        ("center_sample", width // 2),
        ("active_channels", int(head["active_channels"][0])),
        ("discard_pre", 0),
        ("discard_post", 0),
    ):
        if (head[name] != wanted).any():
            raise BadInput(f"{name} must be {wanted} in all acquisitions, got {int(head[name].max())}: {path}")
    coils, slices = int(head["active_channels"][0]), int(index["slice"].max()) + 1
    places = index["kspace_encode_step_1"].astype(int) - middle + lines // 2
    if places.min() < 0 or places.max() >= lines:
        raise BadInput(f"lines must lie in the encoded matrix of {lines}: {path}")
    check_size(8 * slices * coils * width * lines, path)
    kspace = np.zeros((slices, coils, width, lines), np.complex64)
    for row, place, cut in zip(rows["data"], places, index["slice"], strict=True):
        if row.size != 2 * coils * width:
            raise BadInput(f"an acquisition holds {row.size} numbers, not {2 * coils * width}: {path}")
        kspace[cut, :, :, place] = row.astype(np.float32).view(np.complex64).reshape(coils, width)
    return kspace


def _encoding(stored: Any, path: Path) -> tuple[int, int, int]:
    """Samples of the readout, lines of the encoded matrix, and the line of the centre."""
    text = np.asarray(stored[()]).reshape(-1)[0]
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadInput(f"the XML header must not define entities: {path}")
    found = ElementTree.fromstring(text).findall("m:encoding", _NAMES)

    def value(name: str) -> str:
        return (found[0].findtext("/".join(f"m:{step}" for step in name.split("/")), "", _NAMES)).strip()

    if len(found) != 1:
        raise BadInput(f"ISMRMRD must hold one encoding, got {len(found)}: {path}")
    if value("trajectory") != "cartesian":
        raise BadInput(f"the trajectory of ISMRMRD must be cartesian, got {value('trajectory') or 'none'}: {path}")
    size = [int(value(f"encodedSpace/matrixSize/{axis}")) for axis in "xyz"]
    if size[2] != 1 or min(size) < 1:
        raise BadInput(f"ISMRMRD must be two-dimensional, got an encoded matrix of {'x'.join(map(str, size))}: {path}")
    middle = value("encodingLimits/kspace_encoding_step_1/center")
    return size[0], size[1], int(middle) if middle else size[1] // 2
