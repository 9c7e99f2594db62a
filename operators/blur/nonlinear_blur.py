"""Nonlinear blur: light averaged along the path of a shaken camera, then a nonlinear camera response.

Model   A x = r(s(exposure k * g(x))): g turns display values into light, k averages the light over the path (the
        same law as `MotionBlur`), s is the saturation of the sensor, r = g^-1 the response of the camera.
Shapes  x (B, C, H, W), display values in [0, 1] -> y (B, C, H, W), display values.
Spec    Replaces the nonlinear deblurring of DPS and DAPS, y = F(x, code) with a network F trained on GOPRO: its weights
        are in no package and fix the image size, and DPS draws a new code at each call, so that the inverted operator
        differs from the measured one. The network learned from sharp frames averaged in linear light, which is the
        model here. Scores are not comparable with published ones.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core.base import Drawn, Variants
from ..core.separable import BLUR_BOUNDARIES
from .blur import FramedBlur, convolve, trimmed
from .motion_blur import motion_kernels


class NonlinearBlur(FramedBlur):
    """Motion blur in linear light, seen through a camera response.

    intensity    curvature of the path of the camera, 0 to 1
    kernel_size  taps, odd
    boundary     `reflect`, `symmetric`, `replicate`, `circular`, `zero` or `valid`, as in `Blur`
    exposure     gain of the light; 1 keeps the brightness
    shoulder     width of the transition to saturation at light 1; 0: no saturation
    gamma        exponent of the response: light = value^gamma above the toe
    toe          display value below which the response is linear, in (0, 1)
    seed         determines the path, for all images

    Response curves continue linearly below 0 and above 1, so that samplers may leave the range of images. Gradients are
    continuous everywhere. `NonlinearBlur.random(images=B, seed=...)` draws one path per image.
    """

    per_image = ("kernel",)

    def __init__(
        self,
        *,
        intensity: float = 0.5,
        kernel_size: int = 61,
        boundary: str = "reflect",
        exposure: float = 1.0,
        shoulder: float = 0.0,
        gamma: float = 2.2,
        toe: float = 0.04,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if boundary not in BLUR_BOUNDARIES:
            raise ValueError(f"nonlinear_blur: boundary must be one of {', '.join(BLUR_BOUNDARIES)}, got {boundary!r}")
        if not exposure > 0:
            raise ValueError(f"nonlinear_blur: exposure must be > 0, got {exposure}")
        if not shoulder >= 0:
            raise ValueError(f"nonlinear_blur: shoulder must be >= 0, got {shoulder}")
        if not gamma >= 1:
            raise ValueError(f"nonlinear_blur: gamma must be >= 1, got {gamma}")
        if not 0 < toe < 1:
            raise ValueError(f"nonlinear_blur: toe must be a display value in (0, 1), got {toe}")
        taps = motion_kernels(intensity, kernel_size, seed)
        self.register_buffer("kernel", trimmed(taps) if boundary == "valid" else taps)
        self.boundary, self.exposure, self.shoulder, self.gamma, self.toe = boundary, exposure, shoulder, gamma, toe

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"kernel": Drawn("")}

    @classmethod
    def random(
        cls,
        *,
        images: int,
        seed: int,
        intensity: float = 0.5,
        kernel_size: int = 61,
        boundary: str = "reflect",
        exposure: float = 1.0,
        shoulder: float = 0.0,
        gamma: float = 2.2,
        toe: float = 0.04,
    ) -> Self:
        """A different path for each of `images` images; the first is the path of the class with the same seed."""
        operator = cls(
            intensity=intensity,
            kernel_size=kernel_size,
            boundary=boundary,
            exposure=exposure,
            shoulder=shoulder,
            gamma=gamma,
            toe=toe,
            seed=seed,
        )
        taps = motion_kernels(intensity, kernel_size, seed, images)
        operator.kernel = trimmed(taps) if boundary == "valid" else taps
        return operator

    def forward(self, x: Tensor) -> Tensor:
        light = self.exposure * convolve(self.light(x), self.kernel, self.boundary)
        return self.display(self.saturate(light))

    # The power curve is shifted to join the linear toe with the same slope: light = ((x + a) / (1 + a))^gamma from
    # x = toe to 1, with a = (gamma - 1) toe. Tangents continue it on both sides; `where` and not `clamp`, whose slope
    # is zero at its ends, black and white pixels.

    def light(self, x: Tensor) -> Tensor:
        """Light of display values: 0 at 0, 1 at 1."""
        a = (self.gamma - 1) * self.toe
        inside = (x >= self.toe) & (x <= 1)
        power = ((torch.where(inside, x, 1) + a) / (1 + a)) ** self.gamma
        beyond = torch.where(x < self.toe, self._toe_slope() * x, 1 + self._end_slope() * (x - 1))
        return torch.where(inside, power, beyond)

    def display(self, light: Tensor) -> Tensor:
        """Display values of light, the inverse of `light`."""
        a = (self.gamma - 1) * self.toe
        low = self._toe_slope() * self.toe
        inside = (light >= low) & (light <= 1)
        power = (1 + a) * torch.where(inside, light, 1) ** (1 / self.gamma) - a
        beyond = torch.where(light < low, light / self._toe_slope(), 1 + (light - 1) / self._end_slope())
        return torch.where(inside, power, beyond)

    def _toe_slope(self) -> float:
        a = (self.gamma - 1) * self.toe
        return self.gamma / (1 + a) * (self.gamma * self.toe / (1 + a)) ** (self.gamma - 1)

    def _end_slope(self) -> float:
        return self.gamma / (1 + (self.gamma - 1) * self.toe)

    def saturate(self, light: Tensor) -> Tensor:
        """A smooth minimum of light and 1."""
        if self.shoulder == 0:
            return light
        return 1 - self.shoulder * softplus((1 - light) / self.shoulder)

    @classmethod
    def example(cls) -> tuple["NonlinearBlur", tuple[int, ...]]:
        return cls(kernel_size=9, exposure=1.5, shoulder=0.1), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "valid": (cls(kernel_size=5, boundary="valid"), (1, 8, 9)),
            "unsaturated": (cls(kernel_size=5, boundary="circular"), (3, 8, 9)),
            "per-image": (cls.random(images=3, seed=1, kernel_size=7), (1, 8, 9)),
        }
