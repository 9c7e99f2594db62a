"""Nonlinear blur: light is averaged along the path of a shaken camera, and the camera's response is not linear.

Model   A x = r(s(exposure k * g(x))): g turns display values into light, k averages the light over the path (the
        same law as `MotionBlur`), s is the saturation of the sensor, r = g^-1 the response of the camera.
Shapes  x (B, C, H, W), display values in [0, 1] -> y (B, C, H, W), display values.
Spec    Takes the place of the nonlinear deblurring of DPS and DAPS, y = F(x, code) with a network F trained on GOPRO.
        Its weights are not used: they are a file on a shared drive, not in any package, and fix the size of the image;
        and DPS draws another code at each call, so that what is inverted is not what was measured. This is the physics
        that such a network learns, sharp frames averaged in linear light. Figures do not compare with published ones.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core.base import SameShape, Variants
from ..core.separable import BOUNDARIES
from .blur import convolve
from .motion_blur import motion_kernels


class NonlinearBlur(SameShape):
    """Motion blur in linear light, seen through a camera response.

    intensity    how crooked the path of the camera is, 0 to 1
    kernel_size  taps, odd
    boundary     what lies outside the image: `reflect`, `symmetric`, `replicate`, `circular`, `zero`
    exposure     gain of the light; 1 keeps the brightness
    shoulder     how gradually the sensor saturates at light 1, as the width of the bend; 0: it does not saturate
    gamma        exponent of the response: light = value^gamma, but for the toe
    toe          display value below which the response is a straight line, in (0, 1)
    seed         which path

    Curves continue as straight lines below 0 and above 1, so that samplers may leave the range of images. Gradients are
    continuous everywhere. `NonlinearBlur.random(images=B, seed=...)` draws another path for every image.
    """

    per_image = ("kernel",)
    kernel: Tensor

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
        if boundary not in BOUNDARIES:
            raise ValueError(f"nonlinear_blur: boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        if not exposure > 0:
            raise ValueError(f"nonlinear_blur: exposure is a gain and must be positive, got {exposure}")
        if not shoulder >= 0:
            raise ValueError(f"nonlinear_blur: shoulder is a width in light, 0 or more, got {shoulder}")
        if not gamma >= 1:
            raise ValueError(f"nonlinear_blur: gamma must be at least 1, got {gamma}")
        if not 0 < toe < 1:
            raise ValueError(f"nonlinear_blur: toe is a display value between 0 and 1, got {toe}")
        self.register_buffer("kernel", motion_kernels(intensity, kernel_size, seed))
        self.boundary, self.exposure, self.shoulder, self.gamma, self.toe = boundary, exposure, shoulder, gamma, toe

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
        """A different path for each of `images` images; the first is that of the same seed without `random`."""
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
        operator.kernel = motion_kernels(intensity, kernel_size, seed, images)
        return operator

    def forward(self, x: Tensor) -> Tensor:
        light = self.exposure * convolve(self.light(x), self.kernel, self.boundary)
        return self.display(self.saturate(light))

    # The power curve is moved so that it leaves the straight toe with the same slope:
    # light = ((x + a) / (1 + a))^gamma from x = toe to 1, with a = (gamma - 1) toe. Beyond both ends the tangents go
    # on; `where` and not `clamp`, whose slope at its very ends, black and white pixels, is zero.

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
        """Light as the sensor counts it: a smooth minimum of it and 1."""
        if self.shoulder == 0:
            return light
        return 1 - self.shoulder * softplus((1 - light) / self.shoulder)

    def first_guess(self, y: Tensor) -> Tensor:
        return y

    @classmethod
    def example(cls) -> tuple["NonlinearBlur", tuple[int, ...]]:
        return cls(kernel_size=9, exposure=1.5, shoulder=0.1), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "unsaturated": (cls(kernel_size=5, boundary="circular"), (3, 8, 9)),
            "per-image": (cls.random(images=3, seed=1, kernel_size=7), (1, 8, 9)),
        }
