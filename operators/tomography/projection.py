"""Line integrals of images as a sparse matrix: the rays of a scanner and their weights.

Spec    Joseph (1982): a ray steps through the image row by row (column by column where it is closer to horizontal),
        interpolates linearly between the two nearest pixels, and weights them by its length per step. Or, as in
        `skimage.transform.radon` and deepinv, which rotate the image and sum its columns: it steps by one pixel along
        itself and interpolates between the four nearest. Pixels outside the image are zero.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scan:
    """Geometry of the rays. Lengths in pixels from the centre of the image, angles in radians.

    At angle 0 rays run down the image and the detector axis points right; positive angles rotate that axis from right
    to up. In a fan, all rays of a view start at one point and end on a straight detector.

    turns               angle of each view
    detectors, spacing  number of cells and the distance of their centres, projected onto the axis of rotation; negative
                        where cells are counted against the detector axis
    source              distance of the source from the axis of rotation; infinite where rays are parallel
    step                angle from each view to the next; None where views are not evenly spaced
    shift               of the middle of the detector from the central ray, in cells
    aside               of the axis of rotation from the central ray, in cells
    pivot               the axis of rotation, right of and below the centre of the image
    steps               along each ray, by one pixel: the first, from the foot of the perpendicular of the axis of
                        rotation, and their number; None: from row to row, or from column to column
    """

    turns: tuple[float, ...]
    detectors: int
    spacing: float
    source: float = math.inf
    step: float | None = None
    shift: float = 0.0
    aside: float = 0.0
    pivot: tuple[float, float] = (0.0, 0.0)
    steps: tuple[float, int] | None = None

    @property
    def views(self) -> int:
        return len(self.turns)

    def angles(self) -> Tensor:
        """Angle of each view, float64 (views,)."""
        return torch.tensor(self.turns, dtype=torch.float64)

    def cells(self) -> Tensor:
        """Distance of the ray of each cell from the central ray, at the axis of rotation, float64 (detectors,)."""
        middle = (self.detectors - 1) / 2 - self.shift
        return self.spacing * (torch.arange(self.detectors, dtype=torch.float64) - middle)

    def rays(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """A point on every ray and its unit direction, (views, detectors, 2) with x right and y down."""
        axis = torch.stack([angles.cos(), -angles.sin()], -1)[:, None]
        down = torch.stack([angles.sin(), angles.cos()], -1)[:, None]
        cells = self.cells()[:, None]
        # The angle of a ray against the central one of its view, zero where rays are parallel.
        fan = torch.atan(cells / self.source)
        point = (cells - self.spacing * self.aside) * axis + torch.tensor(self.pivot, dtype=torch.float64)
        return point, fan.cos() * down + fan.sin() * axis


def evenly(views: int, first: float, step: float) -> tuple[float, ...]:
    """Angles of evenly spaced views."""
    return tuple((first + step * torch.arange(views, dtype=torch.float64)).tolist())


@dataclass(frozen=True, eq=False)
class SystemMatrix:
    """A, (views * detectors, H * W), and its transpose, both in compressed rows, which is fast for both products."""

    matrix: Tensor
    transpose: Tensor

    def project(self, images: Tensor) -> Tensor:
        """A times each row, (K, H * W) -> (K, views * detectors), differentiable."""
        return _Product.apply(self.matrix, self.transpose, images.T.contiguous()).T

    def backproject(self, rays: Tensor) -> Tensor:
        """A^T times each row, (K, views * detectors) -> (K, H * W), differentiable."""
        return _Product.apply(self.transpose, self.matrix, rays.T.contiguous()).T


# A large matrix, determined by its arguments: copies of an operator share it, and it is freed with the last of them.
_alive: "WeakValueDictionary[tuple, SystemMatrix]" = WeakValueDictionary()


def system_matrix(scan: Scan, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> SystemMatrix:
    """The line integrals of images of (H, W), lengths in pixels; rays are ordered view by view.

    About 8 bytes per entry and matrix in float32: 128x128 with 60 views takes 28 MB and 0.3 s to build, 256x256 with
    180 views 340 MB and 5 s.
    """
    key = (scan, size, dtype, device)
    found = _alive.get(key)
    if found is None:
        with torch.inference_mode(False):  # kept tensors must serve a later call that differentiates
            found = _alive[key] = _build(scan, size, dtype, device)
    return found


def _build(scan: Scan, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> SystemMatrix:
    # A few views at a time, for intermediate results are several times larger than the matrix.
    chunk = max(1, 200_000 // (scan.detectors * max(size)))
    weigh = _joseph if scan.steps is None else _bilinear
    parts = [weigh(scan, angles, size, dtype) for angles in scan.angles().split(chunk)]
    counts, columns, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    del parts
    shape = len(counts), size[0] * size[1]
    forward = _compressed(counts, columns, weights, shape, device)
    rows = torch.repeat_interleave(torch.arange(shape[0], dtype=torch.int32), counts)
    columns, order = torch.sort(columns, stable=True)
    counts = torch.bincount(columns, minlength=shape[1])
    return SystemMatrix(forward, _compressed(counts, rows[order], weights[order], shape[::-1], device))


def _joseph(scan: Scan, angles: Tensor, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of the rays of these views: the number for each ray, their indices (int32) and weights (dtype)."""
    point, direction = (t.reshape(-1, 2) for t in scan.rays(angles))
    height, width = size
    down = direction[:, 1].abs() >= direction[:, 0].abs()  # rays that step through rows; others step through columns

    def choose(if_down: Any, otherwise: Any) -> Tensor:
        return torch.where(down, if_down, otherwise)[:, None]

    along, across = choose(direction[:, 1], direction[:, 0]), choose(direction[:, 0], direction[:, 1])
    start_along, start_across = choose(point[:, 1], point[:, 0]), choose(point[:, 0], point[:, 1])
    steps, lanes = choose(height, width), choose(width, height)
    step_stride, lane_stride = choose(width, 1), choose(1, width)

    step = torch.arange(max(size))
    position = start_across + (step - (steps - 1) / 2 - start_along) * across / along + (lanes - 1) / 2
    lane = position.floor()
    above = position - lane
    lane = (lane.long()[..., None] + torch.arange(2)).int()
    weight = torch.stack([1 - above, above], -1) / along.abs()[..., None]
    inside = (step < steps)[..., None] & (lane >= 0) & (lane < lanes[..., None]) & (weight > 0)
    pixel = (step * step_stride).int()[..., None] + lane * lane_stride.int()[..., None]
    kept = inside.flatten().nonzero().squeeze(1)
    return inside.flatten(1).sum(1), pixel.flatten()[kept], weight.flatten()[kept].to(dtype)


def _bilinear(scan: Scan, angles: Tensor, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As `_joseph`, of rays that step along themselves."""
    assert scan.steps is not None
    point, direction = (t.reshape(-1, 1, 2) for t in scan.rays(angles))
    first, count = scan.steps
    height, width = size
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    place = point + (first + torch.arange(count, dtype=torch.float64))[:, None] * direction + middle
    low = place.floor()
    above = place - low
    column, row = (
        low[..., axis, None].long() + torch.tensor(far) for axis, far in ((0, [0, 1, 0, 1]), (1, [0, 0, 1, 1]))
    )
    across, down = (torch.stack([1 - above[..., axis], above[..., axis]], -1) for axis in (0, 1))
    weight = across[..., [0, 1, 0, 1]] * down[..., [0, 0, 1, 1]]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (weight > 0)
    # Neighbouring steps share pixels: one entry for each.
    key = torch.arange(len(point)).reshape(-1, 1, 1) * (height * width) + row * width + column
    entry, place_of = key[inside].unique(return_inverse=True)
    weights = torch.zeros(len(entry), dtype=torch.float64).index_add_(0, place_of, weight[inside])
    counts = torch.bincount(entry // (height * width), minlength=len(point))
    return counts, (entry % (height * width)).int(), weights.to(dtype)


def _compressed(
    counts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """A sparse matrix from entries listed row by row. Indices are int32, as MKL and cuSPARSE require."""
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False).to(device)


class _Product(torch.autograd.Function):
    """matrix @ columns, with the product with the transpose as its derivative, to any order."""

    @staticmethod
    def forward(matrix: Tensor, transpose: Tensor, columns: Tensor) -> Tensor:
        return matrix @ columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.matrix, ctx.transpose, _ = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _Product.apply(ctx.transpose, ctx.matrix, gradient)
