"""Conjugate gradients: exact, each row for itself, and honest about rows that cannot be solved."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators.core.conjugate_gradients import conjugate_gradients

Normal = Callable[..., Tensor]


def positive(conditions: list[float], n: int, normal: Normal, dtype: torch.dtype = torch.float64) -> Tensor:
    """One symmetric positive matrix per condition number, largest eigenvalue 1, (B, n, n)."""
    matrices = []
    for seed, condition in enumerate(conditions):
        q, _ = torch.linalg.qr(normal(n, n, seed=seed))
        eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)
        matrices.append((q * eigenvalues) @ q.T)
    return torch.stack(matrices).to(dtype)


class Counted:
    """M x per row, without batched kernels whose rounding might depend on the batch; counts its calls."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices, self.calls = matrices, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        assert self.calls <= 500
        return torch.stack([m @ row.flatten() for m, row in zip(self.matrices, x, strict=True)]).reshape(x.shape)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
def test_solves(dtype: torch.dtype, tolerance: float, normal: Normal) -> None:
    matrices = positive([1.0, 5.0, 30.0], 24, normal, dtype)
    b = normal(3, 2, 3, 4, seed=9, dtype=dtype)
    x = conjugate_gradients(Counted(matrices), b)
    wanted = torch.linalg.solve(matrices, b.flatten(1)).reshape(b.shape)
    assert x.dtype == dtype
    assert ((x - wanted).flatten(1).norm(dim=1) <= tolerance * wanted.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("companion", [1.0, 1e4])
def test_a_row_stops_by_itself(companion: float, normal: Normal) -> None:
    """With a loose tolerance an extra iteration, or one too few, shows at once."""
    matrices = positive([20.0, companion], 24, normal)
    b = normal(2, 24, seed=9)
    alone = conjugate_gradients(Counted(matrices[:1]), b[:1], tolerance=1e-2)
    together = conjugate_gradients(Counted(matrices), b, tolerance=1e-2)
    assert torch.equal(together[:1], alone)
    residual = (b[0] - matrices[0] @ together[0]).norm() / b[0].norm()
    assert 1e-4 < residual <= 1e-2


def test_stops_when_done(normal: Normal) -> None:
    """k distinct eigenvalues take k iterations."""
    apply = Counted(torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 4.0], dtype=torch.float64))[None])
    conjugate_gradients(apply, normal(1, 5))
    assert apply.calls == 3


def test_max_iterations(normal: Normal) -> None:
    apply = Counted(positive([1e8], 24, normal))
    conjugate_gradients(apply, normal(1, 24), max_iterations=7)
    assert apply.calls == 7


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_comes_back_nan_and_costs_nothing(bad: float, normal: Normal) -> None:
    matrices = positive([5.0, 5.0, 5.0], 12, normal)
    b = normal(3, 12, seed=9)
    healthy = Counted(matrices)
    wanted = conjugate_gradients(healthy, b)
    b[1, 3] = bad
    apply = Counted(matrices)
    got = conjugate_gradients(apply, b)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], wanted[[0, 2]])
    assert apply.calls <= healthy.calls


def test_only_broken_rows_need_no_iteration() -> None:
    apply = Counted(torch.eye(3)[None])
    assert conjugate_gradients(apply, torch.full((1, 3), torch.nan)).isnan().all()
    assert apply.calls == 0


def test_an_operator_that_breaks_a_row(normal: Normal) -> None:
    """A finite right-hand side but NaN from M: reported, not returned as a plausible image."""
    matrices = positive([5.0, 5.0], 12, normal)
    b = normal(2, 12, seed=9)
    wanted = conjugate_gradients(Counted(matrices), b)
    matrices[0, 0, 0] = torch.nan
    got = conjugate_gradients(Counted(matrices), b)
    assert got[0].isnan().all()
    assert torch.equal(got[1], wanted[1])


def test_zero_right_hand_side(normal: Normal) -> None:
    matrices = positive([5.0, 5.0], 12, normal)
    b = normal(2, 12, seed=9)
    b[0] = 0
    x = conjugate_gradients(Counted(matrices), b)
    assert (x[0] == 0).all()
    torch.testing.assert_close(x[1], torch.linalg.solve(matrices[1], b[1]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_unit(scale: float, normal: Normal) -> None:
    """A physical field in its own unit: the squares of these leave the range of float32."""
    matrices = positive([5.0], 12, normal, torch.float32)
    b = normal(1, 12, seed=9, dtype=torch.float32)
    x = conjugate_gradients(Counted(matrices), b * scale)
    torch.testing.assert_close(x / scale, torch.linalg.solve(matrices, b), rtol=1e-4, atol=1e-4)


def test_least_norm_on_a_singular_matrix(normal: Normal) -> None:
    q, _ = torch.linalg.qr(normal(10, 10))
    eigenvalues = torch.tensor([1.0, 2, 3, 4, 5, 6, 0, 0, 0, 0], dtype=torch.float64)
    matrix = (q * eigenvalues) @ q.T
    b = matrix @ normal(10, seed=1)
    x = conjugate_gradients(Counted(matrix[None]), b[None])
    torch.testing.assert_close(x[0], torch.linalg.pinv(matrix, hermitian=True) @ b)


def test_gradient_through_the_solution(normal: Normal) -> None:
    """Unrolled iterations differentiate to M^-1, which is symmetric."""
    matrices = positive([5.0], 8, normal)
    b, v = normal(1, 8, seed=2).requires_grad_(True), normal(1, 8, seed=3)
    (gradient,) = torch.autograd.grad((conjugate_gradients(Counted(matrices), b) * v).sum(), b)
    torch.testing.assert_close(gradient[0], torch.linalg.solve(matrices[0], v[0]), rtol=1e-6, atol=1e-8)
