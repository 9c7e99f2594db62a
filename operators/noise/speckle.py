"""Speckle: multiplicative noise of coherent imaging (radar, ultrasound, holography), after averaging several looks.

Model   y = g A x, with g a Gamma variable of shape `looks` and mean one. y are intensities: E y = A x and
        Var y = (A x)^2 / looks.
"""

import math

import torch
from torch import Tensor

from .base import Noise, as_level, negative


class SpeckleNoise(Noise):
    """Gamma-distributed intensities.

    looks  number of averaged intensities, > 0, a number or one per image, (B,); 1 is fully developed speckle
    floor  the darkest intensity, in the units of the measurement; lower values are drawn and scored as `floor`, for a
           black pixel has no speckle and an unbounded likelihood

    Below y / 20, too far below y to be its mean, and below `floor` where y is brighter, the negative log-likelihood
    continues as its tangent, so that its gradient returns samplers to the positive range.
    """

    per_image = ("looks",)
    complex_valued = False
    looks: Tensor

    def __init__(self, looks: float | Tensor = 4.0, floor: float = 0.02) -> None:
        super().__init__()
        if not 0 < floor < math.inf:
            raise ValueError(f"speckle noise: floor, the darkest intensity, must be > 0, got {floor}")
        self.floor = float(floor)
        self.register_buffer("looks", as_level("speckle noise: looks", looks, "the number of intensities averaged"))

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        looks = self.looks.reshape(()).to(clean)
        gamma = torch._standard_gamma(looks.expand(clean.shape).contiguous(), generator=generator)
        return clean.clamp(min=self.floor) * gamma / looks

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        start = (y / 20).clamp(min=self.floor)
        safe = torch.maximum(clean, start)
        slope = 1 / start - y / start**2
        # A tangent that falls towards darker images would reward negative values without bound.
        tail = torch.where(slope < 0, slope * (clean - safe), 0)
        return self.level("looks", clean) * (safe.log() + y / safe + tail)

    def variance(self, clean: Tensor) -> Tensor:
        return clean.clamp(min=self.floor) ** 2 / self.level("looks", clean)

    def entry_misfit(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        return super().entry_misfit(y, clean.clamp(min=self.floor))  # about the mean of the draws

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        return super().mismatch(y, observed) or negative("intensities with speckle", y, observed)
