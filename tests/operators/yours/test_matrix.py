"""System matrices: every kind of them is the same operator, files are read in words, and counts must fit."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import MatrixOperator, as_operator

Normal = Callable[..., Tensor]
SHAPE = (2, 4, 6)
PIXELS = 48


def matrix(*shape: int, seed: int = 0) -> np.ndarray:
    """Small integers, half of them zero: exact in every precision."""
    draws = np.random.default_rng(seed).integers(-4, 5, shape)
    return (draws * (draws % 2)).astype(np.float32)


REAL = matrix(10, PIXELS)
COMPLEX = REAL + 1j * matrix(10, PIXELS, seed=1)


def to_file(save: Callable[..., None], name: str) -> Callable[[np.ndarray, Path], Any]:
    def write(values: np.ndarray, folder: Path) -> Path:
        save(folder / name, values)
        return folder / name

    return write


KINDS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "numpy": lambda values, folder: values,
    "fortran": lambda values, folder: np.asfortranarray(values)[::-1][::-1],
    "torch": lambda values, folder: torch.from_numpy(values),
    "torch-double": lambda values, folder: torch.from_numpy(values).to(
        torch.complex128 if values.dtype.kind == "c" else torch.float64
    ),
    "torch-coo": lambda values, folder: torch.from_numpy(values).to_sparse_coo(),
    "torch-csr": lambda values, folder: torch.from_numpy(values).to_sparse_csr(),
    "scipy-csr": lambda values, folder: scipy.sparse.csr_matrix(values),
    "scipy-coo": lambda values, folder: scipy.sparse.coo_array(values),
    "npy": to_file(np.save, "A.npy"),
    "npz": to_file(lambda path, values: np.savez(path, system=values), "A.npz"),
    "npz-sparse": to_file(lambda path, values: scipy.sparse.save_npz(path, scipy.sparse.csc_array(values)), "A.npz"),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_operator(kind: str, normal: Normal, tmp_path: Path) -> None:
    for values in [REAL, COMPLEX]:
        operator = MatrixOperator(KINDS[kind](values, tmp_path), image_shape=SHAPE)
        x, y = normal(3, *SHAPE), normal(3, 10, seed=1, dtype=torch.complex128 if values is COMPLEX else torch.float64)
        a = torch.from_numpy(values.astype(np.complex128))
        wanted = x.flatten(1).to(a.dtype) @ a.mT
        assert torch.allclose(operator(x).to(a.dtype), wanted, atol=1e-12)
        back = (y.to(a.dtype) @ a.conj()).real.reshape(3, *SHAPE)
        assert torch.allclose(operator.adjoint(y), back, atol=1e-12)


@pytest.mark.parametrize("values", [REAL, COMPLEX], ids=["real", "complex"])
def test_the_contract(values: np.ndarray) -> None:
    check_operator(MatrixOperator(values, image_shape=SHAPE), SHAPE)
    check_operator(MatrixOperator(scipy.sparse.csr_array(values), image_shape=SHAPE), SHAPE)


@pytest.mark.parametrize("sparse", [False, True])
def test_each_channel_by_itself(sparse: bool, normal: Normal) -> None:
    """A matrix for one channel, with y in a shape of its own."""
    one = matrix(6, 24)
    operator = MatrixOperator(
        scipy.sparse.csr_array(one) if sparse else one, image_shape=SHAPE, measurement_shape=(2, 3)
    )
    x = normal(2, *SHAPE)
    y = operator(x)
    assert y.shape == (2, 2, 2, 3)
    assert torch.allclose(y[1, 0].flatten(), torch.from_numpy(one).double() @ x[1, 0].flatten())
    assert operator.adjoint(y).shape == x.shape
    check_operator(operator, SHAPE)


def test_pixels_counted_down_the_columns(normal: Normal) -> None:
    """As MATLAB does: x(:) of each channel."""
    operator = MatrixOperator(REAL, image_shape=SHAPE, column_major=True)
    x = normal(2, *SHAPE)
    vector = np.concatenate([channel.flatten(order="F") for channel in x[1].numpy()])
    assert np.allclose(operator(x)[1].numpy(), REAL.astype(np.float64) @ vector)
    check_operator(operator, SHAPE)


def test_the_users_array_is_left_alone(normal: Normal) -> None:
    values = REAL.copy()
    operator, x = MatrixOperator(values, image_shape=SHAPE), normal(1, *SHAPE)
    y = operator(x)
    values[:] = 0
    assert torch.equal(operator(x), y)


def test_no_warning_of_torch_is_heard() -> None:
    with warnings.catch_warnings(action="error"):
        MatrixOperator(scipy.sparse.csr_array(REAL), image_shape=SHAPE)(torch.zeros(1, *SHAPE))


def test_as_operator() -> None:
    for given in (REAL, torch.from_numpy(REAL), scipy.sparse.csr_array(REAL)):
        assert isinstance(as_operator(given, image_shape=SHAPE), MatrixOperator)
        with pytest.raises(ValueError, match=r"image_shape=\(C, H, W\) of the images is required"):
            as_operator(given)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for values, options, words in [
        (None, {}, "matrix is required; give matrix=, a .npy or .npz file"),
        (matrix(3, 40), {}, "number of columns must be 48, the entries of an image of 2x4x6, or 24, got 40"),
        (matrix(48), {}, "must have M rows and N columns, got 48"),
        (np.zeros((0, 48)), {}, "got 0x48"),
        (np.full((2, 48), np.nan), {}, "entries must be finite, got NaN or infinity"),
        (scipy.sparse.csr_array(np.full((2, 48), np.inf)), {}, "entries must be finite, got NaN or infinity"),
        (REAL, {"measurement_shape": (3, 4)}, "measurement_shape must have 10 entries, got 3x4"),
        (REAL, {"image_shape": (4, 6)}, "image_shape must be"),
        ({}, {}, "a scipy.sparse matrix or a file, got dict"),
        ("absent.npz", {}, "no such file: absent.npz"),
        ("A.mat", {}, "the MATLAB file cannot be read: A.mat"),
        ("text.npy", {}, r"cannot be read: text.npy"),
        ("objects.npy", {}, r"cannot be read: objects.npy"),
        ("two.npz", {}, "it has the arrays a, b; name one 'matrix'"),
    ]:
        monkeypatch.chdir(tmp_path)
        for name in ("A.mat", "text.npy"):
            Path(name).write_text("no array")
        np.save("objects.npy", np.array([{}], dtype=object))
        np.savez("two.npz", a=REAL, b=REAL)
        with pytest.raises(ValueError, match=f"matrix: .*{words}") as caught:
            MatrixOperator(values, **{"image_shape": SHAPE, **options})
        assert "\n" not in str(caught.value)


def test_images_of_another_size() -> None:
    operator = MatrixOperator(REAL, image_shape=SHAPE)
    assert operator.mismatch((2, 6, 4)) == "matrix: image_shape is 2x4x6, the image 2x6x4; set image_shape=[2,6,4]"
    assert operator.image_shape((10,)) == SHAPE
