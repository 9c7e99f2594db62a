"""Computed tomography against dense linear algebra and deepinv; for what rays measure see test_projection.py."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from deepinv.physics import Tomography
from torch import Tensor

from invdiff.operators import CT

Normal = Callable[..., Tensor]

CASES = [
    pytest.param({"views": 7}, (1, 8, 8), id="parallel"),
    pytest.param({"views": 12, "angle_range": [20, 110], "size": [5, 8], "pixel_size": 0.3}, (2, 5, 8), id="limited"),
    pytest.param({"views": 9, "geometry": "fan"}, (2, 7, 7), id="fan"),
    pytest.param(
        {"views": 6, "geometry": "fan", "detectors": 9, "detector_spacing": 2.5, "size": [8, 5]}, (1, 8, 5), id="cut"
    ),
]
EVERY = pytest.mark.parametrize(("options", "shape"), CASES)


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_adjoint(geometry: str, normal: Normal) -> None:
    for seed in range(4):
        for dtype, tolerance in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
            rng = np.random.default_rng(seed)
            height, width = (int(n) for n in rng.integers(1, 21, 2))
            channels = int(rng.choice([1, 3]))
            operator = CT(views=int(rng.integers(1, 12)), geometry=geometry, size=(height, width))
            x = normal(1 + seed, channels, height, width, seed=seed, dtype=dtype)
            ax = operator(x)
            y = normal(*ax.shape, seed=seed + 100, dtype=dtype)
            aty = operator.adjoint(y)
            assert aty.shape == x.shape
            assert ax.dtype == aty.dtype == dtype
            left, right = (ax * y).flatten(1).sum(1), (x * aty).flatten(1).sum(1)
            assert ((left - right).abs() <= tolerance * ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).all()


@EVERY
def test_solve(options: dict, shape: tuple[int, ...], normal: Normal, dense: Callable[..., Tensor]) -> None:
    """Over a wide range of rho, one per row."""
    operator, b, rho = CT(**options), normal(4, *shape), torch.tensor([1e-3, 0.1, 10.0, 1e3])
    a = dense(operator, shape)
    got, shared = operator.solve(b, rho), operator.solve(b, 0.1)
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    for i in range(4):
        for image, level in ((got[i], rho[i]), (shared[i], 0.1)):
            wanted = torch.linalg.solve(a.T @ a + level * eye, b[i].flatten())
            assert (image.flatten() - wanted).norm() <= 1e-5 * wanted.norm()


@EVERY
def test_pinv(options: dict, shape: tuple[int, ...], normal: Normal, dense: Callable[..., Tensor]) -> None:
    operator = CT(**options)
    y = normal(*operator(normal(2, *shape)).shape, seed=2)
    a = dense(operator, shape)
    got = operator.pinv(y)
    for i in range(2):
        wanted = torch.linalg.pinv(a, rtol=1e-9) @ y[i].flatten()
        assert (got[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()


@EVERY
def test_autograd_follows_the_matrix(options: dict, shape: tuple[int, ...], normal: Normal) -> None:
    operator, x = CT(**options), normal(2, *shape)
    y = normal(*operator(x).shape, seed=2)
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y), rtol=1e-12, atol=1e-12)
    y = y.requires_grad_(True)
    (back,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
    torch.testing.assert_close(back, operator(x), rtol=1e-12, atol=1e-12)


def test_second_derivative(normal: Normal) -> None:
    operator = CT(views=3)
    x = normal(1, 1, 4, 4).requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda x: operator(x).square(), x)


@EVERY
def test_rows_are_independent(options: dict, shape: tuple[int, ...], normal: Normal) -> None:
    """Alone as in a batch; a blank row and one of NaN leave the others as they are."""
    operator, x = CT(**options), normal(3, *shape)
    y = operator(x)
    sick_x, sick_y = x.clone(), y.clone()
    sick_x[0], sick_y[0], sick_x[1], sick_y[1] = torch.nan, torch.nan, 0, 0
    for name, well, sick in (
        ("forward", x, sick_x),
        ("adjoint", y, sick_y),
        ("pinv", y, sick_y),
        ("first_guess", y, sick_y),
    ):
        method = getattr(operator, name)
        whole, partly = method(well), method(sick)
        torch.testing.assert_close(method(well[2:]), whole[2:], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(partly[2], whole[2], rtol=1e-9, atol=1e-11)
        assert (partly[1] == 0).all()
        assert not partly[0].isfinite().all()
    solved = operator.solve(sick_x, 0.1)
    torch.testing.assert_close(solved[2:], operator.solve(x[2:], 0.1), rtol=1e-9, atol=1e-11)
    assert solved[0].isnan().all()


@pytest.mark.parametrize("size", [37, 38])
def test_deepinv_measures_the_same(size: int) -> None:
    """Layout, orientation and scale. Its rays step by whole pixels along themselves, ours from row to row: the same in
    views along the axes, and nearly so for smooth images elsewhere."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    place = torch.tensor([[[-6.0, 3.0], [5.0, 4.0], [0.0, -5.0]], [[2.0, 6.0], [-7.0, -3.0], [1.0, 1.0]]])[..., None]
    x = torch.exp(-((axis[:, None] - place[:, :, :1]) ** 2 + (axis - place[:, :, 1:]) ** 2) / 18)
    y, theirs = CT(views=12)(x), Tomography(12, size, normalize=False, dtype=torch.float64)(x)
    assert y.shape == theirs.shape
    torch.testing.assert_close(y[..., [0, 6]], theirs[..., [0, 6]], rtol=1e-5, atol=1e-5)
    assert (y - theirs).norm() < 5e-3 * theirs.norm()


def test_a_fan_is_right_where_deepinv_is_not() -> None:
    """It forgets that oblique rays are longer within a pixel. A disk off the axis, by its chords."""
    size, source, radius, x, y = 62, 60.0, 14.0, 12.0, -9.0
    axis = (torch.arange(size * 8, dtype=torch.float64) + 0.5) / 8 - size / 2
    inside = ((axis - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2).double()
    image = inside.reshape(size, 8, size, 8).mean((1, 3))[None, None]
    operator = CT(views=4, geometry="fan", source_distance=source / size, detector_distance=source / size)
    scan = operator.scan((size, size))
    point, direction = scan.rays(scan.angles())
    offset = point - torch.tensor([x, y], dtype=torch.float64)
    distance = (offset[..., 0] * direction[..., 1] - offset[..., 1] * direction[..., 0]).abs()
    chord = 2 * (radius**2 - distance**2).clamp(min=0).sqrt().T
    fan = {
        "pixel_spacing": 1.0,
        "source_radius": source,
        "detector_radius": source,
        "n_detector_pixels": scan.detectors,
        "detector_spacing": 2.0,
    }
    # At angle 0 its rays run to the right and its detector downwards.
    theirs = Tomography(
        torch.arange(4) * 90.0 - 90, size, normalize=False, fan_beam=True, fan_parameters=fan, dtype=torch.float64
    )
    through = chord > radius
    ours, other = operator(image)[0, 0] - chord, theirs(image)[0, 0].flip(0) - chord
    scale = chord[through].norm()
    assert ours[through].norm() < 0.005 * scale
    assert 0.02 * scale < other[through].norm() < 0.05 * scale


def test_deepinv_takes_it(normal: Normal) -> None:
    operator, x = CT(views=5), normal(1, 1, 6, 6)
    physics = operator.to_deepinv()
    torch.testing.assert_close(physics.A_adjoint(physics.A(x)), operator.adjoint(operator(x)))


def test_angle_range(normal: Normal) -> None:
    """A number ends the range and a pair is both ends; the end itself is not measured."""
    x = normal(1, 1, 9, 9)
    whole = CT(views=18)(x)
    assert torch.equal(CT(views=9, angle_range=90)(x), whole[..., :9])
    torch.testing.assert_close(CT(views=6, angle_range=[60, 120])(x), whole[..., 6:12])
    torch.testing.assert_close(CT(views=6, angle_range=[60, 0])(x), whole[..., 1:7].flip(-1))
    assert torch.equal(CT(views=4, geometry="fan")(x), CT(views=4, geometry="fan", angle_range=[0, 360])(x))


def test_opposite_parallel_views_are_mirror_images(normal: Normal) -> None:
    y = CT(views=8, angle_range=360)(normal(1, 1, 7, 7))
    torch.testing.assert_close(y[..., 4:], y[..., :4].flip(-2))


def test_pixel_size_is_a_unit(normal: Normal) -> None:
    x = normal(1, 1, 6, 6)
    plain, scaled = CT(views=5), CT(views=5, pixel_size=0.2)
    torch.testing.assert_close(scaled(x), 0.2 * plain(x))
    torch.testing.assert_close(scaled.first_guess(scaled(x)), plain.first_guess(plain(x)))


@pytest.mark.parametrize(("geometry", "source"), [("parallel", 2.0), ("fan", 2.0), ("fan", 0.72)])
def test_every_pixel_is_seen_in_every_view(geometry: str, source: float) -> None:
    """The default detector covers the corners of the image, from any side."""
    operator = CT(views=32, geometry=geometry, source_distance=source)
    for n in (4, 15):
        corners = torch.zeros(4, 1, n, n)
        for i, (row, column) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1)]):
            corners[i, 0, row, column] = 1
        assert (operator(corners).sum(2) > 0).all()


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_image_shape(geometry: str) -> None:
    """The default detector tells the side of a square image, and no wrong one."""
    operator = CT(views=3, geometry=geometry, source_distance=0.75)
    sides = {operator.scan((n, n)).detectors: n for n in range(1, 300)}
    for detectors, n in sides.items():
        assert operator.image_shape((2, detectors, 3)) == (2, n, n)
    missing = next(d for d in range(3, 300) if d not in sides)
    with pytest.raises(ValueError, match=f"ct: no square image has {missing} detectors by default; set size"):
        operator.image_shape((1, missing, 3))


def test_image_shape_with_size() -> None:
    operator = CT(views=3, detectors=10, size=[5, 9])
    assert operator.image_shape((2, 10, 3)) == (2, 5, 9)
    with pytest.raises(ValueError, match="ct: images of 5x9 require 10 detectors, got 11"):
        operator.image_shape((2, 11, 3))
    with pytest.raises(ValueError, match="ct: a measurement must be channels x detectors x 3 views, got 2x10x4"):
        operator.image_shape((2, 10, 4))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 5, 6), r"an image must be square unless size is set, got 5x6; set size=\[5, 6\]"),
        ({"size": [6, 5]}, (1, 5, 6), "size is 6x5, the image 5x6"),
        ({}, (5, 6), r"an image must be \(C, H, W\), got 5x6"),
    ],
)
def test_images_that_cannot_be_measured(options: dict, shape: tuple[int, ...], message: str) -> None:
    operator = CT(**options)
    with pytest.raises(ValueError, match=message):
        operator(torch.zeros(1, *shape))


def test_bad_parameters() -> None:
    for options, message in [
        ({"views": 0}, "ct: views must be an integer >= 1, got 0"),
        ({"views": 2.5}, "ct: views must be an integer >= 1, got 2.5"),
        ({"geometry": "cone"}, "ct: geometry must be one of parallel, fan, got 'cone'"),
        ({"angle_range": 0}, "ct: angle_range must be degrees other than 0, .* got 0"),
        ({"angle_range": [30, 30]}, "ct: angle_range"),
        ({"angle_range": [0, 10, 20]}, "ct: angle_range"),
        ({"angle_range": float("nan")}, "ct: angle_range"),
        ({"detectors": 0, "size": [8, 8]}, "ct: detectors must be an integer >= 1, got 0"),
        ({"detectors": 9}, r"ct: detectors requires size=\[height, width\]"),
        ({"detector_spacing": 0.5}, "ct: detector_spacing requires size"),
        ({"detector_spacing": 0, "size": [8, 8]}, "ct: detector_spacing must be > 0, got 0"),
        ({"pixel_size": -1.0}, "ct: pixel_size must be > 0, got -1.0"),
        ({"source_distance": 0.5}, "ct: source_distance must be > 0.71 image sides, .* got 0.5"),
        ({"detector_distance": 0.7}, "ct: detector_distance must be > 0.71 image sides, .* got 0.7"),
        ({"size": [8]}, r"ct: size must be \[height, width\] of the image in pixels, got \[8\]"),
        ({"size": [8, 0]}, "ct: size must be"),
        ({"filter": "cosine"}, "ct: filter must be one of ram-lak, hann, got 'cosine'"),
    ]:
        with pytest.raises(ValueError, match=message):
            CT(**options)


def test_copies_share_the_matrix_and_pickles_leave_it_out(normal: Normal) -> None:
    operator, x = CT(views=20), normal(1, 1, 20, 20)
    y = operator(x)
    matrix = next(iter(operator._matrices.values()))
    text = pickle.dumps(operator)
    assert len(text) < 5000
    for other in (copy.copy(operator), copy.deepcopy(operator), pickle.loads(text)):
        assert torch.equal(other(x), y)
        assert next(iter(other._matrices.values())) is matrix


def test_double_is_exact_after_single(normal: Normal, dense: Callable[..., Tensor]) -> None:
    """The weights are made in the precision of the image, not cast from one that was used before."""
    operator, x = CT(views=5), normal(1, 1, 6, 6)
    operator(x.float())
    assert (operator(x) - CT(views=5)(x)).norm() == 0


def test_first_call_in_inference_mode(normal: Normal) -> None:
    operator, x = CT(views=4, geometry="fan"), normal(1, 1, 5, 5)
    with torch.inference_mode():
        y = operator(x.clone())
    y = normal(*y.shape)
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y))


@pytest.mark.filterwarnings("error")
def test_says_nothing_of_beta_versions() -> None:
    CT(views=3, angle_range=77)(torch.ones(1, 1, 4, 4))
