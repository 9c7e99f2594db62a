"""Noise levels from sigma_max down to 0, for pictures in [0, 1]; `levels` scales them for other images."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from invdiff.ranges import Count, NotNegative, Positive, Range, check_fields


class Schedule(ABC):
    """Gives the noise levels that a sampler walks."""

    steps: int

    @abstractmethod
    def sigmas(self) -> Tensor:
        """float64 (steps + 1,), strictly decreasing, the last one 0; image units of pictures in [0, 1]."""

    def levels(self, scale: float) -> list[float]:
        """The same in the image units of a prior with this `Prior.scale`."""
        return (scale * self.sigmas()).tolist()


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    """Karras et al. 2022, equation 5: `steps` levels evenly spaced in sigma^(1/rho), then 0.

    The published sigma_max = 80 and sigma_min = 0.002 are for images in [-1, 1]; here they are in image units.
    """

    steps: Count = 50
    sigma_max: Positive = 40.0
    sigma_min: Positive = 0.001
    rho: Positive = 7.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        if not (self.sigma_min < self.sigma_max or (self.steps == 1 and self.sigma_min == self.sigma_max)):
            raise ValueError(f"schedule: sigma_min must be < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def sigmas(self) -> Tensor:
        return torch.cat(
            [karras(self.sigma_max, self.sigma_min, self.steps, self.rho), torch.zeros(1, dtype=torch.float64)]
        )


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """The 1000-step DDPM grid (beta from 1e-4 to 0.02, linear), as noise levels sigma = sqrt(1 / alpha_bar - 1).

    The network saw images in [-1, 1], twice as wide as pictures, whose levels are half of its own. With fewer than 1000
    steps, timesteps are kept evenly spaced in t, both ends included, as guided-diffusion does.

    sigma_max, sigma_min  the part of the grid between these levels only, image units; None: all of it, 78.7 to 0.005
    """

    steps: Annotated[int, Range(1, 1000)] = 1000
    sigma_max: Positive | None = None
    sigma_min: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        if len(self._grid()) < self.steps:
            raise ValueError(
                f"schedule: steps must be <= {len(self._grid())}, the levels of the DDPM grid between "
                f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max}, got {self.steps}"
            )

    def _grid(self) -> Tensor:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        levels = 0.5 * (1 / (1 - betas).cumprod(0) - 1).sqrt()
        above = levels >= (0.0 if self.sigma_min is None else self.sigma_min)
        return levels[above & (levels <= (math.inf if self.sigma_max is None else self.sigma_max))]

    def sigmas(self) -> Tensor:
        grid = self._grid()
        kept = torch.linspace(len(grid) - 1, 0, self.steps, dtype=torch.float64).round().long()
        return torch.cat([grid[kept], torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class Straight(Schedule):
    """Even times t of a rectified flow (1 - t) x0 + t noise, from t_max to 0, as noise levels t / (1 - t).

    Levels are in units of half the range of pictures, as flows are trained on [-1, 1].

    t_max  < 1: the flow itself begins at t = 1, an infinite level
    """

    steps: Count = 50
    t_max: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.95

    def __post_init__(self) -> None:
        check_fields(self, "schedule")

    def sigmas(self) -> Tensor:
        t = torch.linspace(self.t_max, 0, self.steps + 1, dtype=torch.float64)
        return 0.5 * t / (1 - t)


@dataclass(frozen=True, kw_only=True)
class Table(Schedule):
    """Levels of a table, such as those that `invdiff.tuning.levels.fit_levels` finds for a prior.

    values  falling, above 0, image units of pictures in [0, 1]
    steps   levels; with another number than that of `values`, the logarithm of the level is interpolated over its
            place in the table (Sabour et al., Align Your Steps, ICML 2024, arXiv:2404.14507, section 4)
    """

    values: tuple[float, ...]
    steps: Count

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))  # a configuration has lists
        check_fields(self, "schedule")
        falling = all(low < high for high, low in pairwise(self.values))
        if len(self.values) < 2 or not falling or not self.values[-1] > 0:
            raise ValueError(f"schedule: values must be 2 or more falling levels > 0, got {self.values}")

    def sigmas(self) -> Tensor:
        places = np.linspace(0, len(self.values) - 1, self.steps)
        logs = np.interp(places, np.arange(len(self.values)), np.log(self.values))
        return torch.tensor([*np.exp(logs), 0.0], dtype=torch.float64)


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> Tensor:
    """`steps` levels from sigma_max to sigma_min, both included, evenly spaced in sigma^(1/rho); float64."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.linspace(high, low, steps, dtype=torch.float64) ** rho
