"""Kernels of camera shake: seeded, centred, of the law that the papers use."""

import math

import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import Blur, MotionBlur
from invdiff.operators.blur.motion_blur import distance_to_path, draw_path, motion_kernels, motion_path


def mass(kernel: Tensor) -> tuple[float, float]:
    axis = torch.arange(kernel.shape[-1]) - kernel.shape[-1] // 2
    return float((kernel * axis[:, None]).sum()), float((kernel * axis).sum())


def corners(intensity: float, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [motion_path(intensity, 61, generator) for _ in range(count)]


@pytest.mark.parametrize("intensity", [0.0, 0.5])
def test_kernels_are_normalised_and_centred(intensity: float) -> None:
    for kernel in motion_kernels(intensity, 61, seed=1, images=8)[:, 0]:
        assert (kernel >= 0).all()
        assert abs(kernel.sum() - 1) < 1e-5
        assert math.hypot(*mass(kernel)) < 0.5
        cut = max(kernel[0].max(), kernel[-1].max(), kernel[:, 0].max(), kernel[:, -1].max()) > 1e-6
        assert cut or math.hypot(*mass(kernel)) < 0.011


def test_seed_decides_the_path() -> None:
    first = MotionBlur(seed=0).kernel
    torch.manual_seed(123)  # no global random state
    assert torch.equal(MotionBlur(seed=0).kernel, first)
    assert not torch.equal(MotionBlur(seed=1).kernel, first)


def test_a_path_per_image() -> None:
    """Image i has the same path whatever the size of the batch."""
    many = MotionBlur.random(images=4, seed=2, kernel_size=15)
    assert many.images == 4
    assert many.kernel.shape == (4, 1, 15, 15)
    assert len(many.kernel.flatten(1).unique(dim=0)) == 4
    assert torch.equal(MotionBlur.random(images=2, seed=2, kernel_size=15).kernel, many.kernel[:2])
    assert torch.equal(MotionBlur(seed=2, kernel_size=15).kernel, many.kernel[:1])
    check_operator(many, (1, 12, 11))


def test_intensity_bends_the_path() -> None:
    """Straight at 0, up to half a turn of each step from the first direction at 1."""
    for path in corners(0.0, 20):
        turns = (path.diff() / path.diff()[:1]).angle()
        assert (turns.abs() < 1e-6).all()
    for path in corners(0.5, 20):  # angles of steps stay within 0.5 pi + 0.1 of the axis
        turns = (path.diff()[:, None] / path.diff()).angle().abs()
        assert turns.max() <= 2 * (0.5 * math.pi + 0.1)
    assert max(float((p.diff() / p.diff()[:1]).angle().abs().max()) for p in corners(0.5, 20)) > 0.5


@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_law_of_the_length(intensity: float) -> None:
    """0.75 diagonals x (U(0, 1) + U(0, intensity^2)), overshot by a part of the last step and less the first one."""
    diagonal = math.sqrt(2) * 61
    lengths = torch.stack([path.diff().abs().sum() for path in corners(intensity, 400)]) / diagonal
    wanted = 0.375 * (1 + intensity**2)
    # A step is 1.1 - intensity times Beta(1, 30), mean 1 / 31; the overshoot has about the mean of a step too.
    assert abs(float(lengths.mean()) - wanted) < 0.02 + (1.1 - intensity) / 62
    assert lengths.max() < 0.75 * (1 + intensity**2) + 0.35


def test_law_of_the_steps() -> None:
    """Beta(1, 30) scaled to 0.6 diagonals at intensity 0.5: mean 0.6 / 31 on long paths."""
    steps = torch.cat([path.diff().abs() for path in corners(0.5, 200) if len(path) > 15]) / (math.sqrt(2) * 61)
    assert abs(float(steps.mean()) - 0.6 / 31) < 0.05 * 0.6 / 31
    assert abs(float(steps.std()) - 0.6 * math.sqrt(30 / (31**2 * 32))) < 0.1 * 0.6 / 31


def test_a_line_is_drawn_below_the_pixel() -> None:
    """A path of 8 pixels, at a third of a pixel: the spread of a uniform law along it, with round ends; that of the
    brush across it."""
    kernel = draw_path(torch.tensor([-4 + 0.3j, 4 + 0.3j]), 61)
    axis = (torch.arange(61) - 30).double()
    along, across = (kernel.sum(0) * axis**2).sum(), (kernel.sum(1) * axis**2).sum()
    assert 8**2 / 12 < along < 10**2 / 12
    assert abs(float(across) - (0.5**2 + 0.5**2 / 12)) < 0.05
    assert math.hypot(*mass(kernel)) < 0.01


def test_distance_to_path() -> None:
    path = torch.tensor([0 + 0j, 3 + 0j, 3 + 4j])
    points = torch.tensor([-1 + 0j, 1 + 2j, 5 + 3j, 3 + 6j])
    torch.testing.assert_close(distance_to_path(points, path), torch.tensor([1.0, 2.0, 2.0, 2.0]))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 70)])
def test_images_smaller_than_the_kernel(shape: tuple[int, ...]) -> None:
    """The default on digits: what is mirrored is mirrored again, and a grey image stays grey."""
    x = torch.full((1, *shape), 0.3)
    torch.testing.assert_close(MotionBlur()(x), x, rtol=0, atol=1e-6)


def test_boundary_is_that_of_blur() -> None:
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    operator = MotionBlur(kernel_size=9, boundary="zero")
    assert torch.equal(operator(x), Blur(operator.kernel, boundary="zero")(x))


@pytest.mark.parametrize("intensity", [-0.1, 1.5, float("nan")])
def test_bad_intensity(intensity: float) -> None:
    with pytest.raises(ValueError, match=r"intensity must be a number in \[0, 1\], got"):
        MotionBlur(intensity=intensity)


@pytest.mark.parametrize("size", [1, 8, -3])
def test_bad_kernel_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be an odd integer >= 3, got {size}"):
        MotionBlur(kernel_size=size)
