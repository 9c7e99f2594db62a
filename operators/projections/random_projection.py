"""Random projections of small vectors, one per image: the measurements of the mixture benchmark.

Model   A x = U S V^T x: U and V of a Gaussian matrix with few rows, S uniform on [0, 1] and sorted. The standard
        deviation of the noise is a uniform fraction of the largest value, and by default the unit of y.
Shapes  x (B, C, H, W) -> y (B, m).
Paper   Cardoso et al., Monte Carlo Guided Denoising Diffusion Models for Bayesian Linear Inverse Problems, ICLR 2024,
        section 5, there not in units of the noise; posteriors are the same.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from invdiff.shapes import describe_shape

from ..core.base import Drawn, SpectralOperator, Variants, as_image_shape, shape_mismatch
from .compressed_sensing import decompose


class RandomProjection(SpectralOperator):
    """A matrix of few rows for each image.

    image_shape   (C, H, W) of the images, which y does not determine
    measurements  m, an integer from 1 to C H W
    images        number of matrices: matrix i measures image i of a benchmark
    normalised    y in units of its noise, which has standard deviation 1; otherwise its standard deviation is `noise`
    seed          determines each matrix together with its number

    noise  (images,) float64
    """

    per_image = ("matrix", "left", "values", "turn", "inner", "reflections")
    matrix: Tensor
    left: Tensor
    values: Tensor
    turn: Tensor
    inner: Tensor
    reflections: Tensor

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        measurements: int = 1,
        images: int = 1,
        normalised: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shape = as_image_shape("random_projection", image_shape)
        if not 1 <= measurements <= prod(shape):
            raise ValueError(
                f"random_projection: measurements must be an integer from 1 to {prod(shape)}, got {measurements}"
            )
        if images < 1:
            raise ValueError(f"random_projection: images must be an integer >= 1, got {images}")
        self._image_shape, self.measurements, self.seed = shape, measurements, seed
        found = [_draw(measurements, prod(shape), seed, i) for i in range(images)]
        matrices, self.noise = (torch.stack(part) for part in zip(*found, strict=True))
        if normalised:
            matrices, self.noise = matrices / self.noise[:, None, None], torch.ones_like(self.noise)
        parts = [torch.stack(part) for part in zip(*(decompose(matrix) for matrix in matrices), strict=True)]
        for name, part in zip(self.per_image, [matrices, *parts], strict=True):
            self.register_buffer(name, part)

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"matrix": Drawn("operator=matrix operator.matrix=FILE")}

    def _rows(self, x: Tensor) -> Tensor:
        """Images as (B, 1, n)."""
        reason = self.mismatch(tuple(x.shape[1:]))
        if reason is not None:
            raise ValueError(reason)
        return x.flatten(1)[:, None]

    def _images(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), *self._image_shape)

    def _measured(self, y: Tensor) -> Tensor:
        """Measurements as (B, 1, m)."""
        self.image_shape(tuple(y.shape[1:]))
        return y[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return (self._rows(x) @ self.matrix.to(x).mT)[:, 0]

    def adjoint(self, y: Tensor) -> Tensor:
        return self._images(self._measured(y) @ self.matrix.to(y))

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.measurements,)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(measurement_shape) != (self.measurements,):
            raise ValueError(
                f"random_projection: a measurement must be {self.measurements} number(s), got "
                f"{describe_shape(tuple(measurement_shape))}"
            )
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return shape_mismatch("random_projection", self._image_shape, shape)

    def singular_values(self, like: Tensor) -> Tensor:
        return self._images(self.values.to(like))

    def vt(self, x: Tensor) -> Tensor:
        # V = (1 - Y T Y^T) diag(W, 1), see `compressed_sensing.decompose`.
        y, t, w, rows = self.reflections.to(x), self.inner.to(x), self.turn.to(x), self._rows(x)
        rows = rows - ((rows @ y) @ t) @ y.mT
        return self._images(torch.cat([rows[..., : self.measurements] @ w, rows[..., self.measurements :]], -1))

    def v(self, z: Tensor) -> Tensor:
        y, t, w, rows = self.reflections.to(z), self.inner.to(z), self.turn.to(z), self._rows(z)
        rows = torch.cat([rows[..., : self.measurements] @ w.mT, rows[..., self.measurements :]], -1)
        return self._images(rows - ((rows @ y) @ t.mT) @ y.mT)

    def ut(self, y: Tensor) -> Tensor:
        rows = self._measured(y) @ self.left.to(y)
        return self._images(pad(rows, (0, prod(self._image_shape) - self.measurements)))

    def u(self, z: Tensor) -> Tensor:
        return (self._rows(z)[..., : self.measurements] @ self.left.to(z).mT)[:, 0]

    @classmethod
    def example(cls) -> tuple["RandomProjection", tuple[int, ...]]:
        return cls(image_shape=(1, 16, 16), measurements=20), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        shape = (1, 4, 5)
        return {
            "example": cls.example(),
            "per-image": (cls(image_shape=shape, measurements=3, images=4), shape),
            "in-own-units": (cls(image_shape=shape, measurements=20, normalised=False), shape),
        }


def _draw(m: int, n: int, seed: int, image: int) -> tuple[Tensor, Tensor]:
    """A matrix (m, n) and the standard deviation of its noise, a scalar; float64."""
    generator = torch.Generator().manual_seed((seed << 20) + image)
    u, _, vt = torch.linalg.svd(torch.randn(m, n, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.rand(m, generator=generator, dtype=torch.float64).sort(descending=True).values
    return (u * values) @ vt, torch.rand((), generator=generator, dtype=torch.float64) * values[0]
