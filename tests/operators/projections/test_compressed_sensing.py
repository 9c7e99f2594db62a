"""Gaussian projections: the law of the matrix, its decomposition without a large square, deepinv, and what is refused.

The generic suite (`test_linear.py`) compares everything else with dense algebra.
"""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import CompressedSensing as DeepinvCompressedSensing
from torch import Tensor

from invdiff.operators import CompressedSensing
from invdiff.operators.projections import compressed_sensing as module

Normal = Callable[..., Tensor]


def test_law_of_the_matrix() -> None:
    """Mean 0 and variance 1 / m, five standard errors; the seed decides it."""
    operator = CompressedSensing(image_shape=(1, 32, 32), ratio=0.25)
    matrix = operator.matrix
    assert matrix.shape == (256, 1024)
    entries = matrix.numel()
    assert abs(float(matrix.mean())) < 5 * (256 * entries) ** -0.5
    assert abs(float(matrix.square().mean()) * 256 - 1) < 5 * (2 / entries) ** 0.5
    torch.manual_seed(3)  # no global random state
    assert torch.equal(CompressedSensing(image_shape=(1, 32, 32)).matrix, matrix)
    assert not torch.equal(CompressedSensing(image_shape=(1, 32, 32), seed=1).matrix, matrix)


@pytest.mark.parametrize(("ratio", "m"), [(0.25, 12), (1.0, 48), (1e-9, 1), (7 / 48, 7)])
def test_shapes(ratio: float, m: int, normal: Normal) -> None:
    x = normal(2, 3, 4, 4)
    together = CompressedSensing(image_shape=(3, 4, 4), ratio=ratio)
    assert together(x).shape == (2, m)
    assert together.image_shape((m,)) == (3, 4, 4)
    apart = CompressedSensing(image_shape=(3, 4, 4), ratio=ratio, channelwise=True)
    assert apart(x).shape == (2, 3, max(1, round(ratio * 16)))


def test_channelwise_is_the_same_for_each(normal: Normal) -> None:
    x = normal(2, 3, 4, 4)
    operator = CompressedSensing(image_shape=(3, 4, 4), channelwise=True)
    one = CompressedSensing(image_shape=(1, 4, 4))
    for channel in range(3):
        torch.testing.assert_close(operator(x)[:, channel], one(x[:, channel : channel + 1]))


def test_double_is_the_same_matrix(normal: Normal) -> None:
    """Its float32 entries are exact: converting the operator, the images, or both, gives one result."""
    x = normal(1, 1, 6, 5)
    operator = CompressedSensing(image_shape=(1, 6, 5))
    wanted = operator(x), operator.pinv(operator(x))
    operator = operator.double()
    assert torch.equal(operator(x), wanted[0])
    assert torch.equal(operator.pinv(operator(x)), wanted[1])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_decomposition(ratio: float, dtype: torch.dtype, tolerance: float) -> None:
    """V is square and orthonormal although no square of its size is kept, also for a square matrix."""
    shape = (1, 16, 16)
    operator = CompressedSensing(image_shape=shape, ratio=ratio).to(dtype)
    n = 256
    eye = torch.eye(n, dtype=dtype)
    v = operator.v(eye.reshape(n, *shape)).flatten(1).T
    torch.testing.assert_close(v.T @ v, eye, rtol=0, atol=tolerance)
    torch.testing.assert_close(operator.vt(eye.reshape(n, *shape)).flatten(1), v, rtol=0, atol=tolerance)
    m = len(operator.matrix)
    u = operator.u(eye.reshape(n, *shape)).T
    torch.testing.assert_close(u[:, :m].T @ u[:, :m], eye[:m, :m], rtol=0, atol=tolerance)
    s = operator.singular_values(torch.zeros(1, *shape, dtype=dtype)).flatten()
    torch.testing.assert_close((u * s) @ v.T, operator.matrix, rtol=0, atol=tolerance)
    kept = operator._decomposition(v)
    assert max(part.numel() for part in kept) == n * m  # as much as the matrix, and not n * n


@pytest.mark.parametrize("channelwise", [False, True])
def test_agrees_with_deepinv(channelwise: bool, normal: Normal) -> None:
    """Given the same matrix, for generators differ."""
    shape = (3, 6, 5)
    operator = CompressedSensing(image_shape=shape, ratio=0.3, channelwise=channelwise)
    physics = DeepinvCompressedSensing(m=len(operator.matrix), img_size=shape, channelwise=channelwise)
    physics._A = operator.matrix
    physics._A_adjoint, physics._A_dagger = physics._A.T, torch.linalg.pinv(physics._A)
    x = normal(2, *shape, dtype=torch.float32)
    y = normal(*operator(x).shape, seed=1, dtype=torch.float32)
    torch.testing.assert_close(operator(x), physics.A(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(operator.pinv(y), physics.A_dagger(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(operator.adjoint(y), physics.A_adjoint(y), rtol=1e-5, atol=1e-5)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_refuses_a_matrix_beyond_memory() -> None:
    with pytest.raises(
        ValueError, match=r"must take <= 1 GiB, got 36.0 GiB for 49152 measurements of 196608 pixels; lower"
    ):
        CompressedSensing(image_shape=(3, 256, 256))


def test_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 4 * 16)
    CompressedSensing(image_shape=(1, 4, 4))
    with pytest.raises(ValueError, match="for 5 measurements of 16 pixels"):
        CompressedSensing(image_shape=(1, 4, 4), ratio=5 / 16)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 0), (1, 4, 4, 4)])
def test_image_shape_of_a_wrong_kind(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image_shape must be \(C, H, W\), integers >= 1, got"):
        CompressedSensing(image_shape=shape)


@pytest.mark.parametrize("ratio", [0.0, 1.5, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"ratio must be in \(0, 1\], measurements per pixel, got {ratio}"):
        CompressedSensing(image_shape=(1, 4, 4), ratio=ratio)


def test_images_of_another_shape(normal: Normal) -> None:
    """Also of the same number of pixels: they would pass as if nothing were wrong."""
    operator = CompressedSensing(image_shape=(1, 4, 6))
    words = "image_shape is 1x4x6, the image 1x6x4; set image_shape=[1,6,4]"
    assert operator.mismatch((1, 6, 4)) == f"compressed_sensing: {words}"
    with pytest.raises(ValueError, match="the image 1x6x4"):
        operator(normal(1, 1, 6, 4))


def test_measurements_of_another_length(normal: Normal) -> None:
    operator = CompressedSensing(image_shape=(1, 4, 4))
    for call in (operator.adjoint, operator.pinv):
        with pytest.raises(ValueError, match="a measurement must be 4, got 5"):
            call(normal(1, 5))
