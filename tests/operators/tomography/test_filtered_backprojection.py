"""Filtered back-projection of objects whose image is known."""

import math

import pytest
import torch
from torch import Tensor

from invdiff.operators import CT
from invdiff.operators.tomography.filtered_backprojection import redundancy


def blobs(size: int = 48) -> Tensor:
    """Smooth, off-centre and of both signs; mean far from zero."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    right, down = axis, axis[:, None]
    image = torch.exp(-((right - 5) ** 2 + (down + 7) ** 2) / 50) - 0.5 * torch.exp(
        -((right + 8) ** 2 + (down - 3) ** 2) / 18
    )
    return image[None, None]


def error(operator: CT, image: Tensor) -> float:
    guess = operator.first_guess(operator(image))
    return float((guess - image).norm() / image.norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"angle_range": [90, -90]},
        {"angle_range": 360},
        {"angle_range": 250},
        {"geometry": "fan"},
        {"geometry": "fan", "angle_range": [-30, -390]},
        {"geometry": "fan", "angle_range": 240},
        {"geometry": "fan", "source_distance": 0.9, "detector_spacing": 1.5, "size": [48, 48]},
        {"detector_spacing": 0.7, "size": [48, 48]},
        {"pixel_size": 0.1},
    ],
    ids=str,
)
def test_a_complete_scan_gives_the_image(options: dict) -> None:
    """Values as well as shapes: no scale is fitted. Ranges that measure some lines twice count none double."""
    assert error(CT(views=120, **options), blobs()) < 0.02


@pytest.mark.parametrize("span", [240.0, 360.0])
def test_the_order_of_the_views_does_not_matter(span: float) -> None:
    """Also of a short fan scan, whose weights depend on how far a view is from the ends of its range."""
    turns = torch.arange(90) * (span / 90)
    shuffled = turns[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    for angles in (turns, turns.flip(0), shuffled):
        assert error(CT(geometry="fan", angles=angles), blobs()) < 0.02


def test_not_square(normal) -> None:
    image = blobs()[..., 8:40, :]
    operator = CT(views=120, size=[32, 48])
    guess = operator.first_guess(operator(image))
    assert (guess - image)[..., 2:-2, 2:-2].abs().max() < 0.05


def test_the_mean_is_kept() -> None:
    """A ramp sampled in frequency sets it to zero, and the image of a disk becomes a bowl."""
    image = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    image[..., 8:24, 8:24] = 1
    operator = CT(views=90)
    guess = operator.first_guess(operator(image))
    assert guess[..., 12:20, 12:20].mean() == pytest.approx(1, abs=0.01)


def test_hann_has_less_noise(normal) -> None:
    image, noise = blobs(), normal(1, 1, 68, 60)
    y = CT()(image) + noise
    sharp, soft = (CT(filter=name).first_guess(y) - image for name in ("ram-lak", "hann"))
    assert soft.norm() < 0.6 * sharp.norm()


def test_limited_angle_loses_the_missing_lines_only() -> None:
    """A fraction of the image, of the right size: half the range shows half of a round blob, and never more."""
    axis = torch.arange(49, dtype=torch.float64) - 24
    blob = torch.exp(-(axis**2 + axis[:, None] ** 2) / 50)[None, None]
    for geometry in ("parallel", "fan"):
        operator = CT(views=90, angle_range=90, geometry=geometry)
        guess = operator.first_guess(operator(blob))
        assert guess[0, 0, 24, 24] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("geometry", "angle_range"),
    [("parallel", 180), ("parallel", 200), ("parallel", 360), ("fan", 360), ("fan", 240), ("fan", 300)],
)
def test_weights_of_equal_lines_add_up_to_one(geometry: str, angle_range: float) -> None:
    """The whole scan weighs as much as half a turn of parallel rays: each line once."""
    scan = CT(views=720, geometry=geometry, angle_range=angle_range).scan((32, 32))
    fan = torch.atan(scan.cells() / scan.source)
    assert scan.step is not None
    weight = redundancy(scan.step, scan, scan.angles(), fan).sum(0) * abs(scan.step)
    # The views of one ray and those of its mirror image at -fan share the lines between them.
    torch.testing.assert_close(weight + weight.flip(0), torch.full_like(weight, 2 * math.pi), rtol=5e-3, atol=0)


def test_differentiable(normal) -> None:
    operator, y = CT(views=4, size=[5, 6]), normal(1, 1, 8, 4)
    assert torch.autograd.gradcheck(operator.first_guess, y.requires_grad_(True))
