"""What every MRI operator must satisfy, against dense linear algebra in float64.

The suite of `test_linear.py`, for operators that take one channel or two.
"""

import copy
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from invdiff.operators import MRI, LinearOperator, MulticoilMRI, RadialMRI

Shape = tuple[int, ...]
Normal = Callable[..., Tensor]


def random_maps(*shape: int) -> Tensor:
    """Neither smooth nor of sum one: nothing that an operator could take for granted."""
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.complex64)
    maps[..., :2, :2] = 0  # no coil sees this corner
    return maps


def masks(shape: Shape, images: int, pattern: str) -> Tensor | None:
    return MRI.random(shape, acceleration=1.6, pattern=pattern, seed=4, images=images).mask


BUILDERS: dict[str, tuple[Callable[[Shape, int], LinearOperator], int]] = {
    "mri": (lambda shape, images: MRI(acceleration=2, center_fraction=0.3), 1),
    "mri-positions": (lambda shape, images: MRI(acceleration=2, pattern="radial"), 1),
    "mri-per-image": (lambda shape, images: MRI.random(shape, acceleration=2, seed=1, images=images), 1),
    "mri-complex": (lambda shape, images: MRI(acceleration=3, center_fraction=0.3, complex_image=True), 2),
    "mri-complex-per-image": (lambda shape, images: MRI.random(shape, acceleration=2, seed=1, images=images), 2),
    "multicoil": (lambda shape, images: MulticoilMRI(coils=4, acceleration=2), 1),
    "multicoil-complex": (lambda shape, images: MulticoilMRI(coils=4, acceleration=1.5, complex_image=True), 2),
    "multicoil-positions": (lambda shape, images: MulticoilMRI(coils=4, acceleration=1.3, pattern="radial"), 1),
    "multicoil-mask-per-image": (
        lambda shape, images: MulticoilMRI.random(shape, coils=3, acceleration=2, seed=1, images=images),
        1,
    ),
    "multicoil-maps-per-image": (
        lambda shape, images: MulticoilMRI(maps=random_maps(images, 3, *shape[-2:]), complex_image=True),
        2,
    ),
    "multicoil-all-per-image": (
        lambda shape, images: MulticoilMRI(
            maps=random_maps(images, 3, *shape[-2:]), mask=masks(shape, images, "radial"), complex_image=True
        ),
        2,
    ),
    "radial": (lambda shape, images: RadialMRI(size=shape[-2:], spokes=12), 1),
    "radial-golden": (
        lambda shape, images: RadialMRI(size=shape[-2:], spokes=15, samples=13, angles="golden", complex_image=True),
        2,
    ),
    "radial-coils": (lambda shape, images: RadialMRI(size=shape[-2:], spokes=9, coils=3), 1),
    "radial-maps-per-image": (
        lambda shape, images: RadialMRI(maps=random_maps(images, 3, *shape[-2:]), spokes=9, complex_image=True),
        2,
    ),
}


class Case(NamedTuple):
    build: Callable[[Shape, int], LinearOperator]
    shape: Shape
    images: int


CASES = {
    f"{name}-{height}x{width}": Case(build, (channels, height, width), 3)
    for name, (build, channels) in BUILDERS.items()
    for height, width in ((6, 7), (7, 6))
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def operator(case: Case) -> LinearOperator:
    return case.build(case.shape, case.images).double()


@pytest.fixture
def x(case: Case, normal: Normal) -> Tensor:
    return normal(case.images, *case.shape, seed=1)


@pytest.fixture
def y(operator: LinearOperator, x: Tensor, normal: Normal) -> Tensor:
    """Not in the range of A, as noisy measurements are not."""
    like = operator(x)
    return normal(*like.shape, seed=2, dtype=like.dtype)


@pytest.fixture
def rho(case: Case) -> Tensor:
    return torch.logspace(-1, 1, case.images, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("size", [(3, 5), (8, 4), (13, 16), (20, 11)])
@pytest.mark.parametrize("name", BUILDERS)
def test_adjoint(
    name: str,
    size: Shape,
    images: int,
    dtype: torch.dtype,
    tolerance: float,
    normal: Normal,
    flatten: Callable[[Tensor], Tensor],
) -> None:
    build, channels = BUILDERS[name]
    operator = build((channels, *size), images).to(dtype)  # `to`, which must not drop imaginary parts
    x = normal(images, channels, *size, dtype=dtype)
    ax = operator(x)
    y = normal(*ax.shape, seed=1, dtype=ax.dtype)
    aty = operator.adjoint(y)
    assert (aty.shape, aty.dtype) == (x.shape, x.dtype)
    left, right = (flatten(ax) * flatten(y)).sum(1), (x * aty).flatten(1).sum(1)
    assert ((left - right).abs() <= tolerance * flatten(ax).norm(dim=1) * flatten(y).norm(dim=1)).all()


def test_solve(operator: LinearOperator, x: Tensor, rho: Tensor, case: Case, dense: Callable[..., Tensor]) -> None:
    shared, per_row = operator.solve(x, 0.3), operator.solve(x, rho)
    for i in range(case.images):
        a = dense(operator, case.shape, i)
        for got, level in ((shared, 0.3), (per_row, rho[i])):
            wanted = torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1], dtype=a.dtype), x[i].flatten())
            assert (got[i].flatten() - wanted).norm() <= 1e-9 * wanted.norm()


def test_pinv(
    operator: LinearOperator,
    y: Tensor,
    case: Case,
    dense: Callable[..., Tensor],
    flatten: Callable[[Tensor], Tensor],
) -> None:
    got = operator.pinv(y)
    for i in range(case.images):
        # Where it is cut off there is no singular value near, so that iterated and exact inverses agree.
        wanted = torch.linalg.pinv(dense(operator, case.shape, i), rtol=1e-3) @ flatten(y)[i]
        assert (got[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()


def test_derivatives(operator: LinearOperator, x: Tensor, y: Tensor) -> None:
    """autograd of A is the adjoint, also after a call in inference mode; and the adjoint is differentiable in y."""
    with torch.inference_mode():
        operator(x.clone())
        operator.solve(x.clone(), 1.0)
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y), rtol=1e-10, atol=1e-10)
    with torch.enable_grad():
        y = y.requires_grad_(True)
        (gradient,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
        torch.testing.assert_close(gradient, operator(x), rtol=1e-10, atol=1e-10)
        b = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((operator.solve(b, 1.0) * x).sum(), b)
    torch.testing.assert_close(gradient, operator.solve(x, 1.0), rtol=1e-9, atol=1e-9)  # it is symmetric


@pytest.mark.parametrize("warm", [False, True])
def test_select(operator: LinearOperator, x: Tensor, y: Tensor, rho: Tensor, warm: bool) -> None:
    """Rows alone, in any order and repeated; before and after decompositions were kept."""
    if warm:
        operator.pinv(y)
    index = torch.tensor([2, 0, 0, 1])
    some = operator.select(index)
    got = some(x[index]), some.adjoint(y[index]), some.pinv(y[index]), some.solve(x[index], rho[index])
    wanted = operator(x)[index], operator.adjoint(y)[index], operator.pinv(y)[index], operator.solve(x, rho)[index]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    again = some.select(torch.tensor([3]))
    torch.testing.assert_close(again.pinv(y[1:2]), operator.pinv(y)[1:2], rtol=1e-9, atol=1e-10)
    guess = operator.first_guess(y)
    torch.testing.assert_close(some.first_guess(y[index]), guess[index], rtol=1e-9, atol=1e-10)


def test_a_bad_row_harms_no_other(operator: LinearOperator, x: Tensor, y: Tensor) -> None:
    for value in (0.0, torch.nan):
        bad_x, bad_y = x.clone(), y.clone()
        bad_x[0], bad_y[0] = value, value
        for whole, bad in (
            (operator(x), operator(bad_x)),
            (operator.pinv(y), operator.pinv(bad_y)),
            (operator.solve(x, 0.1), operator.solve(bad_x, 0.1)),
        ):
            assert (bad[0] == 0).all() if value == 0 else bad[0].isnan().any()
            torch.testing.assert_close(bad[1:], whole[1:], rtol=1e-9, atol=1e-10)


def test_what_was_not_measured_is_not_looked_at(operator: LinearOperator, y: Tensor) -> None:
    mask = operator.measured(tuple(y.shape[1:]))
    if mask is None:
        return
    assert not mask.all()
    holed = torch.where(mask, y, torch.nan)
    torch.testing.assert_close(operator.adjoint(holed), operator.adjoint(y))
    torch.testing.assert_close(operator.pinv(holed), operator.pinv(y))
    assert (operator(operator.adjoint(y)).masked_select(~mask) == 0).all()


def test_keeps_single_precision(case: Case, normal: Normal, rho: Tensor) -> None:
    operator = case.build(case.shape, case.images)
    assert all(buffer.dtype not in (torch.float64, torch.complex128) for buffer in operator.buffers())
    x = normal(case.images, *case.shape, dtype=torch.float32)
    y = operator(x)
    assert y.dtype == torch.complex64
    for image in (operator.adjoint(y), operator.pinv(y), operator.solve(x, rho), operator.first_guess(y)):
        assert (image.dtype, image.shape) == (torch.float32, x.shape)


def test_copies(operator: LinearOperator, case: Case, x: Tensor) -> None:
    wanted = operator.solve(x, 0.5)
    assert torch.equal(case.build(case.shape, case.images).double().solve(x, 0.5), wanted)
    assert torch.equal(copy.deepcopy(operator).solve(x, 0.5), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(operator)).solve(x, 0.5), wanted)


def test_shapes(operator: LinearOperator, case: Case, x: Tensor) -> None:
    assert operator.mismatch(case.shape) is None
    assert operator.image_shape(tuple(operator(x).shape[1:])) == case.shape
