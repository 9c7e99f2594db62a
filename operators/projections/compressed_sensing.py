"""Compressed sensing: random projections of the image, fewer than its pixels.

Model   A x = a dense matrix of m rows times the pixels, entries independent N(0, 1/m), drawn from a seed. Exact
        adjoint; pseudo-inverse and decomposition from one QR factorisation.
Shapes  x (B, C, H, W) -> y (B, m), or (B, C, m) with `channelwise`. Entries of y have a standard deviation of
        |x| / sqrt(m).
Paper   Candes and Tao, Near-optimal signal recovery from random projections, IEEE Trans. Inf. Theory 52 (2006); Bora et
        al., Compressed sensing using generative models, ICML 2017.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from invdiff.shapes import describe_shape

from ..core.base import Drawn, SpectralOperator, Variants, as_image_shape, shape_mismatch

MOST_BYTES = 2**30  # of the matrix in single precision; its decomposition takes a few times as much


class Decomposition(NamedTuple):
    """A = U S V^T. V = (1 - Y T Y^T) diag(W, 1), n x n, is kept as its n x m part Y, without an n x n array."""

    u: Tensor  # (m, m)
    s: Tensor  # (n,), zero from m on
    w: Tensor  # (m, m)
    t: Tensor  # (m, m)
    y: Tensor  # (n, m)


class CompressedSensing(SpectralOperator):
    """A Gaussian matrix.

    image_shape  (C, H, W) of the images, which y does not determine
    ratio        measurements per pixel, m / n, in (0, 1]
    channelwise  one matrix measures each channel separately, n = H W; otherwise all together, n = C H W
    seed         determines the matrix

    The matrix is dense, m x n numbers, at most 1 GiB.
    """

    matrix: Tensor

    def __init__(
        self, *, image_shape: Sequence[int], ratio: float = 0.25, channelwise: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        shape = as_image_shape("compressed_sensing", image_shape)
        if not 0 < ratio <= 1:
            raise ValueError(f"compressed_sensing: ratio must be in (0, 1], measurements per pixel, got {ratio}")
        n = prod(shape[1:]) if channelwise else prod(shape)
        m = max(1, round(ratio * n))
        if 4 * m * n > MOST_BYTES:
            raise ValueError(
                f"compressed_sensing: the matrix must take <= {MOST_BYTES / 2**30:.0f} GiB, got "
                f"{4 * m * n / 2**30:.1f} GiB for {m} measurements of {n} pixels; lower ratio, use smaller images or "
                "channelwise=true, or operator=hadamard, which needs no matrix"
            )
        self._image_shape, self.ratio, self.channelwise, self.seed = shape, ratio, channelwise, seed
        # The float32 numbers define the operator, also in double precision.
        self.register_buffer("matrix", torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) / m**0.5)
        self._decompositions: dict[tuple, Decomposition] = {}  # a pure function of the matrix; computed once for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"matrix": Drawn("operator=matrix operator.matrix=FILE")}

    def _decomposition(self, like: Tensor) -> Decomposition:
        key = (like.dtype, like.device)
        if key not in self._decompositions:
            with torch.inference_mode(False), torch.no_grad():  # must serve a later call that differentiates
                parts = decompose(self.matrix.cpu().double())
                self._decompositions[key] = Decomposition(*(part.to(like.device, like.dtype) for part in parts))
        return self._decompositions[key]

    def _rows(self, x: Tensor) -> Tensor:
        """Images as vectors (B, C, n), C = 1 unless channelwise."""
        reason = self.mismatch(tuple(x.shape[1:]))
        if reason is not None:
            raise ValueError(reason)
        return x.reshape(x.shape[0], -1, self.matrix.shape[1])

    def _images(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], *self._image_shape)

    def _measurements(self, rows: Tensor) -> Tensor:
        return rows if self.channelwise else rows[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self._measurements(self._rows(x) @ self.matrix.to(x.dtype).mT)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._images(self._measured_rows(y) @ self.matrix.to(y.dtype))

    def _measured_rows(self, y: Tensor) -> Tensor:
        self.image_shape(tuple(y.shape[1:]))
        return y if self.channelwise else y[:, None]

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        m = self.matrix.shape[0]
        return (image_shape[0], m) if self.channelwise else (m,)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        wanted = self.measurement_shape(self._image_shape)
        if tuple(measurement_shape) != wanted:
            raise ValueError(
                f"compressed_sensing: a measurement must be {describe_shape(wanted)}, got "
                f"{describe_shape(tuple(measurement_shape))}"
            )
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return shape_mismatch("compressed_sensing", self._image_shape, shape)

    def singular_values(self, like: Tensor) -> Tensor:
        s = self._decomposition(like).s
        return s.reshape(1, -1, *self._image_shape[1:])

    def vt(self, x: Tensor) -> Tensor:
        d = self._decomposition(x)
        rows, m = self._rows(x), len(d.w)
        rows = rows - ((rows @ d.y) @ d.t) @ d.y.mT
        return self._images(torch.cat([rows[..., :m] @ d.w, rows[..., m:]], -1))

    def v(self, z: Tensor) -> Tensor:
        d = self._decomposition(z)
        rows, m = self._rows(z), len(d.w)
        rows = torch.cat([rows[..., :m] @ d.w.mT, rows[..., m:]], -1)
        return self._images(rows - ((rows @ d.y) @ d.t.mT) @ d.y.mT)

    def ut(self, y: Tensor) -> Tensor:
        rows = self._measured_rows(y) @ self._decomposition(y).u
        return self._images(pad(rows, (0, self.matrix.shape[1] - rows.shape[-1])))

    def u(self, z: Tensor) -> Tensor:
        d = self._decomposition(z)
        return self._measurements(self._rows(z)[..., : len(d.u)] @ d.u.mT)

    @classmethod
    def example(cls) -> tuple["CompressedSensing", tuple[int, ...]]:
        return cls(image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        shape = (3, 7, 6)
        return {
            "example": cls.example(),
            "all-channels": (cls(image_shape=shape, ratio=0.3), shape),
            "channelwise": (cls(image_shape=shape, ratio=0.3, channelwise=True), shape),
            "square": (cls(image_shape=(1, 4, 5), ratio=1.0), (1, 4, 5)),
        }


def decompose(matrix: Tensor) -> Decomposition:
    """Singular value decomposition of a wide matrix (m, n), m <= n, for n m^2 operations and no n x n array.

    A^T = Q R, Q in the compact form 1 - Y T Y^T of Schreiber and Van Loan (1989), and R^T = U S W^T.
    """
    m, n = matrix.shape
    packed, tau = torch.geqrf(matrix.mT.contiguous())
    u, s, wt = torch.linalg.svd(packed[:m].triu().mT)
    eye = torch.eye(n, m, dtype=matrix.dtype)
    # The last reflection of a square matrix is the identity, tau = 0: its column is left out.
    y = torch.where(tau == 0, 0, packed.tril(-1) + eye)
    inverse = (y.mT @ y).triu(1) + torch.diag(torch.where(tau == 0, 1, 1 / tau))
    t = torch.linalg.solve_triangular(inverse, eye[:m], upper=True)
    return Decomposition(u, pad(s, (0, n - m)), wt.mT, t, y)
