"""Each broken operator is refused, for the reason that it is broken."""

import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import (
    GaussianBlur,
    Inpainting,
    LinearOperator,
    Operator,
    SpectralOperator,
)

SHAPE = (1, 8, 8)


class Sound(LinearOperator):
    """A x = 2 x, right in every way; each class below spoils one thing."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Random(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + torch.randn_like(x)


class InPlace(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if not x.requires_grad else 2 * x


class Coupled(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + x.mean()


class Affine(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class HalfAdjoint(Sound):
    def adjoint(self, y: Tensor) -> Tensor:
        return y


class OneRho(Sound):
    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        return b / (4 + (rho if isinstance(rho, float) else rho.mean()))


class NoPinv(Sound):
    def pinv(self, y: Tensor) -> Tensor:
        return y


class LongPinv(LinearOperator):
    """Fits the data, but not with the least norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*measurement_shape[:-1], 2 * measurement_shape[-1])

    def pinv(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(2, -1) * torch.tensor([1.0, 5.0]).repeat(y.shape[-1])


class WrongVjp(Operator):
    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return x * v

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class HiddenGraph(Operator):
    differentiable = False

    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Cached(Sound):
    """Keeps a tensor made in whatever mode the first caller was in."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = 2 * torch.ones(1)
        return self.kept * x


class Forgets(Sound):
    """Has a gain per image, but not in `per_image`: chunks would use the first image's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain[: len(x)] * x


class OwnFunction(Operator):
    def __init__(self) -> None:
        super().__init__()
        self.f = lambda x: x + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


class Wide(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.double()


class WrongSpectrum(GaussianBlur):
    def singular_values(self, like: Tensor) -> Tensor:
        return 1.1 * super().singular_values(like)


class NotOrthonormal(Inpainting):
    def vt(self, x: Tensor) -> Tensor:
        return 2 * x

    def v(self, z: Tensor) -> Tensor:
        return z / 2


class Shape(Sound):
    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*measurement_shape[:-1], 3)


class WrongShape(Sound):
    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape[1:]


class WrongKind(Sound):
    complex_measurement = True

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape


def test_the_sound_one_passes() -> None:
    check_operator(Sound(), SHAPE)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Random(), "second call"),
        (InPlace(), "changes its input images|second call"),
        (Coupled(), "measured alone differs"),
        (Affine(), "affine|is not linear"),
        (HalfAdjoint(), "adjoint is not the transpose"),
        (OneRho(), "does not solve"),
        (NoPinv(), "pinv misses a noiseless measurement"),
        (LongPinv(), "least norm"),
        (WrongVjp(), "differs from finite differences"),
        (HiddenGraph(), "has differentiable = False"),
        (Cached(), "after a call in inference mode"),
        (Forgets(), "measured alone differs"),
        (OwnFunction(), "cannot be pickled"),
        (Wide(), "of float32 images gives torch.float64"),
        (WrongSpectrum(std=0.8, kernel_size=5), "not U S V'|does not solve|pinv"),
        (WrongShape(), "measurement_shape gives"),
        (WrongKind(), "complex_measurement is True, but forward gives torch.float32"),
        (NotOrthonormal(keep=0.5), "does not keep lengths"),
        (Shape(), "image_shape says|adjoint"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else "",
)
def test_a_broken_operator_is_refused(operator: Operator, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_operator(operator, SHAPE)


def test_an_operator_that_refuses_its_example() -> None:
    with pytest.raises(AssertionError, match="refuses the image"):
        check_operator(Inpainting(box=100), SHAPE)
    assert issubclass(SpectralOperator, LinearOperator)
