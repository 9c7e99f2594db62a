"""Decompositions of operators in halves that mirrors leave alone."""

import pytest
import torch
from torch import Tensor

from invdiff.operators import CT, GaussianNoise, MatrixOperator
from invdiff.operators.core.base import LinearOperator
from invdiff.priors.closed_form import whitening
from invdiff.problem import InverseProblem


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_across() -> MatrixOperator:
    """A matrix that mirrors rows of pixels alike, and nothing else: the sum of any one and its mirror image."""
    identity = torch.eye(30, dtype=torch.float64)
    across = identity.reshape(30, 2, 3, 5).flip(-1).reshape(30, 30)
    any_one = draw(30, 30, seed=1)
    return MatrixOperator(any_one + across @ any_one @ across, image_shape=(2, 3, 5))


@pytest.mark.parametrize(
    ("operator", "shape", "axes"),
    [
        (CT(views=12), (1, 6, 6), [-1, -2]),
        (CT(views=12), (2, 5, 5), [-1, -2]),
        (CT(views=12, size=(5, 8)), (1, 5, 8), [-1, -2]),
        (CT(views=12, angle_range=100.0), (2, 5, 5), "half a turn"),
        (kept_across(), (2, 3, 5), [-1]),
        (MatrixOperator(draw(50, 30, seed=0), image_shape=(2, 3, 5)), (2, 3, 5), []),
        (MatrixOperator(draw(50, 8, seed=0), image_shape=(1, 1, 8)), (1, 1, 8), []),
        (CT(views=2), (1, 6, 6), [-1, -2]),
    ],
)
def test_a_decomposition_is_of_the_operator(
    operator: LinearOperator, shape: tuple[int, int, int], axes: list[int] | str
) -> None:
    x = draw(1, *shape, seed=2)
    rows = whitening.Rows(InverseProblem(operator, GaussianNoise(), operator(x), image_shape=shape), x.device)
    matrix = rows.matrix()
    images, found = whitening._mirrors(matrix.unflatten(1, shape), 1e-13)
    assert found == ([-1] if axes == "half a turn" else axes)
    assert images.dim() == (3 if axes == "half a turn" else 4)
    turned, squares = whitening._decompose_dense(rows)
    scale = squares.max()
    assert torch.allclose(turned @ turned.mT, torch.diag(squares), rtol=0, atol=1e-12 * scale)
    assert torch.allclose(turned.mT @ turned, matrix.mT @ matrix, rtol=0, atol=1e-12 * scale)
    assert len(squares) == torch.linalg.matrix_rank(matrix, rtol=1e-6)
