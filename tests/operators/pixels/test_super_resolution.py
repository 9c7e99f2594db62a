"""Super-resolution against two independent implementations: deepinv's MATLAB resize and torch's pooling."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import DownsamplingMatlab
from torch import Tensor

from invdiff.operators import SuperResolution

Normal = Callable[..., Tensor]


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(16, 32), (40, 24)])
def test_bicubic_is_matlabs(factor: int, size: tuple[int, int], normal: Normal) -> None:
    """The rule of DPS and DAPS, edges included; a half-pixel shift or a missing antialias shows at once."""
    operator, matlab = (
        SuperResolution(factor=factor),
        DownsamplingMatlab(factor=factor, kernel="cubic", padding="reflect"),
    )
    x = normal(2, 3, *size, dtype=torch.float32)
    y = matlab.A(x)
    assert (operator(x) - y).abs().max() <= 1e-5
    v = normal(*y.shape, seed=1, dtype=torch.float32)
    assert (operator.adjoint(v) - matlab.A_adjoint(v)).abs().max() <= 1e-5


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_average_is_pooling(factor: int, normal: Normal) -> None:
    x = normal(2, 3, 3 * factor, 2 * factor)
    operator = SuperResolution(factor=factor, kernel="average")
    torch.testing.assert_close(operator(x), torch.nn.functional.avg_pool2d(x, factor))
    # All singular values that are not zero equal 1 / factor: the closed form of DDRM and DDNM.
    s = operator.singular_values(x)
    torch.testing.assert_close(s[s > 0], torch.full((6,), 1 / factor, dtype=s.dtype))


@pytest.mark.parametrize("kernel", ["bicubic", "average"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_keeps_constants(factor: int, kernel: str) -> None:
    """Image units survive: a uniform image measures as the same uniform value, at the edges too."""
    y = SuperResolution(factor=factor, kernel=kernel)(torch.full((1, 1, 12, 24), 0.7))
    torch.testing.assert_close(y, torch.full((1, 1, 12 // factor, 24 // factor), 0.7))


@pytest.mark.parametrize(
    ("shape", "crop"),
    [((1, 15, 16), "; crop it to 12x16"), ((3, 16, 18), "; crop it to 16x16"), ((1, 2, 4), "")],
)
def test_refuses_a_size_that_factor_does_not_divide(shape: tuple[int, ...], crop: str) -> None:
    operator = SuperResolution(factor=4)
    words = f"super_resolution: factor=4 must divide the image, got {shape[1]}x{shape[2]} pixels{crop}"
    assert operator.mismatch(shape) == words
    with pytest.raises(ValueError, match="factor=4 must divide"):
        operator(torch.zeros(1, *shape))


def test_accepts_a_size_that_factor_divides() -> None:
    assert SuperResolution(factor=4).mismatch((3, 16, 20)) is None


@pytest.mark.parametrize("factor", [1, 0, -2, 2.5, True])
def test_bad_factor(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor must be an integer >= 2, got {factor}"):
        SuperResolution(factor=factor)  # type: ignore[arg-type]


def test_bad_kernel() -> None:
    with pytest.raises(ValueError, match="kernel must be one of bicubic, average, got 'lanczos'"):
        SuperResolution(kernel="lanczos")
