"""NumPy's `.npy` and `.npz` and torch's `.pt`: plain numbers only, with the sizes of their headers checked first."""

import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from invdiff.files.choice import Choice
from invdiff.files.errors import reading
from invdiff.files.limits import check_size

_SAFE = "only plain arrays and tensors are loaded, nothing that could run code"
_MAGIC = b"\x93NUMPY"


def read_numpy(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """The one array of a `.npy` file or the chosen ones of a `.npz` file, whichever of both it is."""
    with reading(path, "NumPy"):
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                size = os.fstat(file.fileno()).st_size
                check_size(size, path)
                file.seek(0)
                choose([""])
                return {"": _array(file, size)}
        if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle and advise to load it as one
            raise ValueError(f"it is no NumPy file; {_SAFE}")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = choose(list(members))
            check_size(sum(members[name].file_size for name in chosen), path)
            found = {}
            for name in chosen:
                with archive.open(members[name]) as file:
                    found[name] = _array(file, members[name].file_size)
            return found


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array of an open `.npy` file of `size` bytes, whose header may declare no more than that."""
    header = np.lib.format
    version = header.read_magic(file)
    read = {(1, 0): header.read_array_header_1_0, (2, 0): header.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"its format {version[0]}.{version[1]} must be 1.0 or 2.0")
    shape, column_major, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"it holds Python objects; {_SAFE}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"it is damaged or cut short: the shape {shape} of {dtype} takes more than its {size} bytes")
    flat = np.empty(count, dtype)
    if file.readinto(flat.view(np.uint8)) < flat.nbytes:  # type: ignore[attr-defined]  # every binary file has it
        raise ValueError("it ends too early")
    return flat.reshape(shape, order="F" if column_major else "C")


def read_pt(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """The tensor of a `.pt` file, or the chosen ones of a mapping."""
    with reading(path, "torch"), warnings.catch_warnings(action="ignore"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_size(sum(info.file_size for info in archive.infolist()), path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(_SAFE) from error
        if not isinstance(loaded, Mapping):
            choose([""])
            return {"": _as_array(loaded, path)}
        chosen = choose([str(name) for name in loaded])
        return {name: _as_array(loaded[name], path) for name in chosen}


def _as_array(loaded: object, path: Path) -> np.ndarray:
    if not isinstance(loaded, Tensor):
        raise ValueError(f"it holds a {type(loaded).__name__}, not a tensor")
    if loaded.layout != torch.strided or loaded.is_quantized:
        raise ValueError("it holds a sparse or quantised tensor, not a dense one")
    check_size(loaded.numel() * loaded.element_size(), path)
    if loaded.dtype == torch.bfloat16:  # which NumPy does not know
        loaded = loaded.float()
    return loaded.detach().resolve_conj().resolve_neg().numpy()
