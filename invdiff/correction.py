"""What was measured of a sampler's intervals, and the factors that correct them.

Pixels  |truth - mean| <= factor sqrt(std^2 + floor^2) holds for the stated share of the pixels (split conformal
        prediction, locally weighted: the factor is a quantile of the left side over the root, on other images; Lei et
        al., JASA 2018, arXiv:1604.04173). So it also makes up for the few samples that mean and std rest on.
Balls   the truth is inside the credible ball about a random point (TARP) as often as stated, once samples are moved
        away from their mean: mean + factor (sample - mean).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One nominal level.

    factor, error  of the spread, and the standard error over images
    before, after  coverage and its standard error: before, of pixels by the interval that is right for Gaussian samples
                   of an exact sampler, of as many (Student's t), and of balls as drawn; after, of the corrected ones,
                   on images that the factor was not found on
    """

    factor: float
    error: float
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A measurement by `invdiff calibrate`, of one prior, operator, noise, sampler and number of samples.

    key         which ones: see `invdiff.scores.stored.key_of`
    truths      where the true images came from, in words
    drawn       they are draws of the prior, and not images of the world
    images      how many
    shape       (C, H, W) of them
    background  share of their pixels that is background, black with black around, where no interval was judged
    floor       standard deviation that is added to that of the samples, image units
    spread      by how much the spread of the samples is too small, over all pixels, and the standard error
    pixels      by level
    balls       by level
    """

    key: Mapping[str, Any]
    truths: str
    drawn: bool
    images: int
    shape: tuple[int, ...]
    background: float
    floor: float
    spread: tuple[float, float]
    pixels: Mapping[float, Level]
    balls: Mapping[float, Level]

    def half_width(self, std: Tensor, level: float) -> Tensor:
        """Half of the width of the interval of this level, for the standard deviation of the samples."""
        return self.factor(level) * (std.square() + self.floor**2).sqrt()

    def factor(self, level: float) -> float:
        """Of a pixel's interval of this level, > 0 and < 1.

        Between the levels that were measured, and beyond them, in proportion to a Gaussian's interval: the ratio to it
        is interpolated, or that of the nearest level. Raises ValueError for another level.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: level must be > 0 and < 1, got {level}")
        known = sorted(self.pixels)
        above = next((k for k in known if k >= level), known[-1])
        below = next((k for k in reversed(known) if k <= level), known[0])
        part = 0.0 if above == below else (level - below) / (above - below)
        low, high = (self.pixels[k].factor / _gaussian(k) for k in (below, above))
        return (low + part * (high - low)) * _gaussian(level)

    def __str__(self) -> str:
        """Coverage of 90 % intervals, one line."""
        covered, error = self.pixels[0.9].after
        digits = 2 if error >= 0.01 else 3
        known = f"{covered:.{digits}f} ± {error:.{digits}f} on {self.images} images ({self.truths})"
        where = f", black background left out ({100 * self.background:.0f} %)" if self.background >= 0.005 else ""
        return f"90 % intervals: measured coverage {known}{where}"

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        levels = {
            name: {f"{level:.2f}": asdict(found) for level, found in getattr(self, name).items()}
            for name in ("pixels", "balls")
        }
        return {**vars(self), **levels}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `as_json`. Raises ValueError, naming what is wrong, for values that no measurement gives."""
        try:
            pixels, balls = (
                {
                    float(level): Level(v["factor"], v["error"], tuple(v["before"]), tuple(v["after"]))
                    for level, v in values[name].items()
                }
                for name in ("pixels", "balls")
            )
            shape, spread = tuple(values["shape"]), tuple(values["spread"])
            made = cls(**{**values, "pixels": pixels, "balls": balls, "shape": shape, "spread": spread})
            numbers = [made.floor, *(n for found in pixels.values() for n in (found.factor, *found.after))]
            sound = all(math.isfinite(number) and number >= 0 for number in numbers) and 0.9 in pixels
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"a calibration lacks or misspells a value: {error}") from error
        if not sound:
            raise ValueError("a calibration needs the level 0.90 and numbers >= 0, got others")
        return made


def _gaussian(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
