"""The rays, and their matrix against closed forms: nothing here asks another implementation."""

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor

from invdiff.operators.tomography.projection import Scan, evenly, system_matrix

CPU = torch.device("cpu")


def parallel(views: int = 12, detectors: int = 91) -> Scan:
    return Scan(evenly(views, 0.1, math.pi / views), detectors=detectors, spacing=1.0)


def fan(views: int = 12, detectors: int = 97, source: float = 100.0) -> Scan:
    return Scan(evenly(views, 0.1, 2 * math.pi / views), detectors=detectors, spacing=1.0, source=source)


def distances(scan: Scan, x: float, y: float) -> Tensor:
    """Of every ray from a point, (views, detectors), with x right and y down from the centre."""
    point, direction = scan.rays(scan.angles())
    offset = point - torch.tensor([x, y], dtype=torch.float64)
    return (offset[..., 0] * direction[..., 1] - offset[..., 1] * direction[..., 0]).abs()


def project(scan: Scan, image: Tensor) -> Tensor:
    """(views, detectors) of an (H, W) image."""
    matrix = system_matrix(scan, (image.shape[0], image.shape[1]), image.dtype, CPU)
    return matrix.project(image.flatten()[None]).reshape(scan.views, scan.detectors)


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    down = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    return right, down


@pytest.mark.parametrize("scan", [parallel(), fan(), fan(source=60.0)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (63, 50)])
def test_line_integrals_of_a_blob(scan: Scan, height: int, width: int) -> None:
    """A Gaussian has the same integral along every ray at the same distance, whatever the direction. Off-centre, so
    that a shift by half a pixel, a flip or a missing cosine of the fan shows."""
    right, down = grid(height, width)
    x, y, std = 3.3, -9.7, 5.0
    image = torch.exp(-((right - x) ** 2 + (down - y) ** 2) / (2 * std**2))
    wanted = math.sqrt(2 * math.pi) * std * torch.exp(-(distances(scan, x, y) ** 2) / (2 * std**2))
    # Interpolating half way between two pixels loses 1 / (8 std^2) of the top of it.
    assert (project(scan, image) - wanted).abs().max() < 1.1 / (8 * std**2) * wanted.max()


@pytest.mark.parametrize("scan", [parallel(), fan()])
def test_chord_lengths_of_a_disk(scan: Scan) -> None:
    right, down = grid(64 * 8, 64 * 8)
    x, y, radius = 7.1, -5.2, 21.0
    inside = ((right / 8 - x) ** 2 + (down / 8 - y) ** 2 < radius**2).double()
    image = inside.reshape(64, 8, 64, 8).mean((1, 3))
    wanted = 2 * (radius**2 - distances(scan, x, y) ** 2).clamp(min=0).sqrt()
    measured = project(scan, image)
    through = wanted > radius  # rays that graze the edge see pixels, not a disk
    assert (measured - wanted)[through].norm() < 0.01 * wanted[through].norm()
    torch.testing.assert_close(measured.sum(), wanted.sum(), rtol=2e-3, atol=0)


def test_first_view_looks_down_and_the_scanner_turns_to_the_left() -> None:
    """Detector cells run to the right in view 0 and upwards a quarter turn later."""
    image = torch.zeros(5, 5, dtype=torch.float64)
    image[0, 3] = 1
    scan = Scan((0.0, math.pi / 2), detectors=5, spacing=1.0)
    wanted = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(project(scan, image), wanted)


def test_a_far_source_is_a_parallel_beam(normal) -> None:
    image = normal(16, 11)
    near = Scan(evenly(9, 0.2, 0.5), detectors=23, spacing=0.8)
    far = Scan(evenly(9, 0.2, 0.5), detectors=23, spacing=0.8, source=1e9)
    torch.testing.assert_close(project(far, image), project(near, image), rtol=1e-5, atol=1e-5)


def test_rays_of_a_fan_meet_at_the_source() -> None:
    scan = fan(views=3, detectors=7, source=20.0)
    point, direction = scan.rays(scan.angles())
    angles = scan.angles()
    source = -20 * torch.stack([angles.sin(), angles.cos()], -1)
    offset = point - source[:, None]
    across = offset[..., 0] * direction[..., 1] - offset[..., 1] * direction[..., 0]
    torch.testing.assert_close(across, torch.zeros_like(across), rtol=0, atol=1e-12)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones_like(across))


@pytest.mark.parametrize("scan", [parallel(5, 13), fan(7, 13, source=14.0)])
def test_the_transpose_is_the_transpose(scan: Scan) -> None:
    matrix = system_matrix(scan, (9, 8), torch.float64, CPU)
    assert torch.equal(matrix.matrix.to_dense().T, matrix.transpose.to_dense())


def test_many_views_are_built_in_pieces(monkeypatch: pytest.MonkeyPatch, normal) -> None:
    """Views at a time or all at once: the same matrix. 300 views of 400 cells do not fit into one piece."""
    scan, image = parallel(300, 400), normal(4, 4)
    few = Scan(scan.turns[200:203], 400, 1.0)
    torch.testing.assert_close(project(scan, image)[200:203], project(few, image))


def test_a_matrix_lives_as_long_as_someone_holds_it() -> None:
    first = system_matrix(parallel(3), (6, 6), torch.float32, CPU)
    assert system_matrix(parallel(3), (6, 6), torch.float32, CPU) is first
    assert system_matrix(parallel(3), (6, 7), torch.float32, CPU) is not first
    watch = weakref.ref(first)
    del first
    gc.collect()
    assert watch() is None
