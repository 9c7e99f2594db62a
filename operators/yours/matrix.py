"""A system matrix: the forward model as a file or an array.

Model   A x = matrix times the pixels; dense or sparse, real or complex. Exact adjoint; `solve` and `pinv` by conjugate
        gradients.
Shapes  x (B, C, H, W), pixels in the order of `x.flatten(1)`: channel, row, column -> y (B, M), or (B,
        *measurement_shape). A matrix with H W columns is applied to each channel: y (B, C, M).
"""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.files import BadInput, check_size, only, read_arrays, reading, split_name
from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, Variants, as_image_shape, linear_map, shape_mismatch


class MatrixOperator(LinearOperator):
    """A matrix, M x N.

    matrix             a tensor (dense or sparse), a NumPy array, a `scipy.sparse` matrix, or a file of `invdiff.files`,
                       `.npz` as of `scipy.sparse.save_npz` too. Kept in single precision
    image_shape        (C, H, W) of the images; N = C H W, or H W
    measurement_shape  y is shaped like this, row after row; None: (M,)
    column_major       pixels of a channel are ordered column by column, as in MATLAB, instead of row by row
    """

    # Dense, (R, N), or None where the matrix is sparse. R = M, or 2 M for a complex matrix: real and imaginary part of
    # each row, so that the transpose is the real adjoint and `.double()` casts both.
    matrix: Tensor | None
    # Compressed rows of the matrix (`A_`) and of its transpose (`T_`).
    A_start: Tensor | None
    A_index: Tensor | None
    A_value: Tensor | None
    T_start: Tensor | None
    T_index: Tensor | None
    T_value: Tensor | None

    def __init__(
        self,
        matrix: Any,
        *,
        image_shape: Sequence[int] | None,
        measurement_shape: Sequence[int] | None = None,
        column_major: bool = False,
    ) -> None:
        super().__init__()
        self._image_shape = as_image_shape("matrix", image_shape)
        if matrix is None:
            raise ValueError("matrix: matrix is required; give matrix=, a .npy or .npz file")
        if isinstance(matrix, (str, Path)):
            matrix = read_matrix(Path(matrix))
        matrix, self.complex_measurement = _real_rows(matrix)
        rows, columns = matrix.shape
        c, h, w = self._image_shape
        if columns not in (c * h * w, h * w):
            raise ValueError(
                f"matrix: the number of columns must be {c * h * w}, the entries of an image of "
                f"{describe_shape(self._image_shape)}, or {h * w}, got {columns}"
            )
        m = rows // 2 if self.complex_measurement else rows
        self._measurement_shape = (m,) if measurement_shape is None else tuple(int(n) for n in measurement_shape)
        if torch.Size(self._measurement_shape).numel() != m:
            raise ValueError(
                f"matrix: measurement_shape must have {m} entries, got {describe_shape(self._measurement_shape)}"
            )
        self._size, self.column_major = (rows, columns), column_major
        dense = isinstance(matrix, Tensor)
        self.register_buffer("matrix", matrix if dense else None)
        for name, part in (("A", matrix), ("T", matrix.T)):
            for kind, value in zip(("start", "index", "value"), (None,) * 3 if dense else _rows(part), strict=True):
                self.register_buffer(f"{name}_{kind}", value)

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._measure, self._transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._transpose, self._measure)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        whole = self._size[1] == torch.Size(image_shape).numel()
        return self._measurement_shape if whole else (image_shape[0], *self._measurement_shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return shape_mismatch("matrix", self._image_shape, shape)

    def _measure(self, x: Tensor) -> Tensor:
        pixels = x.mT if self.column_major else x
        rows = self._product(pixels.reshape(-1, self._size[1]), "A")
        if self.complex_measurement:
            rows = torch.view_as_complex(rows.unflatten(1, (-1, 2)).contiguous())
        return rows.reshape(len(x), *self.measurement_shape(self._image_shape))

    def _transpose(self, y: Tensor) -> Tensor:
        if self.complex_measurement:
            y = torch.view_as_real(y.resolve_conj())
        c, h, w = self._image_shape
        images = self._product(y.reshape(-1, self._size[0]), "T")
        return images.reshape(len(y), c, w, h).mT if self.column_major else images.reshape(len(y), c, h, w)

    def _product(self, rows: Tensor, name: str) -> Tensor:
        """The matrix, or its transpose, times every row."""
        if self.matrix is not None:
            matrix = self.matrix.to(rows.dtype)
            return rows @ (matrix.mT if name == "A" else matrix)
        size = self._size if name == "A" else self._size[::-1]
        start, index, value = (getattr(self, f"{name}_{kind}") for kind in ("start", "index", "value"))
        _warn_no_more()
        # Built at every call from parts that are not copied, so that device and precision follow the buffers.
        return (torch.sparse_csr_tensor(start, index, value.to(rows.dtype), size=size) @ rows.mT).mT

    @classmethod
    def example(cls) -> tuple["MatrixOperator", tuple[int, ...]]:
        import scipy.sparse

        sparse = scipy.sparse.random(120, 256, density=0.05, rng=np.random.default_rng(0), dtype=np.float32)
        return cls(sparse, image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        import scipy.sparse

        shape, draws = (3, 7, 6), np.random.default_rng(0)
        dense, one = draws.normal(size=(20, 126)), draws.normal(size=(20, 42))
        sparse = scipy.sparse.csr_array(one * (one > 0.5))
        return {
            "example": cls.example(),
            "dense": (cls(dense, image_shape=shape, measurement_shape=(4, 5)), shape),
            "dense-complex": (cls(dense + 1j * draws.normal(size=dense.shape), image_shape=shape), shape),
            "channelwise-columns": (cls(sparse, image_shape=shape, column_major=True), shape),
            "sparse-complex": (cls(sparse * (1 + 2j), image_shape=shape), shape),
        }


def _real_rows(matrix: Any) -> tuple[Any, bool]:
    """A matrix as a dense float32 tensor or a sparse float32 `scipy` matrix, and whether it was complex.

    Each row of a complex matrix becomes two, its real and its imaginary part.
    """
    if isinstance(matrix, Tensor) and matrix.layout != torch.strided:
        matrix = _to_scipy(matrix)
    if isinstance(matrix, (Tensor, np.ndarray, list)):
        dense = torch.as_tensor(matrix if isinstance(matrix, Tensor) else np.array(matrix, order="C"))
        _require_matrix(tuple(dense.shape), dense.numel() > 0 and bool(dense.isfinite().all()))
        if dense.is_complex():
            return torch.view_as_real(dense.resolve_conj()).mT.flatten(0, 1).to(torch.float32), True
        return dense.detach().to(torch.float32, copy=True), False
    if not hasattr(matrix, "tocsr"):
        raise ValueError(
            f"matrix: must be a tensor, a NumPy array, a scipy.sparse matrix or a file, got {type(matrix).__name__}"
        )
    import scipy.sparse

    sparse = scipy.sparse.csr_array(matrix)
    _require_matrix(sparse.shape, bool(np.isfinite(sparse.data).all()))
    if sparse.dtype.kind != "c":
        return sparse.astype(np.float32), False
    rows, columns = sparse.shape
    entries = scipy.sparse.coo_array(sparse)
    row = np.concatenate([2 * entries.row, 2 * entries.row + 1])
    value = np.concatenate([entries.data.real, entries.data.imag]).astype(np.float32)
    parts = scipy.sparse.csr_array((value, (row, np.tile(entries.col, 2))), shape=(2 * rows, columns))
    parts.eliminate_zeros()
    return parts, True


def _to_scipy(matrix: Tensor) -> Any:
    import scipy.sparse

    _require_matrix(tuple(matrix.shape), True)
    entries = matrix.detach().cpu().to_sparse_coo().coalesce()
    return scipy.sparse.coo_array((entries.values().numpy(), tuple(entries.indices().numpy())), shape=matrix.shape)


def _require_matrix(shape: tuple[int, ...], finite: bool) -> None:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"matrix: must have M rows and N columns, got {describe_shape(shape)}")
    if not finite:
        raise ValueError("matrix: entries must be finite, got NaN or infinity")


def _rows(matrix: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of a sparse matrix: starts, columns, values."""
    rows = matrix.tocsr()
    rows.sort_indices()
    return torch.from_numpy(rows.indptr), torch.from_numpy(rows.indices), torch.from_numpy(rows.data)


def read_matrix(path: Path) -> Any:
    """A matrix from a file: dense as an array, sparse as a `scipy` matrix whose indices were all checked."""
    try:
        parts = read_arrays(path, lambda names: _parts_of_matrix(names, split_name(path)[1]))
        return next(iter(parts.values())) if len(parts) == 1 else _sparse(parts, path)
    except BadInput as error:
        raise BadInput(f"matrix: {error}") from error


# The arrays of each format of `scipy.sparse.save_npz`, beside its `format` and `shape`.
_SPARSE = {
    "csr": ("indices", "indptr", "data"),
    "csc": ("indices", "indptr", "data"),
    "bsr": ("indices", "indptr", "data"),
    "coo": ("row", "col", "data"),
    "dia": ("offsets", "data"),
}


def _parts_of_matrix(names: Sequence[str], given: str | None) -> Sequence[str]:
    if given is None and "format" in names and "shape" in names:
        return [name for name in names if name not in ("_is_array", "coords")]
    return only("matrix", given)(names)


def _sparse(parts: dict[str, np.ndarray], path: Path) -> Any:
    """The matrix of these arrays. SciPy trusts their indices, and reads outside its arrays where they are bad."""
    import scipy.sparse

    kind = parts["format"].item()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    if kind not in _SPARSE or not all(name in parts for name in _SPARSE[kind]):
        raise BadInput(f"sparse matrices are {', '.join(_SPARSE)}, got {kind[:20]!r}: {path}")
    with reading(path, "sparse matrix"):
        shape = tuple(int(n) for n in parts["shape"])
        *where, values = (parts[name] for name in _SPARSE[kind])
        if len(shape) != 2 or min(shape) < 1 or values.dtype.kind not in "fciub":
            raise BadInput(f"a sparse matrix must have rows, columns and numbers, got the shape {shape}: {path}")
        check_size(8 * max(shape), path)  # of compressed rows, however few entries there are
        if kind == "coo":
            matrix = scipy.sparse.coo_array((values, tuple(where)), shape=shape)
        elif kind == "dia":
            matrix = scipy.sparse.dia_array((values, where[0]), shape=shape)
        else:
            matrix = getattr(scipy.sparse, f"{kind}_array")((values, *where), shape=shape)
            matrix.check_format(full_check=True)
    return matrix


@cache
def _warn_no_more() -> None:
    """Trigger and ignore torch's warning, once per process, that sparse rows are in beta."""
    with warnings.catch_warnings(action="ignore"):
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), size=(1, 1))
