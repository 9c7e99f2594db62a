"""Rules of linear operators: adjoint, solve, pseudo-inverse and singular value decomposition."""

import torch
from torch import Tensor

from invdiff.contracts.compare import TOLERANCE, NotApplicable, close, dot, norm, normal, normal_like, require, rms
from invdiff.contracts.trial import OperatorTrial
from invdiff.operators import LinearOperator, SpectralOperator
from invdiff.shapes import per_row, row_norm


def check_linear(t: OperatorTrial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    b, yb = t.signed(4)
    with torch.no_grad():
        close(operator(2 * a - 3 * b), 2 * ya - 3 * yb, f"{t.name} is not linear", 1e-4)
        zero = operator(torch.zeros_like(a))
    require(bool((zero == 0).all()), f"{t.name} of a black image is not zero: affine, not linear")


def check_adjoint(t: OperatorTrial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    b, yb = t.signed(4)
    v = _half_in_range(ya)
    with torch.no_grad():
        back = operator.adjoint(v)
    require(
        back.shape == a.shape and back.dtype == a.dtype,
        f"{t.name}.adjoint gives {back.dtype} {tuple(back.shape)}, not {a.dtype} {tuple(a.shape)}",
    )
    for x, y in ((a, ya), (b, yb)):
        error = abs(dot(y, v) - dot(x, back)) / max(norm(y) * norm(v), 1e-30)
        require(
            error < 10 * TOLERANCE,
            f"{t.name}.adjoint is not the transpose: <Ax, v> - <x, A'v> is {error:.1e} of |Ax| |v| (delete "
            "your adjoint: autograd derives it)",
        )


def _half_in_range(y: Tensor) -> Tensor:
    """Half in the range of A, so that two inner products are large where they should be equal."""
    return y + rms(y) * normal_like(5, y)


def check_adjoint_is_vjp(t: OperatorTrial) -> None:
    operator = t.linear()
    t.differentiable()
    a, ya = t.signed(3)
    v = _half_in_range(ya)
    with torch.no_grad():
        close(operator.vjp(a, v), operator.adjoint(v), f"{t.name}.vjp and {t.name}.adjoint differ", 1e-4)


def check_solve(t: OperatorTrial) -> None:
    operator = t.linear()
    a = normal(3, t.images, *t.image_shape)
    with torch.no_grad():
        rhos = 0.1 * _squared_norm(operator, a) * torch.arange(1, t.images + 1)
        solved = operator.solve(a, rhos)
        rest = operator.adjoint(operator(solved)) + per_row(rhos, a) * solved - a
        require(bool((row_norm(rest) < 1e-3 * row_norm(a)).all()), f"{t.name}.solve does not solve (A'A + rho I) x = b")
        for i in range(t.images):
            one = operator.select(torch.tensor([i])).solve(a[i : i + 1], float(rhos[i]))
            close(one, solved[i : i + 1], f"{t.name}.solve with one rho per row differs from one row alone", 1e-3)


def check_pinv(t: OperatorTrial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    with torch.no_grad():
        guess = operator.pinv(ya)
        require(guess.shape == a.shape, f"{t.name}.pinv gives {tuple(guess.shape)} for images {tuple(a.shape)}")
        misfit = row_norm(operator(guess) - ya)
        require(
            bool((misfit < 0.02 * row_norm(ya)).all()),
            f"{t.name}.pinv misses a noiseless measurement by {float((misfit / row_norm(ya)).max()):.1e} of it",
        )
        require(
            bool((row_norm(guess) < 1.001 * row_norm(a)).all()),
            f"{t.name}.pinv is not the image of least norm: the truth is smaller",
        )


def check_spectral(t: OperatorTrial) -> None:
    operator, name = t.operator, t.name
    if not operator.spectral:
        raise NotApplicable("it has no singular value decomposition")
    require(isinstance(operator, SpectralOperator), f"{name} has spectral = True but is no SpectralOperator")
    assert isinstance(operator, SpectralOperator)
    x, z = normal(6, t.images, *t.image_shape), normal(7, t.images, *t.image_shape)
    with torch.no_grad():
        s = operator.singular_values(x)
        require(bool((s >= 0).all()), f"{name} has negative singular values")
        require(torch.broadcast_shapes(s.shape, x.shape) == x.shape, f"{name}: singular values {tuple(s.shape)}")
        close(operator.v(operator.vt(x)), x, f"{name}: V V' is not the identity", 1e-4)
        close(operator.vt(operator.v(z)), z, f"{name}: V' V is not the identity", 1e-4)
        close(row_norm(operator.vt(x)), row_norm(x), f"{name}: V' does not keep lengths", 1e-4)
        y = operator(x)
        close(operator.u(s * operator.vt(x)), y, f"{name}: A is not U S V'", 1e-4)
        close(operator.ut(y), s * operator.vt(x), f"{name}: U' A is not S V'", 1e-4)
        v = y + rms(y) * normal_like(8, y)
        close(operator.v(s * operator.ut(v)), operator.adjoint(v), f"{name}.adjoint is not V S U'", 1e-4)


def _squared_norm(operator: LinearOperator, x: Tensor) -> float:
    """Largest eigenvalue of A^T A by 10 power iterations: it sets the scale of rho."""
    for _ in range(10):
        x = x / norm(x)
        x = operator.adjoint(operator(x))
    return norm(x)
