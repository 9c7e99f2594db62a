"""Impulse noise, salt and pepper: some entries are replaced by the lowest or the highest value.

Model   y = v + sigma n, where v is A x, or with probability `fraction` an impulse, `low` or `high` alike. The density
        is (1 - fraction) N(y; A x, sigma^2) + fraction / 2 (N(y; low, sigma^2) + N(y; high, sigma^2)); that impulses
        carry the Gaussian too makes it a density.

The gradient of an entry of y vanishes where it is most likely an impulse, and is that of Gaussian noise elsewhere.
"""

import math

import torch
from torch import Tensor

from .base import Noise, as_level


class ImpulseNoise(Noise):
    """Salt and pepper on top of Gaussian noise.

    fraction   probability that an entry is an impulse, in (0, 1), a number or one per image, (B,)
    sigma      standard deviation of the Gaussian, in the units of the measurement, a number or one per image, (B,)
    low, high  values of the impulses, in the units of the measurement
    """

    per_image = ("fraction", "sigma")
    complex_valued = False
    fraction: Tensor
    sigma: Tensor

    def __init__(
        self, fraction: float | Tensor = 0.1, sigma: float | Tensor = 0.02, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__()
        level = as_level("impulse noise: fraction", fraction, "the probability of an impulse")
        if not (level < 1).all():
            raise ValueError(f"impulse noise: fraction, the probability of an impulse, must be < 1, got {fraction}")
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"impulse noise: low must be < high, the values of the impulses, got {low} and {high}")
        self.register_buffer("fraction", level)
        self.register_buffer("sigma", as_level("impulse noise: sigma", sigma))
        self.low, self.high = float(low), float(high)

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        lot = torch.rand(clean.shape, generator=generator, dtype=clean.dtype)
        fraction = self.fraction.reshape(()).to(clean)
        value = torch.where(lot < fraction / 2, self.low, torch.where(lot < fraction, self.high, clean))
        return value + self.sigma.reshape(()).to(clean) * torch.randn(
            clean.shape, generator=generator, dtype=clean.dtype
        )

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        fraction, width = self.level("fraction", clean), 2 * self.level("sigma", clean) ** 2
        impulse = torch.logaddexp(-((y - self.low) ** 2) / width, -((y - self.high) ** 2) / width)
        return -torch.logaddexp(torch.log1p(-fraction) - (y - clean) ** 2 / width, torch.log(fraction / 2) + impulse)

    def variance(self, clean: Tensor) -> Tensor:
        jump = ((clean - self.low) ** 2 + (clean - self.high) ** 2) / 2
        return self.level("sigma", clean) ** 2 + self.level("fraction", clean) * jump
