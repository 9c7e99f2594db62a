"""HDF5 files: datasets of numbers that lie in the file itself.

Links to other files, external storage and virtual datasets are refused: they would read what the user never named.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.files.choice import Choice
from invdiff.files.errors import BadInput, optional, reading
from invdiff.files.limits import check_size

MOST = 10_000  # names that a file may have before the search for arrays stops


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The open file. What h5py raises becomes one line."""
    h5py = optional("h5py", path)
    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def dataset(file: Any, name: str) -> Any | None:
    """The dataset of this path, None where there is none. Raises BadInput where it lies in another file."""
    found = _member(file, name, set())
    if found is None or not hasattr(found, "dtype"):
        return None
    path = Path(file.file.filename)
    if found.external or found.is_virtual:
        raise BadInput(f"{name} of {path} is stored in other files; copy its values into the file")
    if found.shape is None:
        return None
    check_size(found.size * found.dtype.itemsize, path)
    return found


def _member(file: Any, name: str, seen: set[str]) -> Any | None:
    """What lies at this path; every step on the way is a link of the file itself."""
    import h5py

    node = file["/"]
    for step in [step for step in name.split("/") if step]:
        link = node.get(step, getlink=True) if isinstance(node, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise BadInput(f"{name} of {file.filename} is a link to another file; copy its values into the file")
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{node.name}/{link.path}"
            if target in seen:
                return None
            seen.add(target)
            node = _member(file, target, seen)
        else:
            node = None if link is None else node[step]
        if node is None:
            return None
    return node


def read_hdf5(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """The chosen datasets of numbers; names are paths in the file, a/b."""
    with opened(path) as file:
        chosen = choose(list(islice(_numeric(file, "", set()), MOST)))
        return {name: values(dataset(file, name), path) for name in chosen}


def _numeric(group: Any, before: str, seen: set[int]) -> Iterator[str]:
    """Paths of datasets of numbers below a group, hard links only: others name what has a place already."""
    import h5py

    place = h5py.h5o.get_info(group.id).addr
    if place in seen or before == "#refs#/":  # groups may hold each other; MATLAB keeps its cells in #refs#
        return
    seen.add(place)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        member = group[name]
        if isinstance(member, h5py.Group):
            yield from _numeric(member, f"{before}{name}/", seen)
        elif isinstance(member, h5py.Dataset) and (member.dtype.kind in "fciub" or _is_pair(member.dtype)):
            yield f"{before}{name}"


def _is_pair(dtype: np.dtype) -> bool:
    """Complex numbers as MATLAB stores them."""
    return dtype.names is not None and len(dtype.names) == 2 and all(dtype[i].kind == "f" for i in (0, 1))


def values(stored: Any | None, path: Path) -> np.ndarray:
    """The values of a dataset, complex numbers as such."""
    if stored is None:
        raise BadInput(f"no such dataset in {path}")
    return without_pairs(np.asarray(stored[()]))


def without_pairs(found: np.ndarray) -> np.ndarray:
    """Pairs (real, imaginary), as MATLAB stores them, as complex numbers; other arrays as they are."""
    pair = found.dtype.names
    return found if pair is None or not _is_pair(found.dtype) else found[pair[0]] + 1j * found[pair[1]]
