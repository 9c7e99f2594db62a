"""Computed tomography by counting photons: what gets through the object is measured, not yet its logarithm.

Model   A(x) = exp(-t), t the line integrals of `ct.py`: the fraction of photons that the object lets through
        (Beer-Lambert). With `PoissonNoise(gain=1 / photons)`, `photons` on every ray, the likelihood is that of a
        photon-counting detector, dark rays included, where the logarithm of the data would be infinite.
Shapes  x (B, C, H, W), 1 attenuates by `attenuation` per image side -> y (B, C, detectors, views), 1 where nothing is
        in the way.
"""

import math

import torch
from torch import Tensor

from ..core.base import Operator, Variants
from .ct import CT

# Below this line integral, which no image of positive values has, the exponential goes on as its tangent: iterates of
# samplers are negative here and there, and the exponential of a large number would leave the range of float32.
LEAST = -1.0


class CTTransmission(Operator):
    """Transmitted fraction of X-rays through a slice.

    attenuation  line integral through a whole image side of ones; a ray then keeps exp(-attenuation) of its photons

    The others are those of `CT`.
    """

    def __init__(
        self,
        *,
        attenuation: float = 4.0,
        views: int = 60,
        geometry: str = "parallel",
        angle_range: float | tuple[float, float] | None = None,
        detectors: int | None = None,
        detector_spacing: float | None = None,
        source_distance: float = 2.0,
        detector_distance: float = 2.0,
        size: tuple[int, int] | None = None,
        filter: str = "ram-lak",
    ) -> None:
        super().__init__()
        if not 0 < attenuation < math.inf:
            raise ValueError(f"ct_transmission: attenuation must be positive, a line integral, got {attenuation}")
        self.attenuation = attenuation
        self.ct = CT(
            views=views,
            geometry=geometry,
            angle_range=angle_range,
            detectors=detectors,
            detector_spacing=detector_spacing,
            source_distance=source_distance,
            detector_distance=detector_distance,
            size=size,
            filter=filter,
        )

    def _per_pixel(self, size: tuple[int, ...]) -> float:
        return self.attenuation / max(size)

    def forward(self, x: Tensor) -> Tensor:
        t = self._per_pixel(x.shape[-2:]) * self.ct(x)
        safe = t.clamp(min=LEAST)
        return torch.exp(-safe) - math.exp(-LEAST) * (t - safe)

    def first_guess(self, y: Tensor) -> Tensor:
        """Filtered back-projection of -log y. Where nothing got through, half of the smallest y of the image that did
        is taken, half a count; and never less than an image of ones would let through, for noise that goes below."""
        _, height, width = self.image_shape(tuple(y.shape[1:]))
        scale = self._per_pixel((height, width))
        darkest = math.exp(-scale * math.hypot(height, width))
        least = torch.where(y > 0, y, 1).flatten(1).amin(1) / 2
        floor = least.clamp(min=darkest).reshape(-1, 1, 1, 1)
        return self.ct.first_guess(-torch.maximum(y, floor).log()) / scale

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.ct.measurement_shape(image_shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, int, int]:
        return self.ct.image_shape(measurement_shape)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return self.ct.mismatch(shape)

    @classmethod
    def example(cls) -> tuple["CTTransmission", tuple[int, ...]]:
        return cls(views=12), (1, 12, 12)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "fan": (cls(views=9, geometry="fan", size=(7, 9), attenuation=2.0), (1, 7, 9)),
        }
