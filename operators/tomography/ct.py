"""Computed tomography: line integrals of the image from many directions.

Model   A x = integrals of x along the rays of a scanner. Exact adjoint: the transposed matrix.
Shapes  x (B, C, H, W), in 1/length -> y (B, C, detectors, views), dimensionless where `pixel_size` has that length; in
        pixels by default, so that a ray through n pixels of ones measures n. A view is a column of the sinogram.
Spec    Joseph's weights, `projection.py`. Angles, orientation, layout and scale are those of
        `deepinv.physics.Tomography(normalize=False)` where image and default detector are both even or both odd
        (otherwise deepinv rotates the image about a point half a pixel off its centre).

`first_guess` is the filtered back-projection (`filtered_backprojection.py`), which the field calls pseudo-inverse;
`pinv` is the Moore-Penrose inverse, by conjugate gradients, and amplifies noise accordingly.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from invdiff.files import read_array
from invdiff.shapes import describe_shape

from ..core.base import LinearOperator, Variants
from .filtered_backprojection import FILTERS, filtered_backprojection
from .projection import Scan, SystemMatrix, evenly, system_matrix

GEOMETRIES = ("parallel", "fan")
CONVENTIONS = ("invdiff", "skimage", "deepinv", "astra")

# What a fan of other libraries is turned by against ours, degrees; its cells then run the other way.
TURNED = {"invdiff": 0.0, "deepinv": 90.0, "astra": 180.0}

Angles = str | Path | Sequence[float] | np.ndarray | Tensor


class CT(LinearOperator):
    """X-ray projections of a slice.

    views              number of views; None: that of `angles`, else 60
    geometry           `parallel`, or `fan`: a point source opposite to a straight detector
    angle_range        range of the evenly spaced views in degrees, the end excluded: [start, stop] or only the stop;
                       None: 180 for parallel beams, 360 for a fan. Less (limited angle) leaves lines unmeasured
    angles             instead: the angle of every view in degrees, in any order: numbers, or a file (`invdiff.files`)
    convention         whose sinogram this is, see above: `invdiff`, `skimage`, `deepinv`, `astra`
    centre             cells by which the axis of rotation lies beyond the middle of the detector (tomopy's center, less
                       half of detectors - 1). `convention` adds its own half cell
    detector_offset    cells by which the detector is pushed along itself: for parallel beams the same as -centre. In a
                       fan, `centre` moves the axis out of the central ray, `detector_offset` moves the cells
    detectors          cells of the detector; None: enough to cover the diagonal of the image
    detector_spacing   distance between cells, in pixels; None: one pixel, magnified onto the detector
    source_distance    fan: from the source to the axis of rotation, the centre of the image, in image sides
    detector_distance  fan: from the axis of rotation to the detector, in image sides
    pixel_size         side of a pixel, in the unit of length
    size               (H, W) of the images; None: square, with the side that follows from the number of detectors
    filter             of the filtered back-projection: `ram-lak`, or `hann` for less noise and less detail

    The image side is the longer one.
    """

    def __init__(
        self,
        *,
        views: int | None = None,
        geometry: str = "parallel",
        angle_range: float | tuple[float, float] | None = None,
        angles: Angles | None = None,
        convention: str = "invdiff",
        centre: float = 0.0,
        detector_offset: float = 0.0,
        detectors: int | None = None,
        detector_spacing: float | None = None,
        source_distance: float = 2.0,
        detector_distance: float = 2.0,
        pixel_size: float = 1.0,
        size: tuple[int, int] | None = None,
        filter: str = "ram-lak",
    ) -> None:
        super().__init__()
        if views is not None and not _is_count(views):
            raise ValueError(f"ct: views must be an integer >= 1, got {views}")
        if geometry not in GEOMETRIES:
            raise ValueError(f"ct: geometry must be one of {', '.join(GEOMETRIES)}, got {geometry!r}")
        if convention not in CONVENTIONS:
            raise ValueError(f"ct: convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
        if convention == "skimage" and geometry == "fan":
            raise ValueError("ct: convention=skimage is for parallel beams, got geometry='fan'")
        if detectors is not None and not _is_count(detectors):
            raise ValueError(f"ct: detectors must be an integer >= 1, got {detectors}")
        if size is not None and not (len(size) == 2 and all(_is_count(n) for n in size)):
            raise ValueError(f"ct: size must be [height, width] of the image in pixels, got {size}")
        for name, value in (("detector_spacing", detector_spacing), ("pixel_size", pixel_size)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"ct: {name} must be > 0, got {value}")
        for name, value in (("centre", centre), ("detector_offset", detector_offset)):
            if not math.isfinite(value):
                raise ValueError(f"ct: {name}, in cells from the middle of the detector, must be finite, got {value}")
        # The image rotates between source and detector: both must lie outside the circle through its corners.
        for name, value in (("source_distance", source_distance), ("detector_distance", detector_distance)):
            if not math.sqrt(0.5) < value < math.inf:
                raise ValueError(f"ct: {name} must be > 0.71 image sides, outside the rotating image, got {value}")
        if size is None and (detectors is not None or detector_spacing is not None):
            given = "detectors" if detectors is not None else "detector_spacing"
            raise ValueError(f"ct: {given} requires size=[height, width], which y then does not determine")
        if filter not in FILTERS:
            raise ValueError(f"ct: filter must be one of {', '.join(FILTERS)}, got {filter!r}")
        if angles is not None and angle_range is not None:
            raise ValueError("ct: give angle_range, for evenly spaced views, or angles, got both")
        self.geometry, self.convention, self.filter = geometry, convention, filter
        self.centre, self.detector_offset = float(centre), float(detector_offset)
        self.angle_range = _range(angle_range, 180.0 if geometry == "parallel" else 360.0)
        self.angles = None if angles is None else as_angles(angles)
        if self.angles is not None and views not in (None, len(self.angles)):
            raise ValueError(f"ct: views must be the number of angles, {len(self.angles)}, got {views}; leave it out")
        self.views = len(self.angles) if self.angles is not None else 60 if views is None else views
        self.detectors, self.detector_spacing, self.pixel_size = detectors, detector_spacing, pixel_size
        self.source_distance, self.detector_distance = source_distance, detector_distance
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self._matrices: dict[tuple, SystemMatrix] = {}  # a function of size, dtype and device; kept for speed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_matrices": {}}  # large, and quickly recomputed

    def scan(self, size: tuple[int, int]) -> Scan:
        """The rays through images of (H, W)."""
        fan = self.geometry == "fan"
        source = self.source_distance * max(size) if fan else math.inf
        spacing = 1.0
        if self.detector_spacing is not None:
            spacing = self.detector_spacing / (1 + self.detector_distance / self.source_distance if fan else 1)
        detectors = self.detectors
        if detectors is None and self.convention == "skimage":
            detectors = max(size)
        elif detectors is None:
            detectors = math.ceil(_shadow(math.hypot(*size), source) / spacing)
        turns, step = self._turns(TURNED[self.convention] if fan else 0.0)
        pivot, aside, steps = (0.0, 0.0), self.centre, None
        if self.convention == "skimage":
            pivot, aside = (_beyond(size[1]), _beyond(size[0])), self.centre + _beyond(detectors)
            steps = -float(detectors // 2), detectors
        elif self.convention == "deepinv":
            padded = math.ceil(math.sqrt(2) * max(size)) if fan else detectors
            pivot = (_beyond(size[1]) - _beyond(padded), _beyond(size[0]) - _beyond(padded))
            steps = None if fan else ((1 - detectors) / 2, detectors)
        return Scan(
            turns,
            detectors,
            -spacing if fan and self.convention != "invdiff" else spacing,
            source,
            step,
            self.detector_offset,
            aside,
            pivot,
            steps,
        )

    def _turns(self, turned: float) -> tuple[tuple[float, ...], float | None]:
        """Angles of the views in radians, and that between neighbours, in whatever order; None where it differs."""
        if self.angles is None:
            start, stop = (math.radians(angle) for angle in self.angle_range)
            step = (stop - start) / self.views
            return evenly(self.views, start + math.radians(turned), step), step
        turns = tuple(math.radians(angle + turned) for angle in self.angles)
        steps = np.diff(np.sort(turns))
        even = len(steps) > 0 and steps[0] != 0 and np.abs(steps - steps[0]).max() < 1e-3 * steps[0]
        return turns, float(steps.mean()) if even else None

    def _matrix(self, size: tuple[int, int], like: Tensor) -> SystemMatrix:
        key = (size, like.dtype, like.device)
        if key not in self._matrices:
            self._matrices[key] = system_matrix(self.scan(size), *key)
        return self._matrices[key]

    def forward(self, x: Tensor) -> Tensor:
        reason = self.mismatch(tuple(x.shape[1:]))
        if reason is not None:
            raise ValueError(reason)
        size = (x.shape[-2], x.shape[-1])
        y = self._matrix(size, x).project(x.flatten(0, 1).flatten(1))
        return self.pixel_size * self._laid_out(y.reshape(*x.shape[:2], self.views, -1)).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        size = self._image_size(y)
        x = self._matrix(size, y).backproject(self._laid_out(y).flatten(0, 1).flatten(1))
        return self.pixel_size * x.reshape(*y.shape[:2], *size).contiguous()

    def first_guess(self, y: Tensor) -> Tensor:
        """Filtered back-projection."""
        size = self._image_size(y)
        views = self._laid_out(y)
        return filtered_backprojection(views.mT, self.scan(size), size, self.filter) / self.pixel_size

    def _laid_out(self, y: Tensor) -> Tensor:
        """Views x detectors as a sinogram of this convention, and back."""
        return y if self.convention == "astra" else y.mT

    def _image_size(self, y: Tensor) -> tuple[int, int]:
        _, height, width = self.image_shape(tuple(y.shape[1:]))
        return height, width

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = image_shape
        detectors = self.scan((height, width)).detectors
        return (channels, self.views, detectors) if self.convention == "astra" else (channels, detectors, self.views)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, int, int]:
        rows = self.convention == "astra"  # a view is one
        if len(measurement_shape) != 3 or measurement_shape[1 if rows else 2] != self.views:
            axes = f"{self.views} views x detectors" if rows else f"detectors x {self.views} views"
            raise ValueError(f"ct: a measurement must be channels x {axes}, got {describe_shape(measurement_shape)}")
        channels, detectors = measurement_shape[0], measurement_shape[2 if rows else 1]
        if self.size is not None:
            side = self.size
            wanted = self.scan(side).detectors
            if wanted != detectors:
                raise ValueError(f"ct: images of {describe_shape(side)} require {wanted} detectors, got {detectors}")
            return channels, *side
        # Each further pixel needs at least one further detector, so that only one side fits.
        guess = round(detectors / self.scan((10**6, 10**6)).detectors * 10**6)
        for n in range(max(1, guess - 2), guess + 3):
            if self.scan((n, n)).detectors == detectors:
                return channels, n, n
        raise ValueError(f"ct: no square image has {detectors} detectors by default; set size=[height, width]")

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 3:
            return f"ct: an image must be (C, H, W), got {describe_shape(shape)}"
        _, height, width = shape
        if self.size is not None and (height, width) != self.size:
            return f"ct: size is {describe_shape(self.size)}, the image {describe_shape(shape[1:])}"
        if self.size is None and height != width:
            return f"ct: an image must be square unless size is set, got {height}x{width}; set size=[{height}, {width}]"
        return None

    @classmethod
    def example(cls) -> tuple["CT", tuple[int, ...]]:
        return cls(views=12), (1, 12, 12)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "fan": (cls(views=15, geometry="fan", filter="hann"), (3, 8, 8)),
            "limited-angle": (cls(views=9, angle_range=(20.0, 100.0)), (1, 7, 7)),
            "skimage": (cls(views=9, convention="skimage"), (1, 8, 8)),
            "astra-fan": (cls(views=11, geometry="fan", convention="astra", centre=0.7), (1, 7, 7)),
            "uneven": (cls(angles=[0, 100, 13, 40, 71, 133, 166], centre=-0.3, detector_offset=0.5), (1, 7, 7)),
            "rectangle": (cls(views=8, size=(7, 10), detectors=9, detector_spacing=1.5, pixel_size=0.5), (1, 7, 10)),
        }


def _shadow(diameter: float, source: float) -> float:
    """Width of the shadow of a disk at the axis of rotation on the detector axis there."""
    return diameter if source == math.inf else diameter / math.sqrt(1 - (diameter / 2 / source) ** 2)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _beyond(cells: int) -> float:
    """From the middle of an axis to its entry n // 2: 1/2 for even n, 0 for odd n."""
    return cells // 2 - (cells - 1) / 2


def as_angles(angles: Angles) -> tuple[float, ...]:
    """The angles of views in degrees, of numbers or a file. Raises ValueError where they are not finite numbers."""
    if isinstance(angles, (str, Path)):
        angles = read_array(angles, "ct: angles", "angles")
    try:
        values = np.asarray(angles, dtype=np.float64).squeeze()
    except (TypeError, ValueError) as error:
        raise ValueError(f"ct: angles must be degrees, one per view, got {angles!r}") from error
    values = values.reshape(1) if values.ndim == 0 else values
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"ct: angles must be finite degrees, one per view, got {describe_shape(values.shape)} of them")
    return tuple(values.tolist())


def _range(angle_range: float | tuple[float, float] | None, default: float) -> tuple[float, float]:
    """(start, stop) in degrees."""
    value = default if angle_range is None else angle_range
    both = (0.0, value) if isinstance(value, (int, float)) else tuple(value)
    if len(both) != 2 or not all(isinstance(a, (int, float)) and math.isfinite(a) for a in both) or both[0] == both[1]:
        raise ValueError(
            f"ct: angle_range must be degrees other than 0, or [start, stop] with start != stop, got {angle_range}"
        )
    return float(both[0]), float(both[1])
