"""DDNM+: a whole run with time travel in the paper's coordinates, its bias, and DDRM as a special case."""

from itertools import pairwise

import pytest
import torch

from helpers import BothCoordinates, Dense, Levels, affine_law, alike, normal
from invdiff.samplers import DDNM, DDRM
from invdiff.samplers.moves import time_travel
from invdiff.schedules import EDM

LEVELS = (6.0, 1.7, 0.9, 0.45, 0.15, 0.0)  # in the paper's images


def authors_times(steps: int, length: int, repeats: int) -> list[int]:
    """The times of RePaint and DDNM, the highest first, -1 for the clean image."""
    jumps = dict.fromkeys(range(0, steps - length, length), repeats - 1)
    t, times = steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(("steps", "length", "repeats"), [(12, 1, 3), (12, 5, 2), (10, 3, 4), (4, 7, 2), (6, 2, 1)])
def test_time_travel_visits_the_authors_times(steps: int, length: int, repeats: int) -> None:
    levels = [float(n) for n in range(steps, -1, -1)]  # time t has level t + 1
    moves = list(time_travel(levels, length, repeats))
    visited = [levels[0]]
    for level, after, _ in moves:
        assert level == visited[-1]
        # A jump is one move here and `length` single ones there.
        visited += [after] if after < level else [level + 1 + n for n in range(length)]
    assert [level - 1 for level in visited] == authors_times(steps, length, repeats)
    assert [after for _, after, new in moves if new] == levels[1:]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_run_equals_the_paper(repeats: int) -> None:
    """D' = D + V L V^T A^+ (y - A D) and the noise that is left, in z = sqrt(a) x0 + sqrt(1 - a) n."""
    left, right = torch.linalg.qr(normal(4, 4, seed=7))[0], torch.linalg.qr(normal(9, 9, seed=8))[0]
    values = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    world = BothCoordinates(Dense(left @ torch.diag(values) @ right[:4], (1, 3, 3)), (1, 3, 3), spread=0.2)
    eta, v = 0.85, world.operator.right.T  # type: ignore[union-attr]
    pseudo_inverse = torch.linalg.pinv(world.matrix)
    bar = [1 / (1 + level**2) for level in LEVELS]
    times = authors_times(5, 1, repeats)
    numbers = world.numbers(len(times))
    sampler = DDNM(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), eta=eta, length=1, repeats=repeats)
    found = world.run(sampler, numbers)

    draws, path = iter(numbers), {}
    z = x0 = bar[0] ** 0.5 * LEVELS[0] * next(draws)
    for t, after in pairwise(times):
        k, k_after = 4 - t, 4 - after
        if after > t:
            z = bar[k_after] ** 0.5 * x0 + (1 - bar[k_after]) ** 0.5 * next(draws)
            continue
        a, a_after, s = bar[k], bar[k_after], LEVELS[k_after]
        x0 = world.denoise_vp(z, a)
        eps = (z - a**0.5 * x0) / (1 - a) ** 0.5
        weight, spread, kept = (torch.zeros(9, dtype=torch.float64) for _ in range(3))
        weight[:4], spread[:] = 1.0, eta * s
        kept[4:] = (1 - eta**2) ** 0.5 * s
        for i, value in enumerate(values):
            if s >= 0.2 / value:
                spread[i] = (s**2 - (0.2 / value) ** 2) ** 0.5
            else:
                weight[i] = value * s * (1 - eta**2) ** 0.5 / 0.2
        corrected = x0 + v @ (weight * (v.T @ pseudo_inverse @ (world.y - world.matrix @ x0)))
        z = a_after**0.5 * (corrected + v @ (kept * (v.T @ eps) + spread * next(draws)))
        path.setdefault(k_after, z / a_after**0.5)
    for k, x in enumerate(found):
        assert (x - path[k + 1]).abs().max() < 1e-5


def test_without_time_travel_it_is_ddrm_but_for_the_start() -> None:
    problem, prior = alike(0.3)
    schedule = EDM(steps=100, sigma_max=80.0, sigma_min=0.002)
    mean, covariance = affine_law(DDNM(schedule=schedule, repeats=1), problem, prior)
    wanted_mean, wanted = affine_law(DDRM(schedule=schedule), problem, prior)
    assert (mean - wanted_mean).abs().max() < 1e-5
    assert (covariance - wanted).abs().max() < 1e-5


def test_time_travel_brings_both_pixels_together() -> None:
    """Exact: mean (0.917, 0.734), variance (0.083, 0.413). The mean of the unmeasured pixel comes nearer, y is trusted
    too much either way."""
    problem, prior = alike(0.3)
    schedule = EDM(steps=30, sigma_max=80.0, sigma_min=0.002)
    once, narrow = affine_law(DDNM(schedule=schedule, repeats=1), problem, prior)
    often, narrower = affine_law(DDNM(schedule=schedule, length=5, repeats=5), problem, prior)
    assert once.tolist() == pytest.approx((0.883, 0.475), abs=2e-3)
    assert often.tolist() == pytest.approx((0.924, 0.631), abs=2e-3)
    assert 0.04 > narrow[0, 0] > narrower[0, 0]
