"""What the tests of the operators share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import Operator


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """Signed noise: an adjoint that is wrong on it may look right on positive images."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        # Drawn in double, so that both precisions see the same numbers.
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)

    return draw


@pytest.fixture(scope="session")
def dense() -> Callable[..., Tensor]:
    """The matrix of a linear operator for one image, float64; a complex measurement gives two rows per entry."""

    def matrix(operator: Operator, shape: tuple[int, ...], image: int = 0) -> Tensor:
        one = operator.select(torch.tensor([image]))
        n = torch.Size(shape).numel()
        columns = one(torch.eye(n, dtype=torch.float64).reshape(n, *shape))
        return flat(columns).T

    return matrix


@pytest.fixture(scope="session")
def flatten() -> Callable[[Tensor], Tensor]:
    """Rows as real vectors, so that inner products are those of the real adjoint."""
    return flat


def flat(y: Tensor) -> Tensor:
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)
