"""Operators made of operators: one after the other, and side by side."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts import check_operator
from invdiff.operators import (
    HDR,
    CallableOperator,
    Composition,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearComposition,
    PhaseRetrieval,
    SuperResolution,
    compose,
)

Normal = Callable[..., Tensor]


def test_parts_act_in_order(normal: Normal) -> None:
    x = normal(2, 1, 8, 8)
    blur, small = GaussianBlur(std=0.8, kernel_size=5), SuperResolution(factor=2)
    assert torch.equal(compose([blur, small])(x), small(blur(x)))


def test_linear_where_all_parts_are() -> None:
    assert type(compose([GaussianBlur(std=1.0, kernel_size=5), SuperResolution(factor=2)])) is LinearComposition
    assert type(compose([GaussianBlur(std=1.0, kernel_size=5), HDR()])) is Composition
    box = CallableOperator(torch.square, differentiable=False)
    assert not compose([Denoising(), box]).differentiable


def test_linear_composition_against_dense_algebra(normal: Normal, dense: Callable[..., Tensor]) -> None:
    shape = (1, 6, 8)
    operator = compose([GaussianBlur(std=torch.tensor([0.6, 0.9]), kernel_size=5), SuperResolution(factor=2)])
    x, y = normal(2, *shape), normal(2, 1, 3, 4, seed=1)
    solved = operator.solve(x, 0.3)
    for i in range(2):
        a = dense(operator, shape, i)
        assert torch.allclose(operator.adjoint(y)[i].flatten(), a.T @ y[i].flatten(), atol=1e-12)
        wanted = torch.linalg.solve(a.T @ a + 0.3 * torch.eye(48, dtype=a.dtype), x[i].flatten())
        assert (solved[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()


def test_parameters_per_image_of_any_part(normal: Normal) -> None:
    shape = (1, 8, 8)
    check_operator(compose([GaussianBlur(std=torch.tensor([0.6, 0.9, 1.2]), kernel_size=5), HDR()]), shape)
    check_operator(
        compose([GaussianBlur(std=1.0, kernel_size=5), Inpainting.random(shape, keep=0.5, seed=0, images=3)]), shape
    )


def test_what_was_measured_is_said_by_the_last_part() -> None:
    operator = compose([GaussianBlur(std=1.0, kernel_size=5), Inpainting(keep=0.5)])
    assert torch.equal(operator.measured((1, 8, 8)), operator.operators[-1].measured((1, 8, 8)))
    assert operator.image_shape((1, 8, 8)) == (1, 8, 8)
    assert compose([SuperResolution(factor=2), Inpainting(keep=0.5)]).image_shape((1, 8, 8)) == (1, 16, 16)


def test_what_does_not_fit_is_refused() -> None:
    small = SuperResolution(factor=4)
    assert "factor" in str(compose([SuperResolution(factor=2), small]).mismatch((1, 12, 12)))
    camera = compose([CallableOperator(lambda x: x.flatten(1)), Denoising()])
    assert camera.mismatch((1, 4, 4)) == (
        "composition: CallableOperator must be last, for y is no real image (C, H, W)"
    )
    with pytest.raises(ValueError, match="parts must hold at least one operator, got none"):
        compose([])
    with pytest.raises(ValueError, match="parts must be operators, got builtin_function_or_method"):
        compose([torch.tanh])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="equally many images, got 2 and 3"):
        compose([GaussianBlur(std=torch.rand(n) + 0.5, kernel_size=5) for n in (2, 3)])


def test_in_a_problem(normal: Normal) -> None:
    """A nonlinear last part, whose measurements have another shape than images."""
    operator = compose([GaussianBlur(std=1.0, kernel_size=5), PhaseRetrieval(oversampling=2)])
    x = torch.rand(2, 1, 8, 8)
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(x))
    assert problem.image_shape == (1, 8, 8)
    assert (problem.nll(x) < 1e-6).all()
