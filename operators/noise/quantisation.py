"""Quantisation after noise: what an analogue-to-digital converter delivers.

Model   y = Q(A x + sigma n), Q rounds to 2^bits levels from `low` to `high`; the outermost take all that lies beyond.
        y tells an interval, and P(y | A x) = Phi((end - A x) / sigma) - Phi((begin - A x) / sigma), exactly.
Paper   Zymnis, Boyd & Candes, Compressed sensing with quantized measurements, IEEE SPL 2010.

One bit keeps only the side: with low = -1 and high = 1 the sign, so that a linear operator with this noise is one-bit
compressed sensing. Bright and dark is then told from the noise alone: the smaller sigma, the less is known of the norm.
"""

import math

import torch
from torch import Tensor

from ..camera.quantisation import check_bits
from .base import Noise, as_level, masked


class QuantisationNoise(Noise):
    """Gaussian noise, then rounding.

    bits       1 to 8
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
            raise ValueError(f"quantisation noise: low must be below high, the outermost levels, got {low} and {high}")
        self.low, self.high = float(low), float(high)
        self.register_buffer("sigma", as_level("quantisation noise: sigma", sigma))

    @property
    def steps(self) -> int:
        """Steps from the lowest level to the highest."""
        return 2**self.bits - 1

    @property
    def step(self) -> float:
        """From one level to the next, in the units of the measurement."""
        return (self.high - self.low) / self.steps

    def number(self, y: Tensor) -> Tensor:
        """Which level is nearest, 0 to `steps`."""
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
        # As good as infinite, for a Gaussian: forty standard deviations beyond the other end, or beyond its centre.
        begin = torch.where(number == 0, end.clamp(max=0) - 40, begin)
        end = torch.where(number == self.steps, begin.clamp(min=0) + 40, end)
        return -log_interval(begin, end)

    def variance(self, clean: Tensor) -> Tensor:
        """About A x and not about its own mean: what is rounded is biased."""
        sigma = self.level("sigma", clean)
        total = (self.low + self.step * self.number(clean) - clean) ** 2
        for k in range(self.steps):  # each threshold that noise may cross adds its part
            distance = (self.low + (k + 0.5) * self.step - clean).abs()
            total = total + self.step * distance * torch.erfc(distance / (math.sqrt(2) * sigma))
        return total.clamp(min=torch.finfo(total.dtype).tiny)  # on a level, with hardly any noise, it underflows

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        reason = super().mismatch(y, observed)
        if reason is not None:
            return reason
        off = masked((y - self.low - self.step * self.number(y)).abs() > 0.05 * self.step, observed)
        if not off.any():
            return None
        return (
            f"quantisation noise: y takes {2**self.bits} levels from {self.low:g} to {self.high:g}, but "
            f"{int(off.sum())} value(s) lie on none of them, such as {float(y[off][0]):.3g}; "
            "give the bits, low and high of this measurement"
        )


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, exact in both tails and finite with its gradient everywhere."""
    # Mirrored into the left tail where both lie in the right one, in which Phi is 1 up to rounding.
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    tail = high < 0
    # Phi(z) = exp(-z^2 / 2) erfcx(-z / sqrt 2) / 2. The exponential of `high` is taken out of the difference.
    a, b = torch.where(tail, low, -2), torch.where(tail, high, -1)
    rest = erfcx(-b) - erfcx(-a) * torch.exp((b - a) * (b + a) / 2)
    far = torch.log(rest / 2) - b**2 / 2
    # Two parts of one sign on either side of zero.
    a, b = torch.where(tail, -1, low), torch.where(tail, 1, high)
    near = torch.log((torch.erf(b / math.sqrt(2)) - torch.erf(a / math.sqrt(2))) / 2)
    return torch.where(tail, far, near)


def erfcx(z: Tensor) -> Tensor:
    """exp(z^2 / 2) erfc(z / sqrt 2), z in standard deviations."""
    return torch.special.erfcx(z / math.sqrt(2))
