"""Single-coil MRI against deepinv, its decomposition against dense algebra."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import MRI as DeepinvMRI
from torch import Tensor

from invdiff.operators import MRI
from invdiff.operators.mri.kspace import from_kspace, negated, to_kspace

Normal = Callable[..., Tensor]


def test_is_the_zero_filled_transform(normal: Normal) -> None:
    operator, x = MRI(acceleration=2), normal(2, 1, 8, 10)
    mask = operator.mask_of((8, 10))
    torch.testing.assert_close(operator(x), mask * to_kspace(x))
    y = normal(2, 1, 8, 10, dtype=torch.complex128)
    torch.testing.assert_close(operator.adjoint(y), from_kspace(mask * y).real)


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_agrees_with_deepinv(size: tuple[int, int], normal: Normal) -> None:
    operator = MRI.random((2, *size), acceleration=2, seed=0, images=3)
    theirs = DeepinvMRI(mask=operator.mask.float())
    x = normal(3, 2, *size, dtype=torch.float32)
    y = operator(x)
    pairs = torch.cat([y.real, y.imag], 1)
    torch.testing.assert_close(pairs, theirs.A(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(operator.adjoint(y), theirs.A_adjoint(pairs), rtol=0, atol=1e-5)
    torch.testing.assert_close(operator.pinv(y), theirs.A_dagger(pairs), rtol=0, atol=1e-5)
    wanted = theirs.prox_l2(x, pairs, 2.0)  # argmin |A u - y|^2 + |u - x|^2 / 2
    torch.testing.assert_close(operator.solve(operator.adjoint(y) + x / 2, 0.5), wanted, rtol=0, atol=1e-5)


BUILDERS = {
    "lines": lambda shape: MRI(acceleration=1.7, complex_image=shape[0] == 2),
    "positions": lambda shape: MRI(acceleration=2.5, pattern="radial", complex_image=shape[0] == 2),
    "per-image": lambda shape: MRI.random(shape, acceleration=2, seed=3, images=2),
}


def test_a_real_image_fills_in_what_its_other_half_says(normal: Normal) -> None:
    """Sampled at k and not at -k: the pseudo-inverse of a real image knows both, zero-filling only half of each."""
    operator, x = MRI(acceleration=2, seed=1), normal(1, 1, 9, 9)
    known = operator.mask_of((9, 9)) | negated(operator.mask_of((9, 9)))
    y = operator(x)
    torch.testing.assert_close(to_kspace(operator.pinv(y)), torch.where(known, to_kspace(x), 0))
    assert (operator.pinv(y) - x).norm() < (operator.adjoint(y) - x).norm()


def test_of_a_complex_image_the_pseudo_inverse_is_zero_filled(normal: Normal) -> None:
    operator, y = MRI(complex_image=True), normal(1, 1, 8, 8, dtype=torch.complex128)
    torch.testing.assert_close(operator.pinv(y), operator.adjoint(y))
