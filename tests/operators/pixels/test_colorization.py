"""Colour to grey: the closed form against dense algebra, and against deepinv, whose own is wrong."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import Decolorize
from torch import Tensor

from invdiff.operators import Colorization

Normal = Callable[..., Tensor]
WEIGHTS = ["rec601", "mean", [0.2, 0.7, 0.1], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [-0.5, 0.3, 0.9]]


def test_grey_of_the_primaries() -> None:
    primaries = torch.eye(3)[:, :, None, None]
    grey = Colorization()(primaries).flatten()
    torch.testing.assert_close(grey, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(Colorization(weights="mean")(primaries).flatten(), torch.full((3,), 1 / 3))


def test_against_dense_algebra(normal: Normal, dense: Callable[..., Tensor]) -> None:
    for size in [(2, 3), (1, 1)]:
        for weights in WEIGHTS:
            operator, shape = Colorization(weights=weights).double(), (3, *size)
            a = dense(operator, shape)
            x = normal(2, *shape, seed=1)
            y = normal(2, 1, *size, seed=2)
            torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ a, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(a).T)
            rho = torch.tensor([0.1, 3.0], dtype=torch.float64)
            for row, level in enumerate(rho):
                wanted = torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1], dtype=a.dtype), x[row].flatten())
                torch.testing.assert_close(operator.solve(x, rho)[row].flatten(), wanted)
            s = operator.singular_values(x).flatten().sort(descending=True).values
            torch.testing.assert_close(s[: a.shape[0]], torch.linalg.svdvals(a))
            v = operator.v(torch.eye(a.shape[1], dtype=torch.float64).reshape(-1, *shape)).flatten(1)
            torch.testing.assert_close(v @ v.T, torch.eye(len(v), dtype=torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adjoint(dtype: torch.dtype, tolerance: float, normal: Normal) -> None:
    operator, x, y = Colorization(), normal(3, 3, 7, 10, dtype=dtype), normal(3, 1, 7, 10, seed=1, dtype=dtype)
    ax, aty = operator(x), operator.adjoint(y)
    assert aty.dtype == ax.dtype == dtype
    error = (ax * y).flatten(1).sum(1) - (x * aty).flatten(1).sum(1)
    assert (error.abs() <= tolerance * ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).all()


# deepinv's weights of rec601 are rounded: the same numbers are given to both.
@pytest.mark.parametrize(("ours", "theirs"), [("mean", "flat"), ([0.299, 0.587, 0.114], [0.299, 0.587, 0.114])])
def test_agrees_with_deepinv(ours: str | list[float], theirs: str | list[float], normal: Normal) -> None:
    operator, physics = Colorization(weights=ours), Decolorize(srf=theirs)
    x, y = normal(2, 3, 5, 4, dtype=torch.float32), normal(2, 1, 5, 4, seed=1, dtype=torch.float32)
    torch.testing.assert_close(operator(x), physics.A(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(operator.adjoint(y), physics.A_adjoint(y), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(operator.pinv(y), physics.A_dagger(y), rtol=1e-5, atol=1e-6)


def test_solve_keeps_the_colours_that_deepinv_drops(normal: Normal) -> None:
    """argmin |A x - y|^2 / 2 + |x - z|^2 / (2 gamma): only ours satisfies its normal equations."""
    weights = [0.299, 0.587, 0.114]
    operator, physics = Colorization(weights=weights), Decolorize(srf=weights)
    y, z, gamma = normal(1, 1, 6, 6).float(), normal(1, 3, 6, 6, seed=1).float(), 1.0
    ours = operator.solve(operator.adjoint(y) + z / gamma, 1 / gamma)
    theirs = physics.prox_l2(z, y, gamma)

    def residual(x: Tensor) -> float:
        right = operator.adjoint(y) + z / gamma
        return float((operator.adjoint(operator(x)) + x / gamma - right).norm() / right.norm())

    assert residual(ours) < 1e-6
    assert residual(theirs) > 0.1


def test_first_guess_is_grey(normal: Normal) -> None:
    """And fits the measurement; a pseudo-inverse in rec601 would be green."""
    operator, y = Colorization(), normal(2, 1, 4, 4)
    guess = operator.first_guess(y)
    assert (guess == guess[:, :1]).all()
    torch.testing.assert_close(operator(guess), y)


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [float("nan"), 1, 1], [float("inf"), 1, 1]]
)
def test_bad_numbers(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="colorization: weights must be three numbers with a sum > 0, got"):
        Colorization(weights=weights)


def test_bad_name() -> None:
    with pytest.raises(ValueError, match="weights must be rec601, mean or three numbers, got 'rec709'"):
        Colorization(weights="rec709")


def test_grey_images_are_refused(normal: Normal) -> None:
    """Broadcasting would silently measure the one channel three times."""
    reason = Colorization().mismatch((1, 8, 8))
    assert reason == "colorization: an image must be RGB, 3xHxW, got 1x8x8"
    with pytest.raises(ValueError, match="3xHxW, got 1x8x8"):
        Colorization()(normal(1, 1, 8, 8))
    with pytest.raises(ValueError, match="a measurement must be 1xHxW, got 3x8x8"):
        Colorization().image_shape((3, 8, 8))
