"""A blur that varies over the image, against deepinv, and the lens that is the default."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import SpaceVaryingBlur as DeepinvSpaceVaryingBlur
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import Blur, GaussianBlur, SpaceVaryingBlur
from invdiff.operators.blur.space_varying_blur import radial_maps

Normal = Callable[..., Tensor]


@pytest.mark.parametrize("boundary", ["reflect", "replicate", "circular"])
def test_agrees_with_deepinv(boundary: str, normal: Normal) -> None:
    filters, maps = normal(2, 1, 3, 5, 5).float() / 5, normal(2, 1, 3, 12, 15, seed=1).float()
    x = normal(2, 3, 12, 15, seed=2).float()
    theirs = DeepinvSpaceVaryingBlur(filters=filters, multipliers=maps, padding=boundary)
    ours = SpaceVaryingBlur(filters=filters, multipliers=maps, boundary=boundary)
    torch.testing.assert_close(ours(x), theirs.A(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.adjoint(x), theirs.A_adjoint(x), rtol=0, atol=1e-5)


def test_maps_share_the_image(normal: Normal) -> None:
    for count in [1, 2, 5]:
        for size in [(16, 16), (7, 20), (1, 5), (1, 1)]:
            maps = radial_maps(count, size, normal(1))
            torch.testing.assert_close(maps.sum(1), torch.ones(1, *size, dtype=torch.float64))
            assert (maps >= 0).all()
            torch.testing.assert_close(maps, maps.flip(-1))
            if min(size) > 1:
                assert maps[0, -1, 0, 0] == 1  # the last map is all there is in a corner


def test_one_std_everywhere_is_a_gaussian_blur(normal: Normal) -> None:
    x = normal(1, 1, 12, 13)
    lens = SpaceVaryingBlur(std_center=1.5, std_corner=1.5, kernel_size=13)
    torch.testing.assert_close(lens(x), GaussianBlur(std=1.5, kernel_size=13)(x), rtol=0, atol=1e-6)


def test_corners_are_softer_than_the_centre() -> None:
    points = torch.zeros(2, 1, 33, 33)
    points[0, 0, 16, 16], points[1, 0, 4, 4] = 1, 1
    y = SpaceVaryingBlur(std_center=0.5, std_corner=3.0, boundary="zero")(points)
    assert y[0].max() > 4 * y[1].max()
    torch.testing.assert_close(y[0].sum(), torch.tensor(1.0))


def test_a_lens_per_image(normal: Normal) -> None:
    x, corner = normal(3, 1, 9, 9), torch.tensor([1.0, 2.0, 3.0])
    together = SpaceVaryingBlur(std_corner=corner, kernel_size=9)
    assert together.images == 3
    for i in range(3):
        alone = SpaceVaryingBlur(std_corner=float(corner[i]), kernel_size=9)
        torch.testing.assert_close(alone(x[i : i + 1]), together(x)[i : i + 1])
    check_operator(together, (1, 9, 9))


def test_one_filter_without_map_is_a_blur(normal: Normal) -> None:
    kernel, x = normal(1, 5, 4).float(), normal(2, 3, 8, 8)
    operator = SpaceVaryingBlur(filters=kernel, multipliers=torch.ones(1, 8, 8))
    torch.testing.assert_close(operator(x), Blur(kernel)(x))


def test_maps_of_another_size() -> None:
    operator = SpaceVaryingBlur(filters=torch.ones(2, 3, 3), multipliers=torch.ones(2, 8, 9))
    assert operator.mismatch((1, 8, 9)) is None
    assert operator.mismatch((1, 9, 8)) == "space_varying_blur: multipliers are 8x9 pixels, the image 9x8"
    with pytest.raises(ValueError, match="multipliers are 8x9 pixels, the image 9x8"):
        operator(torch.ones(1, 1, 9, 8))


ONES = torch.ones(2, 3, 3)


def test_bad_input() -> None:
    for arguments, message in [
        ({"filters": ONES}, "must be given together"),
        ({"filters": ONES, "multipliers": torch.ones(3, 8, 8)}, "got filters 1x2x3x3 and multipliers 1x3x8x8"),
        ({"filters": ONES.expand(2, 2, 3, 3), "multipliers": torch.ones(3, 2, 8, 8)}, "equally many images"),
        ({"filters": ONES[0], "multipliers": ONES}, "filters must be .* got 3x3"),
        ({"filters": ONES / 0, "multipliers": ONES}, "filters must be finite, got NaN or infinity"),
        ({"std_corner": 0.0}, "std_corner must be > 0 pixels, got 0"),
        ({"std_center": torch.tensor([1.0, -1.0])}, "std_center must be > 0 pixels, got -1"),
        ({"kernels": 0}, "kernels must be an integer >= 1, got 0"),
        ({"kernel_size": 4}, "kernel_size must be an odd integer >= 1, got 4"),
        ({"boundary": "mirror"}, "boundary must be one of reflect, .* got 'mirror'"),
    ]:
        with pytest.raises(ValueError, match=f"space_varying_blur: .*{message}"):
            SpaceVaryingBlur(**arguments)
