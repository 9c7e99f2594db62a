"""Quantisation after noise, as in an analogue-to-digital converter.

Model   y = Q(A x + sigma n); Q rounds to 2^bits levels from `low` to `high`, and values beyond to the outermost ones.
        y determines an interval, and P(y | A x) = Phi((end - A x) / sigma) - Phi((begin - A x) / sigma), exactly.
Paper   Zymnis, Boyd & Candes, Compressed sensing with quantized measurements, IEEE SPL 2010.

With one bit, low = -1 and high = 1, y is the sign, and a linear operator with this noise is one-bit compressed sensing.
Only the noise then carries information on the norm of A x: the smaller sigma, the less.
"""

import math

import torch
from torch import Tensor

from invdiff.shapes import per_row

from ..camera.quantisation import check_bits
from .base import Noise, as_level, masked


class QuantisationNoise(Noise):
    """Gaussian noise, then rounding.

    bits       an integer, 1 to 8
    sigma      standard deviation before rounding, in the units of the measurement, a number or one per image, (B,)
    low, high  the outermost levels, in the units of the measurement
    """

    per_image = ("sigma",)
    complex_valued = False
    sigma: Tensor

    def __init__(self, bits: int = 3, sigma: float | Tensor = 0.05, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.bits = check_bits("quantisation noise", bits)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"quantisation noise: low must be < high, the outermost levels, got {low} and {high}")
        self.low, self.high = float(low), float(high)
        self.register_buffer("sigma", as_level("quantisation noise: sigma", sigma))

    @property
    def steps(self) -> int:
        """Steps from the lowest level to the highest."""
        return 2**self.bits - 1

    @property
    def step(self) -> float:
        """Distance between neighbouring levels, in the units of the measurement."""
        return (self.high - self.low) / self.steps

    def number(self, y: Tensor) -> Tensor:
        """Index of the nearest level, 0 to `steps`."""
        return ((y - self.low) / self.step).round().clamp(0, self.steps)

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        noisy = clean + self.sigma.reshape(()).to(clean) * torch.randn(
            clean.shape, generator=generator, dtype=clean.dtype
        )
        return self.low + self.step * self.number(noisy)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        sigma, number = self.level("sigma", clean), self.number(y)
        begin = (self.low + (number - 0.5) * self.step - clean) / sigma
        end = (self.low + (number + 0.5) * self.step - clean) / sigma
        # Infinite ends: forty standard deviations beyond the other end, or beyond the centre of the Gaussian.
        begin = torch.where(number == 0, end.clamp(max=0) - 40, begin)
        end = torch.where(number == self.steps, begin.clamp(min=0) + 40, end)
        return -log_interval(begin, end)

    def variance(self, clean: Tensor) -> Tensor:
        """About A x, not about the mean of y: rounding is biased."""
        sigma = self.level("sigma", clean)
        total = (self.low + self.step * self.number(clean) - clean) ** 2
        for k in range(self.steps):  # each threshold that noise may cross adds a term
            distance = (self.low + (k + 0.5) * self.step - clean).abs()
            total = total + self.step * distance * torch.erfc(distance / (math.sqrt(2) * sigma))
        return total.clamp(min=torch.finfo(total.dtype).tiny)  # it underflows at a level with little noise

    def entry_misfit(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        # Not divided entry by entry: on a level with little noise the variance, and nearly every residual, is zero.
        variance = self.variance(clean)
        unit = per_row(variance.flatten(1).mean(1), clean)
        return (y - clean) ** 2 / unit, variance / unit

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        reason = super().mismatch(y, observed)
        if reason is not None:
            return reason
        off = masked((y - self.low - self.step * self.number(y)).abs() > 0.05 * self.step, observed)
        if not off.any():
            return None
        return (
            f"quantisation noise: y must lie on {2**self.bits} levels from {self.low:g} to {self.high:g}, got "
            f"{int(off.sum())} other value(s), such as {float(y[off][0]):.3g}; set bits, low and high"
        )


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, exact in both tails and finite with its gradient everywhere."""
    # Intervals in the right tail, where Phi is 1 up to rounding, are mirrored into the left one.
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    tail = high < 0
    # Phi(z) = exp(-z^2 / 2) erfcx(-z / sqrt 2) / 2; the exponential of `high` is factored out.
    a, b = torch.where(tail, low, -2), torch.where(tail, high, -1)
    rest = erfcx(-b) - erfcx(-a) * torch.exp((b - a) * (b + a) / 2)
    far = torch.log(rest / 2) - b**2 / 2
    # Two terms of equal sign on either side of zero.
    a, b = torch.where(tail, -1, low), torch.where(tail, 1, high)
    near = torch.log((torch.erf(b / math.sqrt(2)) - torch.erf(a / math.sqrt(2))) / 2)
    return torch.where(tail, far, near)


def erfcx(z: Tensor) -> Tensor:
    """exp(z^2 / 2) erfc(z / sqrt 2), z in standard deviations."""
    return torch.special.erfcx(z / math.sqrt(2))
