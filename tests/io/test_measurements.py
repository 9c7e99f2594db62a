"""Measurement files: every numeric kind is read as float32 or complex64, everything else is refused in one line."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.io import BadInput, load_measurement, read_measurement

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((2, 3, 4))
ARRAYS = {
    "float64": REAL,
    "float32": REAL.astype(np.float32),
    "float16": REAL.astype(np.float16),
    "big endian": REAL.astype(">f8"),
    "complex128": REAL + 1j * REAL[::-1],
    "complex64": (REAL + 1j).astype(np.complex64),
    "int": np.arange(-6, 6).reshape(3, 4),
    "uint16": np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000,
    "bool": REAL > 0,
    "not contiguous": REAL[:, ::2].T,
    "scalar": np.float32(3.0),
}


def expected(array: np.ndarray) -> torch.Tensor:
    kind = np.complex64 if np.iscomplexobj(array) else np.float32
    return torch.from_numpy(np.array(array, dtype=kind))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".NPY"])
def test_arrays(tmp_path: Path, name: str, suffix: str) -> None:
    array = np.asarray(ARRAYS[name])
    path = tmp_path / f"y{suffix}"
    if suffix == ".pt":
        native = array.astype(array.dtype.newbyteorder("="))
        torch.save(torch.from_numpy(native.copy()), path)
    elif suffix == ".npz":
        np.savez(path, whatever=array)
    else:
        with path.open("wb") as file:
            np.save(file, array)
    y = read_measurement(path)
    assert y.dtype in (torch.float32, torch.complex64)
    assert torch.equal(y, expected(array))


def test_the_array_named_y(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "run.npz", x=np.zeros(3), y=np.ones((2, 2)), names=np.array(["a"]))
    assert torch.equal(read_measurement(tmp_path / "run.npz"), torch.ones(2, 2))
    torch.save({"x": torch.zeros(3), "y": torch.ones(2, 2)}, tmp_path / "run.pt")
    assert torch.equal(read_measurement(tmp_path / "run.pt"), torch.ones(2, 2))


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_parameters_of_the_operator_beside_y(tmp_path: Path, suffix: str) -> None:
    """They are loaded where they are asked for, and are never taken for y."""
    path, mask = tmp_path / f"run.{suffix}", np.array([True, False])
    for name in ("y", "data"):
        if suffix == "npz":
            np.savez(path, mask=mask, **{name: np.ones((2, 2))})
        else:
            torch.save({"mask": torch.from_numpy(mask), name: torch.ones(2, 2)}, path)
        found = load_measurement(path)
        assert torch.equal(found.y, torch.ones(2, 2))
        assert found.parameters["mask"].tolist() == [True, False]
        assert found.notes == [f"{path}: its mask goes to the operator"]
        assert not load_measurement(path, parameters=()).parameters
    np.savez(tmp_path / "only.npz", mask=np.ones(3))
    assert load_measurement(tmp_path / "only.npz").y.shape == (3,)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.ones(2, 2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.ones(4, 2)[::2],
    ],
)
def test_tensors_of_every_sort(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, tmp_path / "y.pt")
    assert torch.equal(read_measurement(tmp_path / "y.pt"), torch.ones(2, 2))


def test_a_conjugate_view_keeps_its_sign(tmp_path: Path) -> None:
    y = torch.randn(3, 3, dtype=torch.complex64)
    torch.save(y.conj(), tmp_path / "y.pt")
    assert torch.equal(read_measurement(tmp_path / "y.pt"), y.conj().resolve_conj())


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def _array(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _torch(path: Path, thing: object) -> Path:
    torch.save(thing, path)
    return path


def _cut(path: Path) -> Path:
    return _bytes(path, path.read_bytes()[:-40])


def _with(position: tuple[int, ...], value: float) -> np.ndarray:
    array = REAL.copy()
    array[position] = value
    return array


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda d: d / "y.npy", "no such file"),
    "folder": (lambda d: d, "no images in"),
    "image": (lambda d: _bytes(d / "y.png", b""), "not an image"),
    "NaN": (lambda d: _array(d / "y.npy", _with((0, 1, 2), np.nan)), r"1 NaN or infinite value"),
    "infinity": (lambda d: _array(d / "y.npy", _with((0, 1, 2), -np.inf)), r"1 NaN or infinite value"),
    "too large for float32": (lambda d: _array(d / "y.npy", _with((0, 1, 2), 1e300)), r"1 NaN or infinite value"),
    "complex NaN": (lambda d: _array(d / "y.npy", REAL + 1j * _with((0, 0, 0), np.nan)), r"1 NaN or infinite value"),
    "empty array": (lambda d: _array(d / "y.npy", np.zeros((0, 3))), r"empty.*\(0, 3\)"),
    "strings": (lambda d: _array(d / "y.npy", np.array(["a"])), "must be numeric.*<U1"),
    "dates": (lambda d: _array(d / "y.npy", np.array(["2020-01-01"], "M8[D]")), "must be numeric"),
    "records": (lambda d: _array(d / "y.npy", np.zeros(3, "i4,f4")), "must be numeric"),
    "several arrays": (lambda d: _npz(d / "y.npz", a=REAL, b=REAL), "arrays a, b; name the measurement 'y'"),
    "no array": (lambda d: _npz(d / "y.npz"), "arrays none"),
    "text": (lambda d: _bytes(d / "y.npy", b"1, 2, 3\n"), "no NumPy file"),
    "text as npz": (lambda d: _bytes(d / "y.npz", b"1, 2, 3\n"), "no NumPy file"),
    "text as pt": (lambda d: _bytes(d / "y.pt", b"1, 2, 3\n"), "cannot be read"),
    "nothing": (lambda d: _bytes(d / "y.npy", b""), "no NumPy file"),
    "nothing as pt": (lambda d: _bytes(d / "y.pt", b""), "cannot be read"),
    "cut npy": (lambda d: _cut(_array(d / "y.npy", REAL)), "cannot be read"),
    "cut npz": (lambda d: _cut(_npz(d / "y.npz", y=REAL)), "cannot be read"),
    "cut pt": (lambda d: _cut(_torch(d / "y.pt", torch.ones(200))), "cannot be read"),
    "objects": (lambda d: _array(d / "y.npy", np.array([{}], object)), "Python objects; only plain arrays"),
    "objects in npz": (lambda d: _npz(d / "y.npz", y=np.array([{}], object)), "Python objects; only plain arrays"),
    "bare pickle": (lambda d: _bytes(d / "y.npy", pickle.dumps(Trap(d / "sprung"))), "nothing that could run code"),
    "trap": (lambda d: _array(d / "y.npy", np.array([Trap(d / "sprung")], object)), "nothing that could run code"),
    "trap in npz": (lambda d: _npz(d / "y.npz", y=np.array([Trap(d / "sprung")], object)), "nothing that could run"),
    "trap in pt": (lambda d: _torch(d / "y.pt", Trap(d / "sprung")), "nothing that could run code"),
    "list in pt": (lambda d: _torch(d / "y.pt", [1, 2]), "it holds a list, not a tensor"),
    "state in pt": (lambda d: _torch(d / "y.pt", {"a": torch.ones(2), "b": torch.ones(2)}), "arrays a, b; name"),
    "sparse": (lambda d: _torch(d / "y.pt", torch.eye(3).to_sparse()), "sparse"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str, recwarn: pytest.WarningsRecorder) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path)
    recwarn.clear()
    with pytest.raises(BadInput, match=words) as caught:
        read_measurement(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) - len(str(path)) < 250
    assert not (tmp_path / "sprung").exists()
    # What the collector finds of other tests is no warning of this one, and Python does not show it.
    shown = [w for w in recwarn.list if w.category is not ResourceWarning]
    assert not shown, "a warning is a second line on the terminal"


def test_nan_may_mark_what_was_not_measured(tmp_path: Path) -> None:
    path = _array(tmp_path / "y.npy", _with((0, 1, 2), np.nan))
    assert read_measurement(path, allow_nan=True).isnan().sum() == 1
    path = _array(tmp_path / "y.npy", _with((0, 1, 2), np.inf))
    with pytest.raises(BadInput, match="1 NaN or infinite"):
        read_measurement(path, allow_nan=True)
