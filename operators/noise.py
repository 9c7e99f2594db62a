"""Measurement noise: how y scatters about A(x). Every factor of one half and every sigma lives here.

`observed` masks the entries of y that were measured (`Operator.measured`); entries outside it carry neither noise nor
likelihood. Levels are in the units of the measurement.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from .base import as_rows, describe_shape


class Noise(nn.Module, ABC):
    """A likelihood p(y | A x), independent over the entries of y."""

    @abstractmethod
    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """One noisy measurement of one image: (...) -> (...), on the CPU."""

    @abstractmethod
    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        """Negative log-likelihood of every entry, real, constants in `clean` dropped: (B, ...) -> (B, ...)."""

    @abstractmethod
    def variance(self, clean: Tensor) -> Tensor:
        """Variance of y given the noiseless measurement, broadcastable to it (complex: E|y - clean|^2)."""

    def sample(self, clean: Tensor, generators: list[torch.Generator], observed: Tensor | None = None) -> Tensor:
        """Noisy measurements of noiseless ones, (B, ...), with one random stream per image."""
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
        """Reduced chi-square of each image, (B,): 1 where the residual is as large as the noise."""
        y, clean = masked(y, observed), masked(clean, observed)
        squares = squared(y - clean) / self.variance(clean)
        count = masked(torch.ones_like(squares), observed).flatten(1).sum(1)
        return masked(squares, observed).flatten(1).sum(1) / count

    def select(self, index: Tensor) -> Self:
        """The noise of these images, in this order; itself where all share one level."""
        return self


class GaussianNoise(Noise):
    """y = A x + sigma n.

    sigma  standard deviation in the units of the measurement, a float or one per image, (B,). On a complex measurement
           sigma^2 is the variance of the complex number, sigma / sqrt(2) for each of its two parts.
    """

    sigma: Tensor

    def __init__(self, sigma: float | Tensor = 0.05) -> None:
        super().__init__()
        value = torch.as_tensor(sigma, dtype=torch.float32)
        if value.dim() > 1:
            raise ValueError(
                f"gaussian noise: sigma is a number or one per image, (B,), got shape {describe_shape(value.shape)}"
            )
        if not (value.isfinite().all() and (value > 0).all()):
            raise ValueError(f"gaussian noise: sigma must be positive, in the units of the measurement, got {sigma}")
        self.register_buffer("sigma", value)

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return clean + self.sigma.reshape(()).cpu() * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        residual = y - clean
        # Each part of a complex entry has variance sigma^2 / 2: |r|^2 / (2 sigma^2 / 2) = |r|^2 / sigma^2.
        part = self.variance(clean) / 2 if residual.is_complex() else self.variance(clean)
        return squared(residual) / (2 * part)

    def variance(self, clean: Tensor) -> Tensor:
        return torch.as_tensor(as_rows(self.sigma.to(clean.device), clean)) ** 2

    def select(self, index: Tensor) -> Self:
        if self.sigma.numel() == 1:
            return self
        chosen = copy.copy(self)
        chosen._buffers = {"sigma": self.sigma[index.to(self.sigma.device)]}
        return chosen


class PoissonNoise(Noise):
    """Photon counting: y = gain * Poisson(A x / gain), so that E y = A x and Var y = gain * A x.

    gain  value of one count, in the units of the measurement: 1 / gain photons where A x = 1

    A noiseless measurement below zero counts as zero when drawing, and in the likelihood where nothing was counted.
    Where something was counted, the negative log-likelihood, infinite there, is continued below a tenth of a count by
    its tangent, so that samplers which leave the positive range are pulled back.
    """

    def __init__(self, gain: float = 0.01) -> None:
        super().__init__()
        if not 0 < gain < math.inf:
            raise ValueError(f"poisson noise: gain must be positive, the value of one count, got {gain}")
        self.gain = float(gain)

    def draw(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return self.gain * torch.poisson(clean.clamp(min=0) / self.gain, generator=generator)

    def entry_nll(self, y: Tensor, clean: Tensor) -> Tensor:
        rate, count = clean / self.gain, y / self.gain
        floor = 0.1
        safe = rate.clamp(min=floor)
        exact = safe - count * safe.log()
        # Without a count the tangent falls for ever: it would reward negative rates.
        rate = torch.where(count < floor, rate.clamp(min=0), rate)
        return exact + (1 - count / floor) * (rate - safe)

    def variance(self, clean: Tensor) -> Tensor:
        return self.gain * clean.clamp(min=0.1 * self.gain)


def masked(entries: Tensor, observed: Tensor | None) -> Tensor:
    """Entries that were not measured set to zero; `where` and not a product, for they may be NaN in y.

    A gradient is free of such a NaN only where the entries were masked before anything was computed from them.
    """
    return entries if observed is None else torch.where(observed, entries, 0)


def squared(residual: Tensor) -> Tensor:
    """|r|^2 of every entry, real."""
    return residual.real**2 + residual.imag**2 if residual.is_complex() else residual**2
