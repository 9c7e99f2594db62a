"""The single-pixel camera: the transform against scipy's matrix, which coefficients are measured, and deepinv's."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import SinglePixelCamera
from scipy.linalg import hadamard
from torch import Tensor

from invdiff.operators import HadamardSensing
from invdiff.operators.projections.hadamard import walsh

Normal = Callable[..., Tensor]


def sign_changes(rows: Tensor) -> Tensor:
    return (rows.sign().diff(dim=-1) != 0).sum(-1)


# -- the transform -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 32, 256])
def test_walsh_functions(n: int) -> None:
    """Row k of the transform has k changes of sign; the rows are those of the Hadamard matrix, which scipy builds."""
    matrix = walsh(torch.eye(n, dtype=torch.float64))
    assert torch.equal(sign_changes(matrix), torch.arange(n))
    assert torch.equal(matrix, matrix.T)
    natural = torch.from_numpy(hadamard(n)).double() / n**0.5
    torch.testing.assert_close(matrix, natural[sign_changes(natural).argsort()])


def test_walsh_is_its_own_inverse(normal: Normal) -> None:
    x = normal(3, 2, 64)
    torch.testing.assert_close(walsh(walsh(x)), x)
    torch.testing.assert_close(walsh(x).norm(dim=-1), x.norm(dim=-1))


def test_mean_at_the_top_left(normal: Normal) -> None:
    x = normal(2, 3, 8, 4)
    torch.testing.assert_close(HadamardSensing(ratio=0.01)(x)[..., 0, 0], x.mean((-2, -1)) * 32**0.5)


# -- which coefficients ------------------------------------------------------------------------------------------------


def test_measures_an_exact_count() -> None:
    for ratio in [0.001, 0.1, 0.25, 1.0]:
        for order in ["sequency", "random"]:
            mask = HadamardSensing(ratio=ratio, order=order).measured((3, 8, 16))
            assert mask.shape == (1, 1, 8, 16)
            assert mask.sum() == max(1, round(128 * ratio))
            assert mask[0, 0, 0, 0]


def test_low_frequencies_first() -> None:
    """Per pixel, not per image: along an axis twice as long there are twice as many."""
    square = HadamardSensing(ratio=6 / 64).mask_of((1, 8, 8))[0, 0]
    assert square.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]
    wide = HadamardSensing(ratio=4 / 32).mask_of((1, 4, 8))[0, 0]
    assert wide.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]


def test_more_measurements_hold_the_fewer() -> None:
    for order in ("sequency", "random"):
        few, many = (HadamardSensing(ratio=ratio, order=order).mask_of((1, 16, 16)) for ratio in (0.1, 0.3))
        assert (many | ~few).all()


def test_seed_decides_the_random_ones() -> None:
    def mask(seed: int) -> Tensor:
        return HadamardSensing(order="random", seed=seed).mask_of((1, 16, 16))

    first = mask(0)
    torch.manual_seed(5)  # no global random state
    assert torch.equal(mask(0), first)
    assert not torch.equal(mask(1), first)


# -- the operator ------------------------------------------------------------------------------------------------------


def test_against_dense_algebra(normal: Normal, dense: Callable[..., Tensor]) -> None:
    for shape in [(1, 4, 4), (3, 2, 8), (2, 1, 4)]:
        for order in ["sequency", "random"]:
            operator = HadamardSensing(ratio=0.4, order=order).double()
            a = dense(operator, shape)
            x, y = normal(2, *shape, seed=1), normal(2, *shape, seed=2)
            torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ a, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(a).T)
            rho = torch.tensor([0.1, 3.0], dtype=torch.float64)
            for row, level in enumerate(rho):
                wanted = torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1], dtype=a.dtype), x[row].flatten())
                torch.testing.assert_close(operator.solve(x, rho)[row].flatten(), wanted)
            s = operator.singular_values(x).expand(1, *shape).flatten().sort(descending=True).values
            torch.testing.assert_close(s, torch.linalg.svdvals(a), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 64, 8)])
def test_adjoint(dtype: torch.dtype, tolerance: float, shape: tuple[int, int, int], normal: Normal) -> None:
    operator, x, y = HadamardSensing(), normal(2, *shape, dtype=dtype), normal(2, *shape, seed=1, dtype=dtype)
    ax, aty = operator(x), operator.adjoint(y)
    assert aty.dtype == ax.dtype == dtype
    error = (ax * y).flatten(1).sum(1) - (x * aty).flatten(1).sum(1)
    assert (error.abs() <= tolerance * ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).all()


def test_what_was_not_measured_may_be_nan(normal: Normal) -> None:
    operator = HadamardSensing()
    y = operator(normal(2, 1, 8, 8))
    marked = torch.where(operator.measured((1, 8, 8)), y, torch.nan)
    for function in (operator.adjoint, operator.pinv, operator.ut):
        assert torch.equal(function(marked), function(y))


@pytest.mark.parametrize("m", [1, 6, 10, 40, 64])
def test_agrees_with_deepinv(m: int, normal: Normal) -> None:
    """The same measurements as its zig-zag camera, which stores them in the order of the Hadamard matrix."""
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    operator, physics = HadamardSensing(ratio=m / 64), SinglePixelCamera(m=m, img_size=(3, 8, 8), ordering="zig_zag")
    place = sign_changes(torch.from_numpy(hadamard(8)))  # sequency of each of their rows
    ours = operator(x)[:, :, place][..., place]
    torch.testing.assert_close(ours, physics.A(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(operator.adjoint(operator(x)), physics.A_adjoint(physics.A(x)), rtol=1e-5, atol=1e-5)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (7, 8), (28, 28)])
def test_sides_are_powers_of_two(size: tuple[int, int], normal: Normal) -> None:
    words = f"height and width must be powers of 2, got {size[0]}x{size[1]}"
    assert words in str(HadamardSensing().mismatch((1, *size)))
    with pytest.raises(ValueError, match=words):
        HadamardSensing()(normal(1, 1, *size))


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.01, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"ratio must be a fraction of coefficients in \(0, 1\], got {ratio}"):
        HadamardSensing(ratio=ratio)


def test_unknown_order() -> None:
    with pytest.raises(ValueError, match="order must be one of sequency, random, got 'natural'"):
        HadamardSensing(order="natural")
