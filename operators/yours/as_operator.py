"""Ways in for forward models that were not written for invdiff: any callable, any `deepinv` physics, any matrix.

Simulators outside torch are in `black_box.py`, matrices in `matrix.py`, operators in a file of the user's in
`user_file.py`.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, Operator, Variants, linear_map
from .black_box import called, from_scipy, refuses_other
from .matrix import MatrixOperator


class CallableOperator(Operator):
    """Any function x (B, C, H, W) -> y (B, ...) of tensors.

    differentiable  whether autograd may be sent through it; False for a black box
    image_shape     (C, H, W), needed where it does not follow from the prior
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        differentiable: bool = True,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        self.differentiable = differentiable
        self._image_shape = None if image_shape is None else tuple(image_shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.differentiable:
            return self._checked(self.function(x), x)
        with torch.no_grad():
            return self._checked(self.function(x.detach()), x)

    def _checked(self, y: Any, x: Tensor) -> Tensor:
        """What the function gave, if it is a measurement of these images."""
        if not isinstance(y, Tensor):
            hint = "; BlackBox takes functions of NumPy arrays" if isinstance(y, np.ndarray) else ""
            raise ValueError(f"{called(self.function)} gives {type(y).__name__}, not a tensor{hint}")
        if y.dim() < 2 or len(y) != len(x):
            raise ValueError(
                f"{called(self.function)} gives {describe_shape(tuple(y.shape))} for a batch of {len(x)} images; a "
                "measurement is (B, ...), with one row for each image and at least one more axis"
            )
        return y

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return refuses_other("callable", self._image_shape, shape)

    @classmethod
    def example(cls) -> tuple["CallableOperator", tuple[int, ...]]:
        return cls(torch.tanh), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "black-box": (cls(torch.square, differentiable=False), (3, 7, 6))}


class LinearCallableOperator(CallableOperator, LinearOperator):
    """A linear function. Its adjoint is taken by autograd, or given, and then autograd uses it, whatever the function
    is made of.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        image_shape: tuple[int, ...],
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(function, image_shape=image_shape)
        self._adjoint = adjoint

    def forward(self, x: Tensor) -> Tensor:
        if self._adjoint is None:
            return super().forward(x)
        return self._checked(linear_map(x, self.function, self._adjoint), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) if self._adjoint is None else linear_map(y, self._adjoint, self.function)

    @classmethod
    def example(cls) -> tuple["LinearCallableOperator", tuple[int, ...]]:
        return cls(lambda x: x.diff(dim=-1), image_shape=(1, 16, 16)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        shape = (3, 7, 6)
        return {
            "example": cls.example(),
            "adjoint": (cls(torch.neg, image_shape=shape, adjoint=torch.neg), shape),
            "complex": (cls(torch.fft.rfft2, image_shape=shape), shape),
        }


# The parameters of deepinv's physics that may have one entry per image, along their first axis.
DEEPINV_PER_IMAGE = ("mask", "coil_maps", "filter", "filters", "multipliers", "angle", "Fh", "Fhc", "Fh2")


class DeepinvOperator(Operator):
    """A `deepinv.physics.Physics`; its noise model is not part of it."""

    def __init__(self, physics: Any) -> None:
        super().__init__()
        self.physics = physics

    def forward(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        shape = getattr(self.physics, "img_size", None)
        # Some physics keep (H, W) only, which does not tell the channels.
        return tuple(shape) if shape is not None and len(shape) > 2 else None

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor | None:
        from deepinv.physics import MRI, Inpainting, MultiCoilMRI, SinglePixelCamera

        # In these, `mask` says which entries of y were measured; in others (a coded aperture, a spectrum) it does not.
        if not isinstance(self.physics, (Inpainting, MRI, MultiCoilMRI, SinglePixelCamera)):
            return None
        mask = self.physics.mask
        if mask is None:
            return None
        if isinstance(self.physics, MultiCoilMRI):
            mask = mask[:, :, None]  # the coil axis of y
        fits = mask.dim() == len(measurement_shape) + 1 and all(
            m in (1, n) for m, n in zip(mask.shape[1:], measurement_shape, strict=True)
        )
        return mask != 0 if fits else None

    def _parameters_per_image(self) -> dict[str, Tensor]:
        buffers = self.physics._buffers
        found = {name: buffers[name] for name in DEEPINV_PER_IMAGE if buffers.get(name) is not None}
        return {name: value for name, value in found.items() if value.dim() >= 4 and value.shape[0] > 1}

    @property
    def images(self) -> int:
        return max((value.shape[0] for value in self._parameters_per_image().values()), default=1)

    def select(self, index: Tensor) -> Self:
        parameters = self._parameters_per_image()
        if not parameters:
            return self
        physics = copy.copy(self.physics)
        physics._buffers = {**physics._buffers, **{k: v[index.to(v.device)] for k, v in parameters.items()}}
        chosen = copy.copy(self)
        chosen._modules = {"physics": physics}
        return chosen

    def to_deepinv(self) -> Any:
        return self.physics

    @classmethod
    def example(cls) -> tuple["DeepinvOperator", tuple[int, ...]]:
        from deepinv.physics import Physics

        return cls(Physics(A=lambda x, **_: x**2)), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example()}


class LinearDeepinvOperator(DeepinvOperator, LinearOperator):
    """A `deepinv.physics.LinearPhysics`. `solve` and `pinv` are invdiff's own: deepinv 0.5's default solver couples the
    images of a batch, and its closed form for colourisation is wrong.
    """

    def adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)

    @classmethod
    def example(cls) -> tuple["LinearDeepinvOperator", tuple[int, ...]]:
        from deepinv.physics import Inpainting

        # A mask and not a rate: deepinv would keep the generator, which can be neither copied nor pickled.
        mask = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
        return cls(Inpainting(img_size=(1, 16, 16), mask=mask.float())), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        from deepinv.physics import Blur, Inpainting

        shape, draws = (3, 7, 6), torch.Generator().manual_seed(8)
        taps = torch.randn(3, 1, 5, 3, generator=draws)
        taps[..., 2, 1] += 12  # well conditioned
        masks = (torch.rand(3, 1, 7, 6, generator=draws) < 0.5).float()
        return {
            "example": cls.example(),
            "blur-per-image": (cls(Blur(filter=taps, padding="reflect")), shape),
            "masks-per-image": (cls(Inpainting(img_size=shape, mask=masks)), shape),
        }


def as_operator(
    obj: Any,
    *,
    linear: bool = False,
    differentiable: bool = True,
    image_shape: tuple[int, ...] | None = None,
    adjoint: Callable[[Tensor], Tensor] | None = None,
) -> Operator:
    """Whatever the user has, as an `Operator`.

    obj             an `Operator` (returned as it is), a `deepinv` physics, a matrix (dense or sparse, of torch, NumPy
                    or SciPy), a `scipy.sparse.linalg.LinearOperator`, or a callable on batches of images. Functions of
                    NumPy arrays go in `BlackBox`
    linear          a callable only: it is linear (needs `image_shape`; the adjoint is taken by autograd unless given)
    differentiable  a callable only: autograd may be sent through it
    image_shape     (C, H, W) of its images; for a callable, a matrix and a SciPy operator
    adjoint         a linear callable only: its adjoint, through which autograd goes then

    Raises TypeError for anything else.
    """
    if isinstance(obj, Operator):
        return obj
    # A physics can only exist once deepinv was imported; importing it here would cost seconds for nothing.
    physics = sys.modules.get("deepinv.physics")
    if physics is not None and isinstance(obj, physics.LinearPhysics):
        return LinearDeepinvOperator(obj)
    if physics is not None and isinstance(obj, physics.Physics):
        return DeepinvOperator(obj)
    products = sys.modules.get("scipy.sparse.linalg")
    is_scipy = products is not None and isinstance(obj, products.LinearOperator)
    is_matrix = _is_matrix(obj)
    if (is_matrix or is_scipy) and image_shape is None:
        raise TypeError("a matrix needs image_shape=(C, H, W), so that its columns are the pixels of an image")
    if is_scipy:
        return from_scipy(obj, image_shape or ())
    if is_matrix:
        return MatrixOperator(obj, image_shape=image_shape or ())
    if not callable(obj):
        given = type(obj).__name__
        raise TypeError(f"an operator is an invdiff Operator, a deepinv Physics, a matrix or a callable, got {given}")
    if not linear:
        if adjoint is not None:
            raise TypeError("adjoint= goes with linear=True")
        return CallableOperator(obj, differentiable=differentiable, image_shape=image_shape)
    if not differentiable and adjoint is None:
        raise TypeError(
            "a linear callable must be differentiable, for its adjoint is taken by autograd; or give adjoint="
        )
    if image_shape is None:
        raise TypeError("a linear callable needs image_shape=(C, H, W), so that its adjoint can be taken")
    return LinearCallableOperator(obj, image_shape=image_shape, adjoint=adjoint)


def _is_matrix(obj: Any) -> bool:
    if isinstance(obj, (Tensor, np.ndarray)):
        return obj.ndim == 2
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(obj)
