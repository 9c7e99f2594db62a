"""Simulators outside torch: functions of NumPy arrays, called image by image or in batches.

Model   A x = function(x), any function, without gradients; a linear one with an adjoint is differentiable through it.
Shapes  x (B, C, H, W) -> y (B, ...), real or complex, as the function returns it.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, Operator, Variants, as_image_shape, linear_map, shape_mismatch

ArrayFunction = Callable[[np.ndarray], Any]


class BlackBox(Operator):
    """A function of NumPy arrays, without gradients.

    function     maps an array in the precision of the images, which it may overwrite, to an array or a number. Define
                 it in a module: an operator with a lambda cannot be sent to another process
    batched      the function maps many images at once, (b, C, H, W), to (b, ...); otherwise one, (C, H, W), to (...)
    max_batch    largest number of images in one call, with batched=True; None: all
    workers      simultaneous calls, in threads: for functions that wait for another program or for NumPy
    image_shape  (C, H, W), required where the prior does not determine it

    Results are converted to the precision and device of the images.
    """

    differentiable = False

    def __init__(
        self,
        function: ArrayFunction,
        *,
        batched: bool = False,
        max_batch: int | None = None,
        workers: int = 1,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if max_batch is not None and not batched:
            raise ValueError(f"black box: max_batch={max_batch} requires batched=true, a function of many images")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"black box: max_batch must be an integer >= 1, got {max_batch}")
        if workers < 1:
            raise ValueError(f"black box: workers must be an integer >= 1, got {workers}")
        self.function, self.batched, self.max_batch, self.workers = function, batched, max_batch, workers
        self._image_shape = None if image_shape is None else as_image_shape("black box", image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._call(self.function, x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return shape_mismatch("black box", self._image_shape, shape)

    def _call(self, function: ArrayFunction, x: Tensor) -> Tensor:
        """The function on all rows of x, concatenated."""
        rows = x.detach().resolve_conj().cpu()
        pieces = rows.split(self.max_batch or len(rows)) if self.batched else rows.unbind()
        # Copies: a function that works in place must not change the images.
        arrays = [np.array(piece.numpy(), order="C") for piece in pieces]
        # `list`, so that a failure is raised here and not while a generator is read.
        results = list(self._map(lambda array: self._checked(function(array), array, function), arrays))
        shapes = {result.shape[1:] for result in results}
        if len(shapes) > 1:
            several = " and ".join(sorted(describe_shape(shape) for shape in shapes))
            raise ValueError(f"{called(function)} must return one shape for images of one size, got {several}")
        y = np.concatenate(results)
        wanted = x.dtype.to_complex() if y.dtype.kind == "c" else x.dtype.to_real()
        return torch.from_numpy(y).to(x.device, wanted)

    def _map(self, call: Callable[[np.ndarray], np.ndarray], arrays: list[np.ndarray]) -> Iterable[np.ndarray]:
        if self.workers == 1 or len(arrays) == 1:
            return map(call, arrays)
        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(call, arrays))
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, no further call begins

    def _checked(self, result: Any, array: np.ndarray, function: ArrayFunction) -> np.ndarray:
        """The result of the function as numbers, (b, ...). Raises ValueError unless it has one row per image."""
        y = np.asarray(result)
        if y.dtype.kind not in "fciub" or y.size == 0:
            got = "None" if result is None else f"{type(result).__name__} of {y.dtype}, {y.shape}"
            raise ValueError(f"{called(function)} must return an array of numbers, got {got}")
        if not self.batched:
            return np.atleast_1d(y)[None]
        if y.ndim == 0 or len(y) != len(array):
            raise ValueError(
                f"{called(function)} must return one row per image, got {describe_shape(y.shape)} for {len(array)} "
                "images; set batched=false for a function of one image"
            )
        return y.reshape(len(y), -1) if y.ndim == 1 else y

    @classmethod
    def example(cls) -> tuple["BlackBox", tuple[int, ...]]:
        return cls(np.tanh), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "batched": (cls(np.exp, batched=True, max_batch=2, workers=2), (1, 7, 6))}


class LinearBlackBox(BlackBox, LinearOperator):
    """A linear function of NumPy arrays with its adjoint, which autograd uses.

    adjoint  maps measurements to images, one by one or in batches like `function`; of a complex result, A^H y for
             complex measurements, the real part is taken
    """

    differentiable = True

    def __init__(
        self,
        function: ArrayFunction,
        adjoint: ArrayFunction,
        *,
        image_shape: Sequence[int],
        batched: bool = False,
        max_batch: int | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(function, batched=batched, max_batch=max_batch, workers=workers, image_shape=image_shape)
        self._adjoint = adjoint

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._measure, self._transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._transpose, self._measure)

    def _measure(self, x: Tensor) -> Tensor:
        return self._call(self.function, x)

    def _transpose(self, y: Tensor) -> Tensor:
        images = self._call(self._adjoint, y)
        if images.shape[1:] != self._image_shape:
            raise ValueError(
                f"{called(self._adjoint)} must return images, {describe_shape(self._image_shape or ())}, got "
                f"{describe_shape(tuple(images.shape[1:]))}"
            )
        return images.real if images.is_complex() else images

    @classmethod
    def example(cls) -> tuple["LinearBlackBox", tuple[int, ...]]:
        return cls(np.fft.fft2, _adjoint_of_fft2, image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        batched = cls(np.fft.fft2, _adjoint_of_fft2, image_shape=(3, 7, 6), batched=True, max_batch=2)
        return {
            "example": cls.example(),
            "batched": (batched, (3, 7, 6)),
            "real": (cls(np.negative, np.negative, image_shape=(1, 7, 6)), (1, 7, 6)),
        }


def _adjoint_of_fft2(y: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(y, norm="forward")


@dataclass(frozen=True)
class ScipyProducts:
    """Products with a `scipy.sparse.linalg.LinearOperator`, or with its adjoint, for a batch of images.

    shape  of each result
    """

    operator: Any
    transposed: bool
    shape: tuple[int, ...]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        columns = rows.reshape(len(rows), -1).T
        products = self.operator.rmatmat(columns) if self.transposed else self.operator.matmat(columns)
        return products.T.reshape(len(rows), *self.shape)


def from_scipy(operator: Any, image_shape: Sequence[int] | None) -> LinearBlackBox:
    """A `scipy.sparse.linalg.LinearOperator`, with one column per pixel in the order of `x.flatten(1)`."""
    shape = as_image_shape("scipy", image_shape)
    rows, columns = operator.shape
    if columns != torch.Size(shape).numel():
        raise ValueError(
            f"scipy: the operator must have {torch.Size(shape).numel()} columns, the entries of an image of "
            f"{describe_shape(shape)}, got {columns}"
        )
    try:
        operator.rmatvec(np.zeros(rows, dtype=operator.dtype or np.float32))
    except NotImplementedError as error:
        raise ValueError("scipy: the operator must define rmatvec, its adjoint") from error
    apply, transpose = ScipyProducts(operator, False, (rows,)), ScipyProducts(operator, True, shape)
    return LinearBlackBox(apply, transpose, image_shape=shape, batched=True)


def called(function: Any) -> str:
    """The name of a function for messages."""
    function = getattr(function, "func", function)  # of a functools.partial
    return getattr(function, "__name__", type(function).__name__)
