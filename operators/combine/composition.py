"""Composition of forward models: one operator after another.

Model   A x = A_n(... A_2(A_1 x)); linear where every part is, differentiable where every part is.
Shapes  all parts but the last map images to images (B, C, H, W); the last one determines shape and unit of y.
"""

from collections.abc import Sequence

from torch import Tensor

from ..blur.gaussian_blur import GaussianBlur
from ..camera.hdr import HDR
from ..camera.quantisation import Quantisation
from ..core.base import LinearOperator, Operator, Variants, kind_of_measurement
from ..core.parts import OperatorOfParts
from ..mri.mri import MRI
from ..pixels.inpainting import Inpainting
from ..pixels.super_resolution import SuperResolution


class Composition(OperatorOfParts):
    """Operators one after the other; `compose` returns the linear class where every part is linear.

    parts  in the order of application: the first one acts on the image, the last one gives y
    """

    @property
    def complex_measurement(self) -> bool:  # type: ignore[override]  # that of the last part, wherever it is
        return self.operators[-1].complex_measurement

    @property
    def ambiguous(self) -> bool:
        return any(part.ambiguous for part in self.operators)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.operators:
            x = part(x)
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        for part in self.operators:
            x = part.surrogate(x)
        return x

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor | None:
        """The entries of the last part: intermediate images are complete."""
        return self.operators[-1].measured(measurement_shape)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        shape: tuple[int, ...] | None = tuple(image_shape)
        for part in self.operators:
            shape = None if shape is None else part.measurement_shape(shape)
        return shape

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        shape: tuple[int, ...] | None = tuple(measurement_shape)
        for part in reversed(self.operators):
            shape = None if shape is None else part.image_shape(shape)
        return shape

    def frame(self, x: Tensor) -> Tensor:
        return self.operators[0].frame(x)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        *inner, last = self.operators
        for part in inner:
            if reason := part.mismatch(shape):
                return reason
            shape, is_complex = kind_of_measurement(part, shape)
            if len(shape) != 3 or is_complex:
                return f"composition: {type(part).__name__} must be last, for y is no real image (C, H, W)"
        return last.mismatch(shape)

    @classmethod
    def example(cls) -> tuple["Composition", tuple[int, ...]]:
        return cls([GaussianBlur(std=1.0, kernel_size=5), HDR()]), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        stepped = cls([SuperResolution(factor=2), Quantisation(bits=2)])
        return {"example": cls.example(), "stepped": (stepped, (1, 8, 6))}


class LinearComposition(Composition, LinearOperator):
    """Linear operators one after the other; their adjoints act in reverse order."""

    def adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.operators):
            assert isinstance(part, LinearOperator)
            y = part.adjoint(y)
        return y

    @classmethod
    def example(cls) -> tuple["LinearComposition", tuple[int, ...]]:
        return cls([GaussianBlur(std=0.7, kernel_size=3), SuperResolution(factor=2)]), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        shape, blur = (1, 8, 6), GaussianBlur(std=0.6, kernel_size=3)
        return {
            "example": cls.example(),
            "complex": (cls([blur, MRI(acceleration=2, center_fraction=0.3)]), shape),
            "per-image": (cls([Inpainting.random(shape, keep=0.5, seed=1, images=3), blur]), shape),
        }


def compose(parts: Sequence[Operator]) -> Composition:
    """The composition of operators in the order of application; a `LinearOperator` where all of them are."""
    linear = len(parts) > 0 and all(isinstance(part, LinearOperator) for part in parts)
    return (LinearComposition if linear else Composition)(parts)
