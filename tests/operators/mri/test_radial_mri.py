"""Radial MRI against the Fourier sum itself, and gridding."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import RadialMRI
from invdiff.operators.mri import radial_mri as module
from invdiff.operators.mri.kspace import to_kspace

Normal = Callable[..., Tensor]


@pytest.mark.parametrize("angles", ["uniform", "golden"])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_is_the_fourier_sum(size: tuple[int, int], angles: str, normal: Normal) -> None:
    operator = RadialMRI(size=size, spokes=5, samples=9, coils=2, angles=angles, complex_image=True)
    x = normal(2, 2, *size)
    row, column = torch.meshgrid(*(torch.arange(n).double() - n // 2 for n in size), indexing="ij")
    images = operator.coil_images(x)
    y = operator(x)
    assert y.shape == (2, 2, 5, 9)
    step = math.pi / 5 if angles == "uniform" else math.radians(180 / ((1 + math.sqrt(5)) / 2))
    for spoke in range(5):
        for sample in range(9):
            radius = (sample - 4) / 9
            phase = radius * (math.sin(spoke * step) * row + math.cos(spoke * step) * column)
            wanted = (images * torch.exp(-2j * math.pi * phase)).sum((-2, -1)) / math.sqrt(size[0] * size[1])
            torch.testing.assert_close(y[:, :, spoke, sample], wanted)


def test_on_the_grid_it_is_the_orthonormal_transform(normal: Normal) -> None:
    """Two spokes, along the axes, as many samples as pixels."""
    x = normal(1, 1, 8, 8)
    y, grid = RadialMRI(size=8, spokes=2, samples=8)(x)[0, 0], to_kspace(x)[0, 0]
    torch.testing.assert_close(y[0], grid[4])
    torch.testing.assert_close(y[1], grid[:, 4])


@pytest.mark.parametrize("options", [{}, {"coils": 3}, {"complex_image": True, "angles": "golden"}])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_the_normal_operator_is_a_convolution(size: tuple[int, int], options: dict, normal: Normal) -> None:
    operator = RadialMRI(size=size, spokes=7, **options)
    x = normal(2, 2 if operator.complex_image else 1, *size)
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator(x)), rtol=1e-10, atol=1e-10)


def test_portions_make_the_whole(monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    build = lambda: RadialMRI(size=(6, 8), spokes=7)  # noqa: E731
    x = normal(2, 1, 6, 8)
    y, image, normal_image = build()(x), build().adjoint(build()(x)), build().normal(x)
    monkeypatch.setattr(module, "PORTION", 400)
    torch.testing.assert_close(build()(x), y)
    torch.testing.assert_close(build().adjoint(y), image)
    torch.testing.assert_close(build().normal(x), normal_image)


@pytest.mark.parametrize("angles", ["uniform", "golden"])
def test_samples_share_the_disc_of_frequencies(angles: str) -> None:
    areas = RadialMRI(spokes=13, samples=64, angles=angles).density(32)
    assert areas.sum() == pytest.approx(math.pi / 4, rel=1e-3)
    assert (areas > 0).all()


@pytest.mark.parametrize("options", [{}, {"coils": 4}, {"angles": "golden"}])
def test_gridding_finds_a_smooth_image(options: dict) -> None:
    """With enough spokes the weighted adjoint is the image, its mean included."""
    place = torch.arange(32) - 15.0
    x = torch.exp(-(place[:, None].square() / 30 + (place - 3).square() / 20))[None, None]
    operator = RadialMRI(spokes=60, **options)
    guess = operator.first_guess(operator(x))
    assert (guess - x).norm() < 0.03 * x.norm()


def test_gridding_evens_out_the_maps(normal: Normal) -> None:
    maps = normal(3, 16, 16, dtype=torch.complex64)
    place = torch.arange(16) - 8.0
    x = torch.exp(-(place[:, None].square() + place.square()) / 12)[None, None]
    small, large = (RadialMRI(spokes=30, maps=scale * maps) for scale in (1, 50))
    torch.testing.assert_close(small.first_guess(small(x)), large.first_guess(large(x)), rtol=1e-3, atol=1e-5)


def test_shapes() -> None:
    any_square = RadialMRI(spokes=4)
    for side in (8, 9):
        x = torch.ones(1, 1, side, side)
        assert any_square(x).shape == (1, 1, 4, 2 * side)
        assert any_square.adjoint(any_square(x)).shape == x.shape
    assert (
        any_square.mismatch((1, 8, 9))
        == "radial_mri: an image must be square unless size is set, got 8x9; set size=[8, 9]"
    )
    assert RadialMRI(samples=20).image_shape((1, 40, 20)) == (1, 10, 10)
    assert RadialMRI(size=10).mismatch((1, 12, 12)) == "radial_mri: size is 10x10, the image 12x12"
    assert RadialMRI(size=10).mismatch((2, 10, 10)) is not None
    assert RadialMRI(size=10, maps=torch.ones(2, 12, 12)).mismatch((1, 10, 10)) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spokes": 0}, "spokes must be an integer >= 1, got 0"),
        ({"samples": 0}, "samples, per spoke, must be an integer >= 1, got 0"),
        ({"angles": "random"}, "angles must be one of uniform, golden, got 'random'"),
        ({"size": 0}, r"size must be \(H, W\) of the image in pixels or the side of a square, got 0"),
        ({"size": (8, 8, 8)}, r"size must be .* got \(8, 8, 8\)"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RadialMRI(**options)
