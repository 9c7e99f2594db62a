"""Computed tomography by photon counting: transmitted fractions instead of line integrals.

Model   A(x) = exp(-t), t the line integrals of `ct.py`: the fraction of transmitted photons (Beer-Lambert). With
        `PoissonNoise(gain=1 / photons)`, `photons` on every ray, the likelihood is that of a photon-counting detector,
        rays without a count included, where the logarithm of the data is infinite.
Shapes  x (B, C, H, W), 1 attenuates by `attenuation` per image side -> y (B, C, detectors, views), 1 without object.
"""

import math

import torch
from torch import Tensor

from ..core.base import Operator, Variants
from .ct import CT, Angles

# Below this line integral, impossible for positive images, the exponential continues as its tangent: iterates of
# samplers may be negative, and the exponential would leave the range of float32.
LEAST = -1.0


class CTTransmission(Operator):
    """Transmitted fraction of X-rays through a slice.

    attenuation  line integral through an image side of ones; the ray then keeps exp(-attenuation) of its photons

    Other arguments as in `CT`.
    """

    def __init__(
        self,
        *,
        attenuation: float = 4.0,
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
        size: tuple[int, int] | None = None,
        filter: str = "ram-lak",
    ) -> None:
        super().__init__()
        if not 0 < attenuation < math.inf:
            raise ValueError(f"ct_transmission: attenuation, a line integral, must be > 0, got {attenuation}")
        self.attenuation = attenuation
        self.ct = CT(
            views=views,
            geometry=geometry,
            angle_range=angle_range,
            angles=angles,
            convention=convention,
            centre=centre,
            detector_offset=detector_offset,
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
        """Filtered back-projection of -log y.

        y is at least half of the smallest positive entry of the image, half a count, and at least the transmission of
        an image of ones, for noise may lower it further.
        """
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
