"""Where a truth lies among its posterior samples, by scalar quantities, pixel by pixel and as a whole."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invdiff.problem import InverseProblem
from invdiff.streams import generator

PIXELS, PROJECTIONS = 4, 4  # quantities of these kinds
_QUANTITIES = 3  # their stream, apart from those of `invdiff.scores.calibration`


class Quantities:
    """Scalar quantities of an image, the same for all images: what is wrong everywhere adds up."""

    def __init__(self, shape: tuple[int, ...], seed: int, resolution: float) -> None:
        n = math.prod(shape)
        rng = generator(seed, "generate", 0, _QUANTITIES)
        self.resolution = resolution
        self.pixels = torch.randperm(n, generator=rng)[: min(PIXELS, n)]
        self.directions = torch.randn(PROJECTIONS, n, generator=rng, dtype=torch.float64) / math.sqrt(n)
        places = [np.unravel_index(int(pixel), shape) for pixel in self.pixels]
        self.names = (
            *(f"pixel {tuple(int(i) for i in place)}" for place in places),
            "mean intensity",
            *(f"projection {k + 1}" for k in range(PROJECTIONS)),
            "log-likelihood",
        )

    def seen(self, x: Tensor) -> Tensor:
        """Pixels (R, n) as they are ranked."""
        return (x / self.resolution).round() if self.resolution else x

    def of(self, x: Tensor, problem: InverseProblem) -> Tensor:
        """(R, C, H, W) -> (R, F), float64."""
        flat = x.flatten(1).double()
        likelihood = -problem.select(torch.zeros(len(x), dtype=torch.long)).nll(x).double().cpu()
        if likelihood.isnan().any():
            raise ValueError("calibration: the log-likelihood of a truth or a sample is NaN; check operator and noise")
        linear = [self.seen(flat[:, self.pixels]), flat.mean(1, keepdim=True), flat @ self.directions.mT]
        return torch.cat([*linear, likelihood[:, None]], 1)


@dataclass(frozen=True)
class Score:
    """One image: see `Calibration`."""

    kept: int
    ranks: Tensor
    uniform: Tensor
    pixels: Tensor
    ball: float


def score(
    problem: InverseProblem,
    truth: Tensor,
    samples: Tensor,
    point: Tensor,
    quantities: Quantities,
    chance: torch.Generator,
) -> Score:
    """Where one truth lies among its samples."""
    count = len(samples)
    v = torch.rand(len(quantities.names) + 1, generator=chance, dtype=torch.float64)
    v_pixels = torch.rand(truth.shape, generator=chance)
    if count == 0:
        missing = torch.full_like(v[:-1], torch.nan)
        return Score(0, torch.zeros_like(missing).long(), missing, torch.full_like(truth, torch.nan), math.nan)
    together = torch.cat([truth[None], samples])
    with torch.no_grad():
        values = quantities.of(together, problem)
    distance = (together - point).flatten(1).double().norm(dim=1, keepdim=True)
    ranks = rank(torch.cat([values, distance], 1), v)
    uniform = ranks / (count + 1)
    pixels = rank(quantities.seen(together), v_pixels) / (count + 1)
    return Score(count, ranks[:-1].long(), uniform[:-1], pixels, float(uniform[-1]))


def rank(values: Tensor, v: Tensor) -> Tensor:
    """The first row's rank among the others plus a part of one step: (1 + L, ...) -> (...), in [0, L + 1)."""
    truth, others = values[0], values[1:]
    return (others < truth).sum(0) + v * ((others == truth).sum(0) + 1)
