"""Noise levels, and integrators with fitted numbers, for a given prior."""

from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invdiff.integrators import IIA, DPMSolverV3, Heun, centred
from invdiff.io import BadInput
from invdiff.priors import Prior
from invdiff.priors.ode import generate
from invdiff.schedules import Schedule, Table
from invdiff.streams import Streams, key

CANDIDATES = 64  # levels to choose from, evenly spaced in the logarithm


@torch.no_grad()
def fit_levels(
    prior: Prior,
    steps: int,
    *,
    by: Literal["diffusion", "flow"] = "diffusion",
    sigma_max: float = 10.0,
    sigma_min: float = 0.003,
    draws: int = 32,
    seed: int = 0,
) -> Table:
    """The best `steps` levels of `CANDIDATES` from sigma_max to sigma_min, both included, on draws of the prior.

    `diffusion` minimises the bound of Sabour et al. (Align Your Steps, ICML 2024, arXiv:2404.14507) on the divergence
    between ancestral steps and the diffusion. For a denoiser that is exact, E|D(x_s, s) - D(x_t, t)|^2 is the
    difference of the errors of D at t and s, so that one curve gives the bound for all levels. `flow` minimises the sum
    of the errors of single Euler steps against a fine walk along the flow (Chen et al., On the Trajectory Regularity of
    ODE-based Diffusion Sampling, ICML 2024, arXiv:2405.11326), over sqrt(c^2 + sigma^2), c the deviation of the images:
    an error shrinks by that on its way down. Both are exact minimisers, by dynamic programming.

    sigma_max, sigma_min  of pictures in [0, 1]
    draws                 of the prior; about 100 network calls for each with `diffusion`, 130 with `flow`

    Raises BadInput for a number of steps that is not from 2 to `CANDIDATES`.
    """
    if not 2 <= steps <= CANDIDATES:
        raise BadInput(f"fit_levels: steps must be in [2, {CANDIDATES}], got {steps}")
    levels = np.geomspace(sigma_max, sigma_min, CANDIDATES)
    cost = (diffusion_cost if by == "diffusion" else flow_cost)(prior, levels, draws, seed)
    return Table(values=tuple(levels[cheapest(cost, steps)].tolist()), steps=steps)


@torch.no_grad()
def fit_dpm_v3(prior: Prior, schedule: Schedule, *, draws: int = 32, seed: int = 0) -> DPMSolverV3:
    """DPM-Solver-v3 with the statistics of a prior at 40 levels of the range of a schedule; 155 calls for each draw."""
    images, noise = normalised_draws(prior, draws, seed)
    levels = schedule.sigmas()[:-1]
    grid = np.geomspace(float(levels[0]), float(levels[-1]), 40)
    return DPMSolverV3.fitted(centred(prior.denoise, prior.scale, prior.centre), images, noise, grid.tolist())


@torch.no_grad()
def fit_iia(prior: Prior, schedule: Schedule, *, draws: int = 32, seed: int = 0) -> IIA:
    """IIA with the weights of a prior at the levels of a schedule; about 8 network calls for each step and draw."""
    noise = _streams(prior, draws, seed).normal()
    levels = schedule.sigmas().tolist()
    return IIA.fitted(centred(prior.denoise, prior.scale, prior.centre), levels[0] * noise, levels)


def diffusion_cost(prior: Prior, levels: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """(n, n): what a step from level i to level j > i adds to the bound; infinite elsewhere."""
    images, noise = normalised_draws(prior, draws, seed)
    denoise = centred(prior.denoise, prior.scale, prior.centre)
    errors = np.array([float((denoise(images + s * noise, s) - images).square().mean()) for s in levels])
    errors = np.minimum.accumulate(errors)  # it falls with the level, but for chance
    step = np.log(levels[0] / levels[1])
    cost = np.full((len(levels), len(levels)), np.inf)
    for i, error in enumerate(errors):
        density = (error - errors[i:]) / levels[i:] ** 2  # for each unit of log sigma
        cost[i, i + 1 :] = np.cumsum((density[1:] + density[:-1]) / 2 * step)
    return cost


def flow_cost(prior: Prior, levels: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """(n, n): the error of an Euler step from level i to level j > i; infinite elsewhere."""
    x = levels[0] * _streams(prior, draws, seed).normal()
    states: list[Tensor] = []
    slopes: list[Tensor] = []
    denoise = centred(prior.denoise, prior.scale, prior.centre)
    for sigma, after in pairwise([*levels.tolist(), 0.0]):
        states.append(x)
        slopes.append((x - denoise(x, sigma)) / sigma)
        x = Heun().end(denoise, x, [sigma, after], partial(torch.zeros_like, x), 1.0)
    spread = float(x.std())
    cost = np.full((len(levels), len(levels)), np.inf)
    for i, (x, slope) in enumerate(zip(states, slopes, strict=True)):
        for j in range(i + 1, len(levels)):
            missed = float((x + (levels[j] - levels[i]) * slope - states[j]).square().mean()) ** 0.5
            cost[i, j] = missed / np.hypot(spread, levels[j])
    return cost


def cheapest(cost: NDArray[np.float64], steps: int) -> list[int]:
    """The indices of the path of `steps` nodes from the first to the last that costs least."""
    total = np.full(len(cost), np.inf)
    came: list[NDArray[np.intp]] = []
    total[0] = 0.0
    for _ in range(steps - 1):
        sums = total[:, None] + cost
        came.append(sums.argmin(0))
        total = sums.min(0)
    path = [len(cost) - 1]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]


def normalised_draws(prior: Prior, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of the prior as an integrator sees them, about 0, and standard normal numbers."""
    streams = _streams(prior, draws, seed)
    images = generate(prior, streams.normal())
    return (images - prior.centre.to(images)) / prior.scale, streams.normal()


def _streams(prior: Prior, draws: int, seed: int) -> Streams:
    if prior.shape is None:
        raise BadInput("levels are fitted on draws of the prior, which must have a fixed size")
    return Streams([key(seed, "generate", i, 1) for i in range(draws)], prior.shape)
