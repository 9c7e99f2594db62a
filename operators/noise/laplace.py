"""Laplace noise: errors with heavy tails.

Model   y = A x + scale n with p(n) = exp(-|n|) / 2. The negative log-likelihood is an absolute error, whose gradient
        is bounded: outliers have no more influence than small residuals.
"""

import torch
from torch import Tensor

from .base import Noise, as_level


class LaplaceNoise(Noise):
    """Laplace-distributed errors.

    scale  mean absolute error, in the units of the measurement, a number or one per image, (B,); the standard deviation
           is sqrt(2) times that
    """

    per_image = ("scale",)
    complex_valued = False
    scale: Tensor

    def __init__(self, scale: float | Tensor = 0.05) -> None:
        super().__init__()
        self.register_buffer("scale", as_level("laplace noise: scale", scale))

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        # The difference of two exponentials; the logarithm of a uniform number may be infinite.
        up, down = (torch.empty_like(clean).exponential_(generator=generator) for _ in range(2))
        return clean + self.scale.reshape(()).to(clean) * (up - down)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        return (y - clean).abs() / self.level("scale", clean)

    def variance(self, clean: Tensor) -> Tensor:
        return 2 * self.level("scale", clean) ** 2
