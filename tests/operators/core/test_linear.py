"""Every linear operator, in every variant, against dense linear algebra in float64.

`contracts.conformance.check_operator` runs on the same variants; here stands what it does not: exact values, odd and
even sizes, gradients through the adjoint, rows with zeros and NaN, unmeasured entries, precision.
"""

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import invdiff.operators  # noqa: F401, which defines the subclasses
from invdiff.operators import (
    LinearCallableOperator,
    LinearOperator,
    MulticoilMRI,
    RandomProjection,
    SpectralOperator,
    SuperResolution,
)
from invdiff.operators.core.separable import SeparableOperator

Shape = tuple[int, ...]
Normal = Callable[..., Tensor]
OTHER_SHAPES = ((1, 7, 6), (3, 4, 5), (2, 6, 7), (1, 8, 16))


def linear_operators(base: type[LinearOperator] = LinearOperator) -> dict[str, type[LinearOperator]]:
    found = {}
    for cls in base.__subclasses__():
        if cls.__module__.startswith("invdiff.operators.") and not inspect.isabstract(cls):
            found[cls.__name__] = cls
        found |= linear_operators(cls)
    return found


CASES: dict[str, tuple[LinearOperator, Shape]] = {
    f"{name}-{mode}": case  # type: ignore[misc]  # those of a LinearOperator are one
    for name, cls in sorted(linear_operators().items())
    for mode, case in cls.variants().items()
}
each = pytest.mark.parametrize("name", CASES)


def instance(name: str) -> tuple[LinearOperator, Shape, int]:
    """A new copy in double precision, the shape of its images, and a number of them."""
    operator, shape = CASES[name]
    images = operator.images if operator.images > 1 else 3
    return copy.deepcopy(operator).double(), shape, images


def random_y(operator: LinearOperator, x: Tensor, normal: Normal) -> Tensor:
    """Not in the range of A, as noisy measurements are not."""
    like = operator(x)
    return normal(*like.shape, seed=2, dtype=like.dtype)


@each
def test_dense_algebra(
    name: str, normal: Normal, dense: Callable[..., Tensor], flatten: Callable[[Tensor], Tensor]
) -> None:
    """Forward, adjoint, solve, pinv and decomposition are those of the matrix of each image, whatever its size."""
    operator, own, images = instance(name)
    if operator.spectral:
        assert isinstance(operator, SpectralOperator)
        check_decomposition(operator, own, images, normal)
    shapes = [own] + [shape for shape in OTHER_SHAPES if operator.mismatch(shape) is None and not is_bound(operator)]
    for shape in dict.fromkeys(shapes):
        x = normal(images, *shape, seed=1)
        y = random_y(operator, x, normal)
        rho = torch.logspace(-1, 1, images, dtype=torch.float64)
        ax, aty = flatten(operator(x)), operator.adjoint(y)
        shared, per_row = operator.solve(x, 0.3), operator.solve(x, rho)
        x_plus = operator.pinv(y) if well_conditioned(operator, shape, dense) else None
        if x_plus is not None and type(operator).first_guess is LinearOperator.first_guess:
            torch.testing.assert_close(operator.first_guess(y), x_plus)
        assert aty.shape == shared.shape == x.shape
        for i in range(images):
            a = dense(operator, shape, i)
            near(ax[i], a @ x[i].flatten(), 1e-12)
            near(aty[i].flatten(), a.T @ flatten(y)[i], 1e-12)
            for got, level in ((shared, 0.3), (per_row, rho[i])):
                near(
                    got[i].flatten(), torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1]), x[i].flatten()), 1e-5
                )
            if x_plus is not None:
                near(x_plus[i].flatten(), torch.linalg.pinv(a, rtol=cutoff(operator)) @ flatten(y)[i], 1e-5)
            if isinstance(operator, SpectralOperator):
                s = torch.linalg.svdvals(a)
                values = operator.singular_values(x).expand_as(x)[i].flatten().sort(descending=True).values
                near(values, torch.nn.functional.pad(s, (0, len(values) - len(s))), 1e-8)


def well_conditioned(operator: LinearOperator, shape: Shape, dense: Callable[..., Tensor]) -> bool:
    """Whether `pinv` is a closed form, or its iterations, which end at a residual, are short and exact."""
    if operator.spectral or isinstance(operator, MulticoilMRI):
        return True
    s = torch.linalg.svdvals(dense(operator, shape))
    return bool(s[0] < 30 * s[s > cutoff(operator) * s[0]][-1])


def cutoff(operator: LinearOperator) -> float:
    return getattr(operator, "cutoff", 1e-9)


def is_bound(operator: LinearOperator) -> bool:
    """Whether it takes images of one shape only, although `mismatch` does not say so: those of deepinv."""
    return hasattr(operator, "physics")


def near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (got - wanted).norm() <= tolerance * wanted.norm().clamp(min=1e-3)


def check_decomposition(operator: SpectralOperator, shape: Shape, images: int, normal: Normal) -> None:
    """V is orthonormal, U is where A has singular values, and A = U S V^T."""
    x, z = normal(images, *shape, seed=1), normal(images, *shape, seed=3)
    y, s = random_y(operator, x, normal), operator.singular_values(x)
    exact = {"rtol": 1e-10, "atol": 1e-11}
    assert s.shape[0] in (1, images)
    assert (s >= 0).all()
    torch.testing.assert_close(operator.vt(operator.v(z)), z, **exact)
    torch.testing.assert_close(operator.v(operator.vt(x)), x, **exact)
    torch.testing.assert_close((operator.v(z) * x).flatten(1).sum(1), (z * operator.vt(x)).flatten(1).sum(1))
    seen = s > 0
    torch.testing.assert_close(operator.ut(operator.u(z)), torch.where(seen, z, 0), **exact)
    inner = (operator.u(z).conj() * y).real if y.is_complex() else operator.u(z) * y
    torch.testing.assert_close(inner.flatten(1).sum(1), (z * operator.ut(y)).flatten(1).sum(1))
    assert (operator.ut(y).masked_select(~seen).abs() < 1e-12).all()
    assert (operator.u(torch.where(seen, 0, z)).abs() < 1e-12).all()
    torch.testing.assert_close(operator(x), operator.u(s * operator.vt(x)), **exact)
    torch.testing.assert_close(operator.adjoint(y), operator.v(s * operator.ut(y)), **exact)


@pytest.mark.slow
@each
def test_rows(name: str, normal: Normal, dense: Callable[..., Tensor]) -> None:
    """In any order and repeated, before and after a decomposition was kept; zeros and NaN in one row harm no other."""
    operator, shape, images = instance(name)
    x, rho = normal(images, *shape, seed=1), torch.logspace(-1, 1, images, dtype=torch.float64)
    y, index = random_y(operator, x, normal), torch.tensor([2, 0, 0, 1])
    close, invertible = {"rtol": 1e-9, "atol": 1e-10}, well_conditioned(operator, shape, dense)

    def results(operator: LinearOperator, rows: Tensor) -> list[Tensor]:
        a, b = x[rows], y[rows]
        images = [operator.pinv(b), operator.first_guess(b)] if invertible else []
        return [operator(a), operator.adjoint(b), operator.solve(a, rho[rows]), *images]

    cold = results(operator.select(index), index)
    whole = results(operator, torch.arange(images))
    warm = results(operator.select(index), index)
    again = results(operator.select(index).select(torch.tensor([3])), index[3:])
    for wanted, first, second, alone in zip(whole, cold, warm, again, strict=True):
        torch.testing.assert_close(first, wanted[index], **close)
        torch.testing.assert_close(second, wanted[index], **close)
        torch.testing.assert_close(alone, wanted[index[3:]], **close)
    for value in (0.0, torch.nan):
        x[0], y[0] = value, value
        for wanted, spoilt in zip(whole, results(operator, torch.arange(images)), strict=True):
            assert (spoilt[0] == 0).all() if value == 0 else spoilt[0].isnan().any()
            torch.testing.assert_close(spoilt[1:], wanted[1:], **close)


@pytest.mark.slow
@each
def test_gradients(name: str, normal: Normal) -> None:
    """vjp is the adjoint, also after a call in inference mode; adjoint and solve are differentiable."""
    operator, shape, images = instance(name)
    x = normal(images, *shape, seed=1)
    with torch.inference_mode():
        operator(x.clone())
        if not isinstance(operator, LinearCallableOperator):  # an adjoint by autograd needs a graph
            operator.solve(x.clone(), 1.0)
    y = random_y(operator, x, normal)
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y), rtol=1e-10, atol=1e-10)
    with torch.enable_grad():
        y.requires_grad_(True)
        (gradient,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
        b = x.clone().requires_grad_(True)
        (solved,) = torch.autograd.grad((operator.solve(b, 1.0) * x).sum(), b)
    torch.testing.assert_close(gradient, operator(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solved, operator.solve(x, 1.0), rtol=1e-6, atol=1e-6)  # the inverse is symmetric


@pytest.mark.slow
@each
def test_unmeasured_entries_and_precision(name: str, normal: Normal, dense: Callable[..., Tensor]) -> None:
    """Unmeasured entries of y may be NaN; float32 images give float32 images, also with levels in float64."""
    double, shape, images = instance(name)
    operator, invertible = copy.deepcopy(CASES[name][0]), well_conditioned(double, shape, dense)
    x = normal(images, *shape, dtype=torch.float32)
    y, rho = operator(x), torch.logspace(-1, 1, images, dtype=torch.float64)
    mask = operator.measured(tuple(y.shape[1:]))
    if mask is not None and not is_bound(operator):  # a physics multiplies by its mask, which keeps NaN
        holed = torch.where(mask, y, torch.nan)
        assert torch.equal(operator.adjoint(holed), operator.adjoint(y))
        if invertible:
            assert torch.equal(operator.pinv(holed), operator.pinv(y))
        assert (operator(operator.adjoint(y)).masked_select(~mask) == 0).all()
    guesses = [operator.pinv(y), operator.first_guess(y)] if invertible else []
    for image in (operator.adjoint(y), operator.solve(x, rho), *guesses):
        assert (image.dtype, image.shape) == (torch.float32, x.shape)
    # Some accelerators have no float64. A random projection is of small vectors, for the mixture benchmark.
    if not isinstance(operator, RandomProjection):
        assert all(buffer.dtype not in (torch.float64, torch.complex128) for buffer in operator.buffers())


# -- defaults of the base classes --------------------------------------------------------------------------------------


class Amplifier(SeparableOperator):
    """A gain per image, along both axes."""

    per_image = ("gain",)

    def __init__(self, gain: list[float]) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))

    def matrix(self, length: int) -> Tensor:
        return self.gain[:, None, None].double() * torch.eye(length, dtype=torch.float64)

    def measured_length(self, length: int) -> int:
        return length

    def image_length(self, measured: int) -> int:
        return measured


def test_pinv_judges_each_image_by_its_own_spectrum(normal: Normal) -> None:
    """A faint image beside a bright one is inverted as it is alone."""
    operator, x = Amplifier([1.0, 1e-4]), normal(2, 1, 5, 5)
    torch.testing.assert_close(operator.pinv(operator(x)), x)


def test_spectral_forward_and_adjoint(normal: Normal) -> None:
    """Those that a subclass inherits when it defines the decomposition only."""
    operator, x, y = SuperResolution(factor=2), normal(2, 3, 6, 8), normal(2, 3, 3, 4, seed=1)
    torch.testing.assert_close(SpectralOperator.forward(operator, x), operator(x))
    torch.testing.assert_close(SpectralOperator.adjoint(operator, y), operator.adjoint(y))


class Sum(LinearOperator):
    """Only `forward`: the adjoint by autograd needs the shape of the images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True)


def test_an_adjoint_needs_an_image_shape() -> None:
    with pytest.raises(ValueError, match=r"Sum must define image_shape\(\) or adjoint\(\)"):
        Sum().adjoint(torch.ones(1, 1))
