"""The contracts of forward models.

`Operator` is any A; `LinearOperator` adds what follows from linearity; `SpectralOperator` adds a singular value
decomposition and derives everything else from it in closed form. An operator is a pure function: the same configuration
and the same image give the same measurement at every call. Noise is separate, in `noise/`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from invdiff.recorded import Recorded
from invdiff.shapes import describe_shape, per_row

from .conjugate_gradients import conjugate_gradients

Map = Callable[[Tensor], Tensor]
Variants = Mapping[str, tuple["Operator", tuple[int, ...]]]


class Drawn(NamedTuple):
    """How a parameter came about that was not given: from a seed or a simulation. A real y was made by another.

    instead  the option that gives it, such as `operator.mask=FILE`; "" where there is none
    by       name of the option that decides the draw, such as `seed`
    rule     options of the rule by which it is drawn, null where it is given: who sets one wants a draw of a whole y
    """

    instead: str
    by: str = "seed"
    rule: tuple[str, ...] = ()


class Operator(Recorded, nn.Module, ABC):
    """A forward model A: images (B, C, H, W) in image units -> measurements (B, ...), real or complex.

    Traits, compared with the requirements of a sampler before any work:

    linear               A(ax + by) = aA(x) + bA(y)
    differentiable       autograd works through `forward`
    spectral             the singular value decomposition is available
    masking              y is the image with some pixels set to zero (`measured` gives the others), as in `Inpainting`
    stepped              A has steps, such as rounding: gradients are those of the `surrogate`
    ambiguous            some images have the same measurement by construction, and `align` chooses among them
    complex_measurement  y is complex; undefined where `measurement_shape` returns None

    per_image  names of the buffers with a leading image axis: length 1 (shared by all images) or one entry per image
    of_scenes  options for measurements of a scene that goes on outside the frame, such as photographs, unlike simulated
               ones: the command takes them with `measurement=` where the user chose no other and the prior is for
               images of any size
    """

    linear: ClassVar[bool] = False
    differentiable: bool = True
    spectral: ClassVar[bool] = False
    masking: ClassVar[bool] = False
    complex_measurement: bool = False
    per_image: ClassVar[tuple[str, ...]] = ()
    of_scenes: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x), batched over the leading dimension: (B, C, H, W) -> (B, ...)."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Transposed Jacobian at x applied to v, a tensor like A(x); shaped like x, differentiable in v (not in x).

        Raises RuntimeError for an operator that is not differentiable.
        """
        if not self.differentiable:
            raise RuntimeError(f"{type(self).__name__} is a black box: autograd does not work through it")
        again = torch.is_grad_enabled() and v.requires_grad
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(x), x, v, create_graph=again)
        return gradient

    def surrogate(self, x: Tensor) -> Tensor:
        """Smooth approximation of A, whose Jacobian `vjp` and autograd apply; A itself unless A has steps.

        An operator with steps, such as rounding, returns `straight_through(exact, self.surrogate(x))` from `forward`.
        """
        return self(x)

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        """For each image, the one nearest to its reference among all images with the same measurement.

        x and reference are (B, C, H, W). Returns x unless the operator has trivial ambiguities (a flip, a shift, a
        sign). For scores only, never inside a method.
        """
        return x

    @property
    def ambiguous(self) -> bool:
        return type(self).align is not Operator.align

    @property
    def stepped(self) -> bool:
        return type(self).surrogate is not Operator.surrogate

    # -- shapes --------------------------------------------------------------------------------------------------------

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor | None:
        """Boolean mask of the measured entries of y, broadcastable to (B, *measurement_shape); None: all of them.

        Other entries carry neither noise nor likelihood.
        """
        return None

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of one measurement, without batch axis, of an image (C, H, W) that `mismatch` accepts.

        None where only a call of `forward` can tell. `complex_measurement` gives the kind of its entries.
        """
        return None

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """(C, H, W) of the images with measurements of this shape (no batch axis); None where it is not determined.

        Raises ValueError for a shape that no measurement has.
        """
        return None

    def frame(self, x: Tensor) -> Tensor:
        """The part of images (..., H, W) that y shows; all of it where y determines no margin."""
        return x

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        """None where images of this (C, H, W) can be measured, otherwise the reason why not."""
        return None

    def first_guess(self, y: Tensor) -> Tensor | None:
        """A quick image from y, without a prior: the baseline of every comparison. None where there is none."""
        return None

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        """Parameters that were drawn from a seed or simulated because none were given, by name."""
        return {}

    # -- parameters per image ------------------------------------------------------------------------------------------

    @property
    def images(self) -> int:
        """Number of images with parameters of their own; 1 where all images share them."""
        values = (getattr(self, name) for name in self.per_image)
        return max((value.shape[0] for value in values if value is not None), default=1)

    def select(self, index: Tensor) -> Self:
        """The operator of these images, in this order (repetitions allowed): used to chunk and to repeat batches."""
        if self.images == 1:
            return self
        chosen = copy.copy(self)
        chosen._buffers = dict(self._buffers)
        for name in self.per_image:
            value = getattr(self, name)
            if value is not None and value.shape[0] > 1:
                setattr(chosen, name, value[index.to(value.device)])
        return chosen

    # -- exchange with deepinv -----------------------------------------------------------------------------------------

    def to_deepinv(self) -> Any:
        """This operator as a `deepinv` physics without noise, for `deepinv`'s own algorithms."""
        from deepinv.physics import LinearPhysics, Physics

        if not isinstance(self, LinearOperator):
            return Physics(A=lambda x, **_: self(x))
        return LinearPhysics(A=lambda x, **_: self(x), A_adjoint=lambda y, **_: self.adjoint(y))

    # -- instances to test ---------------------------------------------------------------------------------------------

    @classmethod
    def example(cls) -> tuple["Operator", tuple[int, ...]]:
        """A small instance and the image shape (C, H, W) to try it on, for the conformance tests."""
        raise NotImplementedError(f"{cls.__name__} gives no example()")

    @classmethod
    def variants(cls) -> Variants:
        """Small instances of the modes of this operator, by name, each with its image shape; `example` among them."""
        return {"example": cls.example()}


class SameShape(Operator):
    """An operator whose measurements have the shape of the images."""

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(image_shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(measurement_shape)


class LinearOperator(Operator):
    """A linear A. A subclass writes `forward` and, where autograd would be slow, `adjoint`."""

    linear: ClassVar[bool] = True

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y (real images: the real part of A^H y), (B, ...) -> (B, C, H, W).

        The default transposes `forward` by autograd; it needs `image_shape`.
        """
        shape = self.image_shape(tuple(y.shape[1:]))
        if shape is None:
            raise ValueError(f"{type(self).__name__} must define image_shape() or adjoint()")
        real = y.real.dtype if y.is_complex() else y.dtype
        return self.vjp(torch.zeros(y.shape[0], *shape, dtype=real, device=y.device), y)

    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        """(A^T A + rho I)^-1 b, with rho > 0 a float or one per row (B,); b and the result are images.

        The default iterates conjugate gradients, each image until its own convergence.
        """
        rho = per_row(rho, b)
        return conjugate_gradients(lambda x: self.adjoint(self(x)) + rho * x, b)

    def pinv(self, y: Tensor) -> Tensor:
        """Pseudo-inverse A^+ y: the least-squares image of least norm. The default iterates conjugate gradients."""
        return conjugate_gradients(lambda x: self.adjoint(self(x)), self.adjoint(y))

    def first_guess(self, y: Tensor) -> Tensor:
        return self.pinv(y)


class SpectralOperator(LinearOperator):
    """A = U S V^T with V square and orthonormal.

    The spectrum of an image has the image's shape (C, H, W); directions in the null space of A have singular value 0.
    A subclass writes the five methods below and may override `forward` and `adjoint` with shorter computations.
    """

    spectral: ClassVar[bool] = True

    # `pinv` counts singular values below this fraction of the largest one of the image as zero: they are rounding
    # errors of the decomposition.
    cutoff: float = 1e-3

    @abstractmethod
    def singular_values(self, like: Tensor) -> Tensor:
        """S for spectra (or images) shaped like this one, (B, C, H, W), on its device: (1 or B, 1 or C, H, W)."""

    @abstractmethod
    def vt(self, x: Tensor) -> Tensor:
        """V^T x: image -> spectrum."""

    @abstractmethod
    def v(self, z: Tensor) -> Tensor:
        """V z: spectrum -> image."""

    @abstractmethod
    def ut(self, y: Tensor) -> Tensor:
        """U^T y: measurement -> spectrum, zero where there is no singular value."""

    @abstractmethod
    def u(self, z: Tensor) -> Tensor:
        """U z: spectrum -> measurement."""

    def forward(self, x: Tensor) -> Tensor:
        return self.u(self.singular_values(x) * self.vt(x))

    def adjoint(self, y: Tensor) -> Tensor:
        z = self.ut(y)
        return self.v(self.singular_values(z) * z)

    def pinv(self, y: Tensor) -> Tensor:
        z = self.ut(y)
        s = self.singular_values(z)
        largest = s.flatten(1).amax(1)
        keep = s > self.cutoff * per_row(largest, s)
        return self.v(torch.where(keep, z / s.where(keep, 1), 0))

    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        s = self.singular_values(b)
        return self.v(self.vt(b) / (s**2 + per_row(rho, b)))


def as_image_shape(name: str, shape: Sequence[int] | None) -> tuple[int, ...]:
    """(C, H, W) as a tuple. Raises ValueError for anything else."""
    if shape is None:
        raise ValueError(f"{name}: image_shape=(C, H, W) of the images is required")
    found = tuple(int(n) for n in shape)
    if len(found) != 3 or min(found) < 1:
        raise ValueError(f"{name}: image_shape must be (C, H, W), integers >= 1, got {list(found)}")
    return found


def shape_mismatch(name: str, own: tuple[int, ...] | None, shape: tuple[int, ...]) -> str | None:
    """None where an operator for images of its own shape (None: of any) measures those of this one, or the reason."""
    if own is None or tuple(shape) == own:
        return None
    wanted = ",".join(str(n) for n in shape)
    return (
        f"{name}: image_shape is {describe_shape(own)}, the image {describe_shape(shape)}; set image_shape=[{wanted}]"
    )


def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `smooth`."""
    return exact.detach() + (smooth - smooth.detach())


def linear_map(x: Tensor, apply: Map, transpose: Map) -> Tensor:
    """apply(x), differentiable to any order.

    apply      a real-linear map of images to measurements, real or complex
    transpose  its transpose; for complex measurements the real part of A^H y
    """
    return _LinearMap.apply(x, apply, transpose) if torch.is_grad_enabled() and x.requires_grad else apply(x)


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Map, transpose: Map) -> Tensor:
        ctx.maps = apply, transpose
        return apply(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.maps
        return _LinearMap.apply(gradient, transpose, apply), None, None


def kind_of_measurement(
    operator: Operator, image_shape: tuple[int, ...], device: torch.device | None = None
) -> tuple[tuple[int, ...], bool]:
    """Shape of one measurement of an image of this (C, H, W), and whether it is complex.

    Runs the operator on a black image where it does not define `measurement_shape`.

    device  of that image; None: where the buffers of the operator are
    """
    shape = operator.measurement_shape(image_shape)
    if shape is not None:
        return tuple(shape), operator.complex_measurement
    y = of_black(operator, image_shape, device)
    return tuple(y.shape), y.is_complex()


def of_black(operator: Operator, image_shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """The measurement of one black image of this (C, H, W), without batch axis; device as of `kind_of_measurement`."""
    held = next(chain(operator.buffers(), operator.parameters()), None)
    if device is None and held is not None:
        device = held.device
    with torch.no_grad():
        one = operator.select(torch.zeros(1, dtype=torch.long))
        y: Tensor = one(torch.zeros(1, *image_shape, device=device))[0]
    return y
