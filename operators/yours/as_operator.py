"""Operators from forward models that were not written for invdiff: any callable, any `deepinv` physics, any matrix.

See `black_box.py` for simulators outside torch, `matrix.py` for matrices, `from_file.py` for files of the user.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, Operator, Variants, as_image_shape, linear_map, shape_mismatch
from .black_box import called, from_scipy
from .matrix import MatrixOperator


class CallableOperator(Operator):
    """Any function x (B, C, H, W) -> y (B, ...) of tensors.

    differentiable  autograd works through it; False for a black box
    image_shape     (C, H, W), required where the prior does not determine it
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
        """The result of the function. Raises ValueError unless it is a measurement of these images."""
        if not isinstance(y, Tensor):
            hint = "; use BlackBox for functions of NumPy arrays" if isinstance(y, np.ndarray) else ""
            raise ValueError(f"{called(self.function)} must return a tensor, got {type(y).__name__}{hint}")
        if y.dim() < 2 or len(y) != len(x):
            raise ValueError(
                f"{called(self.function)} must return (B, ...), one row per image and at least one more axis, got "
                f"{describe_shape(tuple(y.shape))} for {len(x)} images"
            )
        return y

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return self._image_shape

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return shape_mismatch("callable", self._image_shape, shape)

    @classmethod
    def example(cls) -> tuple["CallableOperator", tuple[int, ...]]:
        return cls(torch.tanh), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "black-box": (cls(torch.square, differentiable=False), (3, 7, 6))}


class LinearCallableOperator(CallableOperator, LinearOperator):
    """A linear function.

    adjoint  None: taken by autograd; a given one is used by autograd, and the function need not be differentiable
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        image_shape: tuple[int, ...] | None,
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(function, image_shape=as_image_shape("linear callable", image_shape))
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


# Parameters of deepinv's physics with an optional image axis, their first one.
DEEPINV_PER_IMAGE = ("mask", "coil_maps", "filter", "filters", "multipliers", "angle", "Fh", "Fhc", "Fh2")


class DeepinvOperator(Operator):
    """A `deepinv.physics.Physics` without its noise model."""

    def __init__(self, physics: Any) -> None:
        super().__init__()
        self.physics = physics

    def forward(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        shape = getattr(self.physics, "img_size", None)
        # Some physics keep (H, W) only, without the number of channels.
        return tuple(shape) if shape is not None and len(shape) > 2 else None

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor | None:
        from deepinv.physics import MRI, Inpainting, MultiCoilMRI, SinglePixelCamera

        # In these, `mask` marks the measured entries of y; in others (a coded aperture, a spectrum) it does not.
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
    """A `deepinv.physics.LinearPhysics`.

    `solve` and `pinv` are those of invdiff: the default solver of deepinv 0.5 couples the images of a batch, and its
    closed form for colourisation is wrong.
    """

    def adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)

    @classmethod
    def example(cls) -> tuple["LinearDeepinvOperator", tuple[int, ...]]:
        from deepinv.physics import Inpainting

        # A mask and not a rate, for which deepinv keeps a generator that can be neither copied nor pickled.
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
    """An `Operator` from any forward model.

    obj             an `Operator` (returned unchanged), a `deepinv` physics, a matrix (dense or sparse, of torch, NumPy
                    or SciPy), a `scipy.sparse.linalg.LinearOperator`, or a callable on batches of images. For functions
                    of NumPy arrays use `BlackBox`
    linear          a callable is linear (requires `image_shape`; the adjoint is taken by autograd unless given)
    differentiable  autograd works through a callable
    image_shape     (C, H, W) of the images; required for a matrix, a SciPy operator and a linear callable
    adjoint         the adjoint of a linear callable, used by autograd as well

    Raises TypeError for any other object, ValueError for arguments that do not fit it.
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
    if products is not None and isinstance(obj, products.LinearOperator):
        return from_scipy(obj, image_shape)
    if _is_matrix(obj):
        return MatrixOperator(obj, image_shape=image_shape)
    if not callable(obj):
        raise TypeError(
            "an operator must be an invdiff Operator, a deepinv Physics, a matrix or a callable, got "
            f"{type(obj).__name__}"
        )
    if linear and (differentiable or adjoint is not None):
        return LinearCallableOperator(obj, image_shape=image_shape, adjoint=adjoint)
    if linear:
        raise ValueError(
            "a linear callable must be differentiable, for its adjoint is taken by autograd; or give adjoint="
        )
    if adjoint is not None:
        raise ValueError("adjoint= requires linear=True")
    return CallableOperator(obj, differentiable=differentiable, image_shape=image_shape)


def _is_matrix(obj: Any) -> bool:
    if isinstance(obj, (Tensor, np.ndarray)):
        return obj.ndim == 2
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(obj)
