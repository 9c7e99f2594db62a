"""Measurement noise: the law of y given A(x), with every factor of one half and every sigma.

`observed` masks the measured entries of y (`Operator.measured`); other entries carry neither noise nor likelihood.
Levels are in the units of the measurement.
"""

import copy
import math
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from invdiff.recorded import Recorded
from invdiff.shapes import describe_shape, per_row


class Noise(Recorded, nn.Module, ABC):
    """A likelihood p(y | A x), independent over the entries of y.

    per_image       names of the buffers that hold levels: one for all images, () or (1,), or one per image, (B,)
    complex_valued  it is defined for complex measurements too
    gaussian        y = A x + sigma n, with a buffer `sigma` for all images or one per image
    """

    per_image: ClassVar[tuple[str, ...]] = ()
    gaussian: ClassVar[bool] = False
    complex_valued: ClassVar[bool] = True

    @abstractmethod
    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """One noisy measurement of one image: (...) -> (...), on the CPU."""

    @abstractmethod
    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        """Negative log-likelihood of every entry, real, constants in `clean` dropped: (B, ...) -> (B, ...)."""

    @abstractmethod
    def variance(self, clean: Tensor) -> Tensor:
        """E|y - clean|^2 given the noiseless measurement, broadcastable to it; the variance where the mean is clean."""

    def sample(self, clean: Tensor, generators: list[torch.Generator], observed: Tensor | None = None) -> Tensor:
        """Noisy measurements of noiseless ones, (B, ...), with one random stream per image."""
        if clean.is_complex() and not self.complex_valued:
            raise ValueError(self._not_for_complex())
        noisy = [
            self.select(torch.tensor([i])).draw(row.cpu(), generator)
            for i, (row, generator) in enumerate(zip(clean, generators, strict=True))
        ]
        y = torch.stack(noisy).to(clean.device)
        return y if observed is None else torch.where(observed, y, 0)

    def nll(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each image, (B,): summed over its measured entries, constants dropped."""
        entries = self.entry_nll(masked(y, observed), masked(clean, observed))
        return masked(entries, observed).flatten(1).sum(1)

    def misfit(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        """How far each image is from y in units of the noise, (B,): its expectation at the truth is 1.

        The distances of the measured entries, summed, over the sum of their expectations (`entry_misfit`).
        """
        found, expected = self.entry_misfit(masked(y, observed), masked(clean, observed))
        found, expected = (masked(part, observed).flatten(1).sum(1) for part in (found, expected))
        return found / expected.clamp(min=torch.finfo(expected.dtype).tiny)  # where nothing can be off, as in the dark

    def entry_misfit(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of every entry and its expectation if `clean` is the truth; both (B, ...), real.

        Here the squared residual over its variance, whose expectation is 1: a reduced chi-square.
        """
        squares = squared(y - clean) / self.variance(clean)
        return squares, torch.ones_like(squares)

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        """None where these measurements, (B, ...), can be scored, otherwise the reason why not."""
        if self.images not in (1, len(y)):
            return f"noise: levels are for {self.images} images, y has {len(y)}"
        if y.is_complex() and not self.complex_valued:
            return self._not_for_complex()
        return None

    def _not_for_complex(self) -> str:
        return f"{type(self).__name__} requires a real measurement, got a complex one; use noise=gaussian"

    @property
    def images(self) -> int:
        """Number of images with levels of their own; 1 where all images share them."""
        return max((getattr(self, name).numel() for name in self.per_image), default=1)

    def select(self, index: Tensor) -> Self:
        """The noise of these images, in this order; itself where all share one level."""
        if self.images == 1:
            return self
        chosen = copy.copy(self)
        chosen._buffers = dict(self._buffers)
        for name in self.per_image:
            value = getattr(self, name)
            if value.numel() > 1:
                setattr(chosen, name, value[index.to(value.device)])
        return chosen

    def level(self, name: str, like: Tensor) -> Tensor:
        """The level of this name, shaped to multiply `like`, (B, ...), in its precision and on its device."""
        value: Tensor = getattr(self, name)
        return per_row(value.to(like.device, like.real.dtype), like)


class GaussianNoise(Noise):
    """y = A x + sigma n.

    sigma          standard deviation in the units of the measurement, a float or one per image, (B,). On a complex
                   measurement sigma^2 is the variance of the complex number, sigma / sqrt(2) for each of its two parts.
    per_component  sigma is that of each part of a complex measurement; the attribute `sigma`, sqrt(2) times as large,
                   remains that of the complex number. Raises ValueError where the measurement is real
    """

    per_image = ("sigma",)
    gaussian = True
    sigma: Tensor
    per_component = False

    def __init__(self, sigma: float | Tensor = 0.05, per_component: bool = False) -> None:
        super().__init__()
        level = as_level("gaussian noise: sigma", sigma)
        self.register_buffer("sigma", level * math.sqrt(2) if per_component else level)
        self.per_component = per_component

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        return super().mismatch(y, observed) or (None if y.is_complex() else self._only_for_complex())

    def _only_for_complex(self) -> str | None:
        if not self.per_component:
            return None
        return "gaussian noise: per_component=true requires a complex measurement, got a real one; leave it out"

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        reason = None if clean.is_complex() else self._only_for_complex()
        if reason is not None:
            raise ValueError(reason)
        return clean + self.sigma.reshape(()).cpu() * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        residual = y - clean
        # Each part of a complex entry has variance sigma^2 / 2: |r|^2 / (2 sigma^2 / 2) = |r|^2 / sigma^2.
        part = self.variance(clean) / 2 if residual.is_complex() else self.variance(clean)
        return squared(residual) / (2 * part)

    def variance(self, clean: Tensor) -> Tensor:
        return self.level("sigma", clean) ** 2


class NoNoise(GaussianNoise):
    """y = A x exactly, with a narrow Gaussian as likelihood.

    tolerance  its standard deviation, in the units of the measurement, a number or one per image, (B,)

    It counts as Gaussian noise, so that every sampler runs. The misfit of the truth is 0; a residual as large as the
    tolerance has misfit 1.
    """

    def __init__(self, tolerance: float | Tensor = 0.01) -> None:
        super().__init__()
        self.register_buffer("sigma", as_level("no noise: tolerance", tolerance))

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return clean.clone()


class PoissonNoise(Noise):
    """Photon counting: y = gain * Poisson(A x / gain), so that E y = A x and Var y = gain * A x.

    gain  value of one count, in the units of the measurement, a number or one per image, (B,): 1 / gain photons where
          A x = 1

    A noiseless measurement below zero counts as zero when drawing, and in the likelihood where nothing was counted.
    Where something was counted, the negative log-likelihood, infinite there, is continued below a tenth of a count by
    its tangent, so that samplers which leave the positive range are pulled back.

    The misfit is the deviance over its expectation at A x: the squared residual over the variance would be ruled by the
    darkest pixels, whose variance is nearly zero.
    """

    per_image = ("gain",)
    complex_valued = False
    gain: Tensor

    def __init__(self, gain: float | Tensor = 0.01) -> None:
        super().__init__()
        self.register_buffer("gain", as_level("poisson noise: gain", gain, "the value of one count"))

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        gain = self.gain.reshape(()).to(clean)
        return gain * torch.poisson(clean.clamp(min=0) / gain, generator=generator)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        gain = self.level("gain", clean)
        rate, count = clean / gain, y / gain
        return count_nll(count, rate)

    def variance(self, clean: Tensor) -> Tensor:
        gain = self.level("gain", clean)
        return gain * torch.maximum(clean, 0.1 * gain)

    def entry_misfit(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        gain = self.level("gain", clean)
        rate, count = clean / gain, y / gain
        return 2 * (count_nll(count, rate) - count_nll(count, count)), expected_deviance(rate)

    def mismatch(self, y: Tensor, observed: Tensor | None = None) -> str | None:
        return super().mismatch(y, observed) or negative("photon counts", y, observed)


FLOOR = 0.1  # counts


def count_nll(count: Tensor, rate: Tensor) -> Tensor:
    """Poisson negative log-likelihood of counts, the constant dropped, continued as `PoissonNoise` states."""
    safe = rate.clamp(min=FLOOR)
    exact = safe - count * safe.log()
    # Without a count the tangent falls for ever: it would reward negative rates.
    rate = torch.where(count < FLOOR, rate.clamp(min=0), rate)
    return exact + (1 - count / FLOOR) * (rate - safe)


MOST_TABULATED = 60.0  # counts; beyond, two terms of the expansion are right to 2e-6
NODES, DARK = 4096, 8.0  # of the table, evenly spaced in log(1 + DARK rate)


@cache
def _deviances() -> Tensor:
    """(NODES + 1,) expected deviances at the rates of the table: exact sums over the counts."""
    rate = torch.linspace(0, math.log1p(DARK * MOST_TABULATED), NODES + 1, dtype=torch.float64)[:, None].expm1() / DARK
    count = torch.arange(160, dtype=torch.float64)
    chance = (torch.special.xlogy(count, rate) - rate - torch.lgamma(count + 1)).exp()
    return (chance * 2 * (count_nll(count, rate) - count_nll(count, count))).sum(1)


def expected_deviance(rate: Tensor) -> Tensor:
    """E 2 (nll(n, rate) - nll(n, n)) over Poisson counts n: 1 for many, 1.15 for one, 0 in the dark; NaN for NaN."""
    rate = rate.clamp(min=0)
    place = (DARK * rate.clamp(max=MOST_TABULATED)).log1p() * (NODES / math.log1p(DARK * MOST_TABULATED))
    below = place.detach().nan_to_num().long().clamp(max=NODES - 1)
    table = _deviances().to(rate)
    tabulated = table[below].lerp(table[below + 1], place - below)
    many = rate.clamp(min=MOST_TABULATED)
    return torch.where(rate < MOST_TABULATED, tabulated, 1 + 1 / (6 * many) + 1 / (6 * many**2))


def as_level(name: str, value: float | Tensor, meaning: str = "in the units of the measurement") -> Tensor:
    """A noise level as a buffer, () or (B,).

    Raises ValueError where it is not positive, TypeError for what is no number; `name` is for messages.
    """
    try:
        level = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or one per image, got {value!r}") from error
    if level.dim() > 1 or not level.numel():
        raise ValueError(f"{name} must be a number or one per image, (B,), got shape {describe_shape(level.shape)}")
    if not (level.isfinite().all() and (level > 0).all()):
        raise ValueError(f"{name} must be positive, {meaning}, got {value}")
    return level


def negative(what: str, y: Tensor, observed: Tensor | None) -> str | None:
    """None where no measured entry is negative, otherwise the reason to refuse this measurement."""
    below = masked(y, observed) < 0
    if not below.any():
        return None
    return (
        f"{what} must be >= 0, got {int(below.sum())} value(s) below zero, down to "
        f"{float(y[below].min()):.3g}; clip them, or use noise=gaussian"
    )


def masked(entries: Tensor, observed: Tensor | None) -> Tensor:
    """Unmeasured entries set to zero; by `where` and not by a product, for they may be NaN in y.

    Entries must be masked before anything is computed from them, else a NaN reaches the gradient.
    """
    return entries if observed is None else torch.where(observed, entries, 0)


def squared(residual: Tensor) -> Tensor:
    """|r|^2 of every entry, real."""
    return residual.real**2 + residual.imag**2 if residual.is_complex() else residual**2
