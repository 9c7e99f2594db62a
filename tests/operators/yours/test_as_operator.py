"""Ways in for other people's forward models, and the way back to deepinv."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from deepinv import physics as deepinv
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import (
    HDR,
    MRI,
    CallableOperator,
    Denoising,
    GaussianBlur,
    Inpainting,
    LinearBlackBox,
    LinearCallableOperator,
    LinearOperator,
    Operator,
    SuperResolution,
    as_operator,
    compose,
    stack,
)
from invdiff.operators.yours.as_operator import DeepinvOperator, LinearDeepinvOperator

Normal = Callable[..., Tensor]
SHAPE = (1, 8, 8)


def in_numpy(x: Tensor) -> Tensor:
    """A simulator outside torch."""
    return torch.from_numpy(np.tanh(x.numpy())[..., ::2])


# -- ways in -----------------------------------------------------------------------------------------------------------


def test_an_operator_is_returned_as_it_is() -> None:
    operator = Inpainting(keep=0.5)
    assert as_operator(operator) is operator


def test_linear_physics(normal: Normal) -> None:
    physics = deepinv.Blur(filter=normal(1, 1, 3, 3, dtype=torch.float32), padding="circular")
    operator = as_operator(physics)
    assert isinstance(operator, LinearDeepinvOperator)
    assert operator.linear
    assert operator.differentiable
    x = normal(2, *SHAPE, dtype=torch.float32)
    assert torch.equal(operator(x), physics.A(x))
    assert torch.equal(operator.adjoint(x), physics.A_adjoint(x))
    assert operator.to_deepinv() is physics


def test_nonlinear_physics(normal: Normal) -> None:
    physics = deepinv.Physics(A=lambda x, **_: x**2, noise_model=deepinv.GaussianNoise(1.0))
    operator = as_operator(physics)
    assert isinstance(operator, DeepinvOperator)
    assert not isinstance(operator, LinearOperator)
    assert not operator.linear
    x, v = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    assert torch.equal(operator(x), x**2)  # without the noise of the physics
    torch.testing.assert_close(operator.vjp(x, v), 2 * x * v)
    assert operator.to_deepinv() is physics
    assert operator.image_shape(SHAPE) is None


def test_callable(normal: Normal) -> None:
    operator = as_operator(torch.sin, image_shape=SHAPE)
    assert isinstance(operator, CallableOperator)
    assert not operator.linear
    assert operator.differentiable
    assert operator.image_shape((99,)) == SHAPE
    x, v = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    torch.testing.assert_close(operator(x), x.sin())
    torch.testing.assert_close(operator.vjp(x, v), x.cos() * v)
    assert as_operator(torch.sin).image_shape((99,)) is None


def test_vjp_under_no_grad_and_of_an_image_that_wants_grad(normal: Normal) -> None:
    """Neither the caller's mode nor the caller's graph is touched."""
    operator, v = as_operator(torch.sin), normal(2, *SHAPE, seed=1)
    x = normal(2, *SHAPE).requires_grad_(True)
    with torch.no_grad():
        gradient = operator.vjp(x, v)
        assert not torch.is_grad_enabled()
    assert not gradient.requires_grad
    assert x.grad is None
    torch.testing.assert_close(gradient, x.detach().cos() * v)


def test_module_as_callable(normal: Normal) -> None:
    """A network is a forward model like any other; its weights move with the operator."""
    network = torch.nn.Conv2d(1, 2, 3).double()
    operator = as_operator(network)
    assert len(list(operator.parameters())) == 2
    assert operator(normal(2, *SHAPE)).shape == (2, 2, 6, 6)


def differentiates_inside(x: Tensor) -> Tensor:
    with torch.enable_grad():
        return 2 * x


@pytest.mark.parametrize(
    "function",
    [in_numpy, torch.tanh, differentiates_inside, torch.nn.Conv2d(1, 1, 3).double()],
    ids=["numpy", "torch", "enables-grad", "has-weights"],
)
def test_black_box(function: Callable[[Tensor], Tensor], normal: Normal) -> None:
    """No gradient flows, even where one could, and one that is asked for is refused in words."""
    operator = as_operator(function, differentiable=False)
    assert not operator.differentiable
    x = normal(2, *SHAPE).requires_grad_(True)
    y = operator(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, function(x.detach()).detach())
    with pytest.raises(RuntimeError, match="CallableOperator is a black box"):
        operator.vjp(x, y)


def test_linear_callable(normal: Normal) -> None:
    operator = as_operator(lambda x: x.cumsum(-1), linear=True, image_shape=SHAPE)
    assert isinstance(operator, LinearCallableOperator)
    assert operator.linear
    y = normal(2, *SHAPE)
    torch.testing.assert_close(operator.adjoint(y), y.flip(-1).cumsum(-1).flip(-1))
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=1e-6, atol=1e-6)


def test_given_adjoint_is_used(normal: Normal) -> None:
    calls = []

    def adjoint(y: Tensor) -> Tensor:
        calls.append(len(y))
        return 2 * y

    operator = LinearCallableOperator(lambda x: 2 * x, image_shape=SHAPE, adjoint=adjoint)
    y = normal(3, *SHAPE)
    torch.testing.assert_close(operator.adjoint(y), 2 * y)
    assert calls == [3]


def test_given_adjoint_is_used_by_autograd(normal: Normal) -> None:
    """Whatever the function is made of."""
    operator = as_operator(in_numpy_linear, linear=True, differentiable=False, adjoint=repeated, image_shape=SHAPE)
    assert operator.linear
    assert operator.differentiable
    x, v = normal(2, *SHAPE).requires_grad_(True), normal(2, 1, 8, 4, seed=1)
    (gradient,) = torch.autograd.grad((operator(x) * v).sum(), x)
    torch.testing.assert_close(gradient, repeated(v))
    check_operator(operator, SHAPE)


def in_numpy_linear(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy()[..., ::2] + x.detach().numpy()[..., 1::2])


def repeated(y: Tensor) -> Tensor:
    return y.repeat_interleave(2, -1)


def test_a_function_that_gives_no_measurement() -> None:
    for differentiable in [True, False]:
        for function, words in [
            (
                lambda x: x.detach().numpy(),
                "must return a tensor, got ndarray; use BlackBox for functions of NumPy arrays",
            ),
            (lambda x: None, "must return a tensor, got NoneType"),
            (lambda x: x[:1], r"must return \(B, ...\), .* got 1x1x8x8 for 2 images"),
            (lambda x: x.sum((1, 2, 3)), "at least one more axis, got 2 for 2 images"),
        ]:
            with pytest.raises(ValueError, match=words):
                as_operator(function, differentiable=differentiable)(torch.ones(2, *SHAPE))


def test_images_of_another_size_are_refused() -> None:
    assert as_operator(torch.sin, image_shape=SHAPE).mismatch((1, 9, 8)) == (
        "callable: image_shape is 1x8x8, the image 1x9x8; set image_shape=[1,9,8]"
    )
    assert as_operator(torch.sin).mismatch((1, 9, 8)) is None


@pytest.mark.parametrize("thing", [3.0, "blur", None, torch.zeros(3)])
def test_anything_else_is_refused(thing: Any) -> None:
    words = f"an invdiff Operator, a deepinv Physics, a matrix or a callable, got {type(thing).__name__}"
    with pytest.raises(TypeError, match=words):
        as_operator(thing)


def test_linear_callable_needs_a_shape() -> None:
    with pytest.raises(ValueError, match=r"image_shape=\(C, H, W\) of the images is required"):
        as_operator(torch.neg, linear=True)


def test_linear_callable_cannot_be_a_black_box() -> None:
    """Its adjoint is taken by autograd: better refused here than by autograd in the middle of a run."""
    with pytest.raises(ValueError, match="must be differentiable"):
        as_operator(torch.neg, linear=True, differentiable=False, image_shape=SHAPE)
    with pytest.raises(ValueError, match="adjoint= requires linear=True"):
        as_operator(torch.neg, adjoint=torch.neg)


# -- what a deepinv physics says of itself -----------------------------------------------------------------------------


def bits(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5).float()


COILS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.complex64)


class Vignette(deepinv.LinearPhysics):
    """Its mask is of the image, not of the measurement, though they have one shape."""

    def __init__(self) -> None:
        super().__init__(img_size=SHAPE)
        self.register_buffer("mask", bits(1, *SHAPE))

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return (self.mask * x).roll(1, -1)


@pytest.mark.parametrize(
    ("physics", "channels", "masks"),
    [
        (deepinv.Inpainting(img_size=(3, 8, 8), mask=bits(1, 1, 8, 8)), 3, True),
        (deepinv.Demosaicing(img_size=(8, 8)), 3, True),
        (deepinv.MRI(mask=bits(1, 2, 8, 8)), 2, True),
        (deepinv.MultiCoilMRI(mask=bits(1, 2, 8, 8), coil_maps=COILS), 2, True),
        (deepinv.SinglePixelCamera(m=20, img_size=(1, 8, 8)), 1, True),
        (deepinv.CompressiveSpectralImaging(img_size=(7, 8, 8)), 7, False),
        (deepinv.BlurFFT(img_size=(1, 8, 8), filter=torch.ones(1, 1, 3, 3)), 1, False),
        (deepinv.Denoising(), 1, False),
        (Vignette(), 1, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else str(value),
)
def test_measured(physics: deepinv.LinearPhysics, channels: int, masks: bool, normal: Normal) -> None:
    """A mask of the measurement is taken for one; a coded aperture or a spectrum of the same name is not."""
    operator = as_operator(physics)
    y = operator(normal(2, channels, 8, 8, dtype=torch.float32))
    observed = operator.measured(tuple(y.shape[1:]))
    assert (observed is not None) == masks
    if observed is not None:
        assert observed.dtype == torch.bool
        assert torch.broadcast_shapes(observed.shape, y.shape) == y.shape
        assert (y.masked_select(~observed) == 0).all()
        assert not observed.all()


def test_image_shape() -> None:
    assert as_operator(deepinv.Inpainting(img_size=(3, 8, 8), mask=bits(8, 8))).image_shape((3, 8, 8)) == (3, 8, 8)
    assert as_operator(deepinv.MRI(mask=bits(8, 9))).image_shape((2, 8, 9)) == (2, 8, 9)
    without_channels = deepinv.LinearPhysics(img_size=(8, 8))
    assert as_operator(without_channels).image_shape((8, 8)) is None


def test_select_leaves_the_physics_alone(normal: Normal) -> None:
    mask = bits(3, 1, 8, 8)
    physics = deepinv.Inpainting(img_size=SHAPE, mask=mask.clone())
    operator = as_operator(physics)
    assert operator.images == 3
    x = normal(2, *SHAPE, dtype=torch.float32)
    some = operator.select(torch.tensor([2, 0]))
    assert torch.equal(some(x), x * mask[[2, 0]])
    assert torch.equal(some.measured(SHAPE), mask[[2, 0]] != 0)
    assert torch.equal(physics.mask, mask)
    shared = as_operator(deepinv.Inpainting(img_size=SHAPE, mask=mask[:1]))
    assert shared.select(torch.tensor([0, 0])) is shared


# -- the way back ------------------------------------------------------------------------------------------------------

NATIVE: dict[str, LinearOperator] = {
    "denoising": Denoising(),
    "inpainting": Inpainting(keep=0.5),
    "blur": GaussianBlur(std=0.7, kernel_size=5),
    "super-resolution": SuperResolution(factor=2),
    "callable": LinearCallableOperator(lambda x: x.diff(dim=-1), image_shape=SHAPE),
    "black box": LinearBlackBox(np.flip, np.flip, image_shape=SHAPE),
    "complex": MRI(acceleration=2),
    "composition": compose([GaussianBlur(std=0.7, kernel_size=5), SuperResolution(factor=2)]),
    "stacking": stack([SuperResolution(factor=2), MRI(acceleration=2)], image_shape=SHAPE),
}


@pytest.mark.parametrize("operator", NATIVE.values(), ids=NATIVE)
def test_to_deepinv(operator: LinearOperator, normal: Normal) -> None:
    physics = operator.to_deepinv()
    assert isinstance(physics, deepinv.LinearPhysics)
    x = normal(2, *SHAPE, dtype=torch.float32)
    y = physics(x)  # a physics draws its noise here: there must be none
    assert torch.equal(y, operator(x))
    assert torch.equal(physics.A(x), operator(x))
    assert torch.equal(physics.A_adjoint(y), operator.adjoint(y))
    if not y.is_complex():  # deepinv would compare with the complex adjoint, but images are real
        assert physics.adjointness_test(x) < 1e-5
    assert physics.A_dagger(y).shape == x.shape
    back = as_operator(physics)
    assert torch.equal(back(x), operator(x))
    assert torch.equal(back.adjoint(y), operator.adjoint(y))


def test_deepinvs_own_solver_agrees(normal: Normal) -> None:
    operator = NATIVE["super-resolution"]
    y = normal(2, 1, 4, 4, dtype=torch.float32)
    found = operator.to_deepinv().A_dagger(y, max_iter=200, tol=1e-6)
    torch.testing.assert_close(found, operator.pinv(y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "operator",
    [
        HDR(),
        compose([GaussianBlur(std=0.7, kernel_size=5), HDR()]),
        stack([HDR(), SuperResolution(factor=2)], image_shape=SHAPE),
        CallableOperator(lambda x: torch.fft.fft2(x**2)),
    ],
    ids=["HDR", "composition", "stacking", "complex"],
)
def test_there_and_back_without_linearity(operator: Operator, normal: Normal) -> None:
    x = normal(2, *SHAPE, dtype=torch.float32)
    back = as_operator(operator.to_deepinv())
    assert isinstance(back, DeepinvOperator)
    assert not back.linear
    y = operator(x)
    assert torch.equal(back(x), y)
    torch.testing.assert_close(back.vjp(x, y), operator.vjp(x, y))


def test_nonlinear_to_deepinv(normal: Normal) -> None:
    operator = as_operator(torch.sin)
    physics = operator.to_deepinv()
    assert isinstance(physics, deepinv.Physics)
    assert not isinstance(physics, deepinv.LinearPhysics)
    x, v = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    assert torch.equal(physics(x), x.sin())
    torch.testing.assert_close(physics.A_vjp(x, v), operator.vjp(x, v))


# -- defaults of the contract ------------------------------------------------------------------------------------------


class Bare(Operator):
    """Only `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_an_operator_that_says_little() -> None:
    operator = Bare()
    assert operator.measured((64,)) is None
    assert operator.image_shape((64,)) is None
    assert operator.mismatch(SHAPE) is None
    assert operator.first_guess(torch.zeros(1, 64)) is None
    assert operator.images == 1
    assert operator.select(torch.tensor([0, 0])) is operator
    with pytest.raises(NotImplementedError, match="Bare gives no example"):
        Bare.example()
