"""Linear measurements with Gaussian noise in whitened, decomposed coordinates.

Whitened    w = B x + n, n ~ N(0, I): real numbers, measured entries only, in units of the noise. A complex entry is two
            numbers, each with half of the variance.
Decomposed  B = U S V^T: U^T w = T x + n, T = U^T B with T T^T = S^2 diagonal. The complement of U holds noise alone.
Mirrored    for scanners with mirror symmetry B^T B has no entries between even and odd images, and two decompositions
            of half the size take a quarter of the time.

Everything is in float64, for exact posteriors are references.
"""

import copy
import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Problem

# min(pixels, measured numbers) above which a decomposition takes minutes and gigabytes.
DENSE_LIMIT = 8192
CHUNK = 256


class Rows:
    """A linear operator as a real matrix, whose rows are the measured real numbers of one image."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.operator = problem.operator
        self.image_shape = tuple(problem.image_shape)
        self.y_shape, self.complex = tuple(problem.y.shape[1:]), problem.y.is_complex()
        self.device = device
        observed = problem.observed
        self.index = None
        if observed is not None:
            mask = observed.expand(1, *self.y_shape).flatten().to(device)
            if self.complex:
                mask = mask.repeat_interleave(2)
            self.index = mask.nonzero()[:, 0]
        numbers = math.prod(self.y_shape) * (2 if self.complex else 1)
        self.numbers = numbers
        self.count = numbers if self.index is None else len(self.index)

    def of(self, y: Tensor) -> Tensor:
        """Measurements (B, ...) -> their measured numbers (B, count)."""
        y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
        y = y.flatten(1).to(self.device, torch.float64)
        return y if self.index is None else y[:, self.index]

    def forward(self, x: Tensor) -> Tensor:
        """Images, flat (B, n) -> (B, count)."""
        return torch.cat([self.of(self.operator(part.reshape(-1, *self.image_shape))) for part in x.split(CHUNK)])

    def adjoint(self, w: Tensor) -> Tensor:
        """(B, count) -> flat images (B, n)."""
        return torch.cat([self.operator.adjoint(self.back(part)).flatten(1) for part in w.split(CHUNK)])

    def back(self, w: Tensor) -> Tensor:
        """Measured numbers (B, count) -> measurements (B, ...), zero where nothing was measured."""
        if self.index is not None:
            w = w.new_zeros(len(w), self.numbers).index_copy(1, self.index, w)
        return torch.view_as_complex(w.reshape(-1, *self.y_shape, 2)) if self.complex else w.reshape(-1, *self.y_shape)

    def matrix(self) -> Tensor:
        """(count, n)."""
        n = math.prod(self.image_shape)
        if n <= self.count:
            return self.forward(torch.eye(n, dtype=torch.float64, device=self.device)).mT
        return self.adjoint(torch.eye(self.count, dtype=torch.float64, device=self.device))


def noise_part(problem: Problem, device: torch.device) -> Tensor:
    """Standard deviation of one real number of the measurement, a scalar."""
    sigma = problem.noise.sigma.reshape(()).to(device, torch.float64)
    return sigma / math.sqrt(2) if problem.y.is_complex() else sigma


def log_normaliser(count: int, part: Tensor) -> Tensor:
    """Logarithm of the constant in front of the density of `count` numbers with noise `part`."""
    return -count * (0.5 * math.log(2 * math.pi) + part.log())


@torch.no_grad()
def whiten(problem: Problem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """B (count, n), w (count,), and the log of the constant in front of p(y | x)."""
    with torch.autocast(device.type, enabled=False):
        rows, part = Rows(problem, device), noise_part(problem, device)
        return rows.matrix() / part, rows.of(problem.y)[0] / part, log_normaliser(rows.count, part)


class Decomposed(nn.Module):
    """U^T w = T x + n; see the module's docstring.

    values    S^2, (p,), positive
    data      U^T w, (p,)
    outside   |w|^2 - |U^T w|^2: the part of the residual outside the range of B
    constant  log of the constant in front of p(y | x)
    """

    scale: Tensor
    values: Tensor
    data: Tensor
    outside: Tensor
    constant: Tensor

    def __init__(
        self,
        transform: "DenseTransform | SpectralTransform",
        scale: Tensor,
        data: Tensor,
        outside: Tensor,
        constant: Tensor,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.register_buffer("scale", scale)
        self.register_buffer("values", transform.squares * scale**2)
        self.register_buffer("data", data)
        self.register_buffer("outside", outside)
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        """T x, (B, n) -> (B, p)."""
        return self.scale * self.transform(x)

    def backward(self, w: Tensor) -> Tensor:
        """T^T w, (B, p) -> (B, n)."""
        return self.scale * self.transform.backward(w)

    def rows(self, index: Tensor) -> Tensor:
        """These rows of T, (r, n)."""
        return self.scale * self.transform.rows(index)


class DenseTransform(nn.Module):
    """U^T A as a matrix.

    matrix   (p, n), rows orthogonal
    squares  their squared norms, (p,)
    """

    matrix: Tensor
    squares: Tensor

    def __init__(self, matrix: Tensor, squares: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("squares", squares)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def backward(self, w: Tensor) -> Tensor:
        return w @ self.matrix

    def rows(self, index: Tensor) -> Tensor:
        return self.matrix[index]


class SpectralTransform(nn.Module):
    """U^T A = S V^T by the operator's own decomposition, without its null space."""

    index: Tensor
    singular: Tensor

    def __init__(self, operator: Any, image_shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.operator = copy.deepcopy(operator)  # this module may move, the caller's operator must not
        self.image_shape = image_shape
        like = torch.zeros(1, *image_shape, dtype=torch.float64, device=device)
        s = operator.singular_values(like).to(torch.float64).expand(like.shape).flatten()
        self.register_buffer("index", s.nonzero()[:, 0])
        self.register_buffer("singular", s[self.index])

    @property
    def squares(self) -> Tensor:
        return self.singular**2

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.operator.vt(part.reshape(-1, *self.image_shape)).flatten(1) for part in x.split(CHUNK)]
        return self.singular * torch.cat(parts)[:, self.index]

    def backward(self, w: Tensor) -> Tensor:
        return torch.cat([self._backward(part) for part in w.split(CHUNK)])

    def _backward(self, w: Tensor) -> Tensor:
        z = w.new_zeros(len(w), math.prod(self.image_shape)).index_copy(1, self.index, self.singular * w)
        return self.operator.v(z.reshape(-1, *self.image_shape)).flatten(1)

    def rows(self, index: Tensor) -> Tensor:
        return self.backward(functional.one_hot(index, len(self.index)).to(self.singular))


# A decomposition takes seconds and an operator is a pure function: images measured by the same one share it.
_decompositions: "WeakKeyDictionary[Any, dict[tuple, tuple[Tensor, Tensor]]]" = WeakKeyDictionary()


@torch.no_grad()
def decompose(problem: Problem, device: torch.device) -> Decomposed:
    """The measurement in coordinates of the operator's singular vectors.

    From the operator's own decomposition where it has one, otherwise from its matrix: O(m^3) for m the smaller number
    of pixels and measured numbers, kept as long as the operator.

    Raises ValueError where that number is beyond `DENSE_LIMIT`.
    """
    with torch.autocast(device.type, enabled=False):
        rows, part = Rows(problem, device), noise_part(problem, device)
        w = rows.of(problem.y)[0]
        transform: DenseTransform | SpectralTransform
        if problem.operator.spectral:
            transform = SpectralTransform(problem.operator, rows.image_shape, device)
            data = problem.operator.ut(rows.back(w[None])).flatten()[transform.index]
        else:
            transform = DenseTransform(*_dense(rows))
            # S^-1 V^T A^T w: U itself would be as large as the matrix, and as slow to make as V.
            data = transform(rows.adjoint(w[None]))[0] / transform.squares
        outside = (w.square().sum() - data.square().sum()).clamp(min=0)
        return Decomposed(transform, 1 / part, data / part, outside / part**2, log_normaliser(rows.count, part))


def _dense(rows: Rows) -> tuple[Tensor, Tensor]:
    """U^T A, (p, n), and the squared norms of its rows."""
    kept = _decompositions.setdefault(rows.operator, {})
    key = (rows.image_shape, rows.y_shape, rows.device)
    if key not in kept:
        with torch.inference_mode(False):  # kept tensors must serve a later call that differentiates
            kept[key] = _decompose_dense(rows)
    return kept[key]


def _decompose_dense(rows: Rows) -> tuple[Tensor, Tensor]:
    n = math.prod(rows.image_shape)
    if min(n, rows.count) > DENSE_LIMIT:
        raise ValueError(
            f"an exact posterior decomposes the {rows.count} x {n} matrix of {type(rows.operator).__name__}, the limit "
            f"is {DENSE_LIMIT} rows or columns; use smaller images or an operator with a decomposition"
        )
    matrix = rows.matrix()
    matrix = matrix[matrix.any(1)]  # a tenth of the rays of a scanner misses the image
    rounding = torch.finfo(torch.float64).eps * max(n, rows.count)
    turned, values = _decompose_mirrored(*_mirrors(matrix.reshape(-1, *rows.image_shape), rounding))
    keep = values > rounding * values.max() if len(values) else values > 0
    return turned.flatten(1)[keep], values[keep]


def _mirrors(matrix: Tensor, rounding: float) -> tuple[Tensor, list[int]]:
    """A (m, C, H, W), or (m, C, H W) for half a turn, and the axes along which a mirror image commutes with A^T A."""
    shape = matrix.shape[1:]
    z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype).to(matrix.device)
    turns = [[], [-1], [-2], [-2, -1]]
    probes = torch.cat([z.flip(axes) for axes in turns]).flatten(1)
    answers = ((probes @ matrix.flatten(1).mT) @ matrix.flatten(1)).unflatten(1, shape)
    # One random image decides. The tolerance is below that of the rounding dropped in `_decompose_dense`.
    most = rounding * answers[0].norm()
    across, down, around = (
        bool((answer.flip(axes) - answers[0]).norm() <= most)
        for answer, axes in zip(answers[1:], turns[1:], strict=True)
    )
    if across or down:
        return matrix, [axis for axis, found in ((-1, across), (-2, down)) if found and shape[axis] > 1]
    return (matrix.flatten(2), [-1]) if around else (matrix, [])


def _decompose_mirrored(matrix: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """U^T A, (p, ...), and the squared norms of its rows, for A (m, ...) whose A^T A commutes with these mirrors."""
    m, n = len(matrix), math.prod(matrix.shape[1:])
    if axes and 2 * m > n:
        axis, rest = axes[0], axes[1:]
        even, odd = _halves(matrix, axis)
        (even, even_values), (odd, odd_values) = (_decompose_mirrored(half, rest) for half in (even, odd))
        nothing = [half.new_zeros(len(other), *half.shape[1:]) for half, other in ((odd, even), (even, odd))]
        turned = torch.cat([_whole(even, nothing[0], axis), _whole(nothing[1], odd, axis)])
        return turned, torch.cat([even_values, odd_values])
    flat = matrix.flatten(1)
    if m > n:
        values, right = torch.linalg.eigh(flat.mT @ flat)
        turned = values.clamp(min=0).sqrt()[:, None] * right.mT
    else:
        values, left = torch.linalg.eigh(flat @ flat.mT)
        turned = left.mT @ flat
    return turned.unflatten(1, matrix.shape[1:]), values


def _halves(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Even and odd part along an axis: sums and differences of each entry and its mirror image, orthonormal."""
    half = x.shape[axis] // 2
    first, middle, second = x.split([half, x.shape[axis] % 2, half], axis)
    second = second.flip(axis)
    return torch.cat([(first + second) / math.sqrt(2), middle], axis), (first - second) / math.sqrt(2)


def _whole(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """The inverse of `_halves`."""
    half = odd.shape[axis]
    sums, middle = even.split([half, even.shape[axis] - half], axis)
    first, second = (sums + odd) / math.sqrt(2), (sums - odd) / math.sqrt(2)
    return torch.cat([first, middle, second.flip(axis)], axis)


def condition(covariance_root: Tensor, matrix: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x = m + root z with z ~ N(0, I), given w = matrix x + n and the residuals w - matrix m.

    covariance_root  (n, q), root root^T is the covariance
    matrix           (M, n), whitened
    residuals        (K, M), for K means that share the covariance

    Returns the shifts of the means (K, n), a root of the posterior covariance (n, q), and log N(w; matrix m, ...)
    without the constant of the noise, (K,).
    """
    # p(z | w) has the covariance (I + H^T H)^-1 with H = matrix root, which stays positive where the textbook formula,
    # a difference, loses every digit.
    whitened = matrix @ covariance_root
    precision, directions = torch.linalg.eigh(whitened.mT @ whitened)
    precision = precision.clamp(min=0)
    shrink = 1 / (1 + precision)
    z = (shrink * (residuals @ whitened @ directions)) @ directions.mT
    # The quadratic form as the least of |w - H z|^2 + |z|^2: nothing is subtracted.
    quadratic = (residuals - z @ whitened.mT).square().sum(1) + z.square().sum(1)
    evidence = -0.5 * (quadratic + precision.log1p().sum())
    return z @ covariance_root.mT, covariance_root @ directions * shrink.sqrt(), evidence
