"""The conventions of measurements, one test for each row of docs/conventions.md that names it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import Tomography
from skimage.transform import radon
from torch import Tensor

from invdiff.operators import CT, CTTransmission

Normal = Callable[..., Tensor]


def disc(size: int) -> Tensor:
    """A lopsided smooth image (1, 1, size, size), zero outside the circle that scikit-image reconstructs."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    places = ((-0.12, 0.08, 0.08), (0.15, 0.12, 0.06), (0.02, -0.2, 0.05))
    blobs = [
        torch.exp(-((axis[:, None] - a * size) ** 2 + (axis - b * size) ** 2) / (2 * (c * size) ** 2))
        for a, b, c in places
    ]
    inside = axis[:, None] ** 2 + axis**2 < (size / 2 - 1.5) ** 2
    return (torch.stack(blobs).sum(0) * inside)[None, None]


def off(y: Tensor, wanted: Tensor) -> float:
    return float((y - wanted).norm() / wanted.norm())


# -- computed tomography -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("circle", [True, False])
def test_scikit_image_sinogram(size: int, circle: bool) -> None:
    """Axis of rotation n // 2, sense, order of axes and unit: it measures what `radon` does, read otherwise it does
    not where a size is even."""
    x, angles = disc(size), np.array([0.0, 20.0, 45.0, 77.0, 90.0, 135.0, 200.0, 301.0])
    theirs = torch.from_numpy(radon(x[0, 0].numpy(), angles, circle=circle))[None, None]
    more = {} if circle else {"detectors": theirs.shape[2], "size": (size, size)}
    operator = CT(angles=angles, convention="skimage", **more)
    assert off(operator(x), theirs) < 1e-6
    plain = CT(angles=angles, detectors=theirs.shape[2], size=(size, size))
    assert (off(plain(x), theirs) > 0.05) == (size % 2 == 0 or theirs.shape[2] % 2 == 0)


def test_scikit_image_sinogram_is_reconstructed_like_our_own() -> None:
    """Least squares, and filtered back-projection, from 60 views."""
    x, angles = ((disc(64) > 0.2).float() + (disc(64) > 0.7).float()) / 2, np.arange(60) * 3.0
    operator = CT(angles=angles, convention="skimage")
    theirs = torch.from_numpy(radon(x[0, 0].numpy(), angles))[None, None]
    for guess in (operator.first_guess, lambda y: operator.solve(operator.adjoint(y), 1.0)):
        own, other = (float((guess(y) - x).square().mean().log10() * -10) for y in (operator(x), theirs))
        assert abs(own - other) < 0.3, (own, other)


@pytest.mark.parametrize("size", [32, 33, 36, 37])
def test_deepinv_sinogram(size: int) -> None:
    """Also where image and detector are not both even or both odd, and deepinv's axis is half a pixel off."""
    x = disc(size)
    theirs = Tomography(10, size, normalize=False, dtype=torch.float64)(x)
    assert off(CT(views=10, convention="deepinv")(x), theirs) < 1e-5


def test_deepinv_fan() -> None:
    """Up to the length of oblique rays, which deepinv forgets: a quarter turn ahead, cells the other way."""
    size, x = 40, disc(40)
    fan = {"pixel_spacing": 1.0, "source_radius": 80.0, "detector_radius": 80.0, "n_detector_pixels": 71}
    theirs = Tomography(
        torch.tensor([0.0, 37.0, 90.0, 200.0]),
        size,
        normalize=False,
        fan_beam=True,
        fan_parameters=fan | {"detector_spacing": 2.0},
        dtype=torch.float64,
    )(x)
    options = {"geometry": "fan", "detectors": 71, "detector_spacing": 2.0, "size": (size, size)}
    ours = CT(angles=[0.0, 37.0, 90.0, 200.0], convention="deepinv", **options)(x)
    assert off(ours, theirs) < 0.05
    assert off(CT(angles=[0.0, 37.0, 90.0, 200.0], **options)(x), theirs) > 0.5


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
@pytest.mark.parametrize("size", [30, 31])
def test_astra_geometry(geometry: str, size: int) -> None:
    """Against rays by ASTRA's documented vectors, x right and y up, through a blob whose line integrals are known.

    parallel  direction (sin a, -cos a), cell i at (i - (n - 1) / 2) (cos a, sin a)
    fanflat   source at (sin a, -cos a) DSO, middle of the detector at (-sin a, cos a) DOD, cells along (cos a, sin a)
    """
    angles, n, source, detector, std = [0.0, 33.0, 90.0, 150.0, 280.0], 47, 75.0, 45.0, 3.0
    across, up = 4.0, 6.5
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x = torch.exp(-((axis - across) ** 2 + (-axis[:, None] - up) ** 2) / (2 * std**2))[None, None]
    wanted = torch.zeros(len(angles), n, dtype=torch.float64)
    for view, a in enumerate(math.radians(angle) for angle in angles):
        u, toward = np.array([math.cos(a), math.sin(a)]), np.array([math.sin(a), -math.cos(a)])
        for i in range(n):
            if geometry == "parallel":
                start, direction = (i - (n - 1) / 2) * u, toward
            else:
                start = source * toward
                direction = -detector * toward + (i - (n - 1) / 2) * 1.6 * u - start
            direction = direction / np.linalg.norm(direction)
            offset = np.array([across, up]) - start
            distance = offset[0] * direction[1] - offset[1] * direction[0]
            wanted[view, i] = math.sqrt(2 * math.pi) * std * math.exp(-(distance**2) / (2 * std**2))
    options = {"geometry": geometry, "angles": angles, "detectors": n, "size": (size, size)}
    if geometry == "fan":
        options |= {"source_distance": source / size, "detector_distance": detector / size, "detector_spacing": 1.6}
    y = CT(convention="astra", **options)(x)
    assert y.shape == (1, 1, len(angles), n)
    assert off(y[0, 0], wanted) < 0.02
    flipped = CT(**options)(x).mT
    assert (off(flipped[0, 0], wanted) > 0.15) == (geometry == "fan")


def test_angles_are_degrees_of_every_view(tmp_path: Path, normal: Normal) -> None:
    x = normal(1, 1, 9, 9)
    whole = CT(views=18)(x)
    chosen = [3, 0, 7, 8]
    angles = [10.0 * view for view in chosen]
    text, binary = tmp_path / "angles.txt", tmp_path / "angles.npy"
    text.write_text("30, 0\n70 80\n")
    np.save(binary, np.array(angles)[:, None])
    for given in (angles, np.array(angles), torch.tensor(angles), text, str(binary)):
        operator = CT(angles=given)
        assert operator.views == 4
        torch.testing.assert_close(operator(x), whole[..., chosen])


@pytest.mark.parametrize("views", [np.arange(60) * 3.0, np.arange(60) * 111.246 % 180, np.arange(1, 91) * 4.0])
def test_backprojection_of_given_angles(views: np.ndarray) -> None:
    """Evenly spaced, golden, and shuffled over a whole turn: the level of the image is kept."""
    x = disc(40)
    for angles in (views, np.random.default_rng(0).permutation(views)):
        operator = CT(angles=angles)
        assert off(operator.first_guess(operator(x)), x) < 0.04


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
@pytest.mark.parametrize(("centre", "offset"), [(1.3, 0.0), (0.0, -2.0), (0.75, 1.5)])
def test_axis_beside_the_middle_of_the_detector(geometry: str, centre: float, offset: float) -> None:
    """The projection of a small blob on the axis of rotation stays on cell (n - 1) / 2 + centre - detector_offset, and
    back-projection puts the image where it was."""
    axis = torch.arange(41, dtype=torch.float64) - 20
    blob = torch.exp(-(axis**2 + axis[:, None] ** 2) / 8)[None, None]
    options = {"views": 64, "geometry": geometry, "detectors": 81, "size": (41, 41)}
    operator = CT(centre=centre, detector_offset=offset, **options)
    y = operator(blob)[0, 0]
    found = (y * torch.arange(81)[:, None]).sum(0) / y.sum(0)
    torch.testing.assert_close(found, torch.full_like(found, 40 + centre - offset), rtol=0, atol=0.02)
    x = disc(41)
    assert off(operator.first_guess(operator(x)), x) < 0.05
    assert off(CT(**options).first_guess(operator(x)), x) > 0.08


def test_in_a_fan_the_two_offsets_differ() -> None:
    """`centre` moves the axis out of the central ray, `detector_offset` the cells; with parallel rays the same."""
    x, options = disc(20), {"views": 8, "detectors": 41, "size": (20, 20)}
    for geometry, same in (("parallel", True), ("fan", False)):
        moved = CT(geometry=geometry, centre=2.0, **options)(x)
        pushed = CT(geometry=geometry, detector_offset=-2.0, **options)(x)
        assert torch.allclose(moved, pushed, atol=1e-9) == same


def test_transmission_shares_the_geometry(normal: Normal) -> None:
    x, options = normal(1, 1, 8, 8).abs(), {"angles": [0, 10, 95], "convention": "astra", "centre": 0.4}
    y = CTTransmission(attenuation=1.0, **options)(x)
    torch.testing.assert_close(y, torch.exp(-CT(**options)(x) / 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angles": [0, 1], "views": 3}, "views must be the number of angles, 2, got 3"),
        ({"angles": [0, 1], "angle_range": 90}, "give angle_range, for evenly spaced views, or angles, got both"),
        ({"angles": [0, math.nan]}, "angles must be finite degrees, one per view"),
        ({"angles": [[0, 1], [2, 3]]}, "angles must be finite degrees, one per view, got 2x2"),
        ({"angles": "none.txt"}, "angles file not found: none.txt"),
        ({"convention": "matlab"}, "convention must be one of invdiff, skimage, deepinv, astra, got 'matlab'"),
        ({"convention": "skimage", "geometry": "fan"}, "convention=skimage is for parallel beams"),
        ({"centre": math.inf}, "centre, in cells from the middle of the detector, must be finite"),
    ],
)
def test_wrong_geometry(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ct: {message}"):
        CT(**options)
