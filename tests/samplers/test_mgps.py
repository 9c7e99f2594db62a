"""MGPS: a whole run in the paper's coordinates, with the variational mean in closed form."""

import torch

from helpers import BothCoordinates, Dense, Levels, normal
from invdiff.samplers import MGPS

LEVELS = (6.0, 2.5, 1.2, 0.6, 0.3, 0.0)  # in the paper's images
MIDDLE = (3, 3, 4, 4)  # half of the steps that are left
SHAPE = (1, 3, 3)


def test_a_run_equals_the_paper() -> None:
    """In z = sqrt(a) x + sqrt(1 - a) n: q(z_m) by its KL and one draw, then the bridge from z_t and z_m to z_s."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), SHAPE), SHAPE, spread=0.3)
    numbers = world.numbers(13)
    found = world.run(MGPS(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), iterations=9), numbers)
    bar = [1 / (1 + level**2) for level in LEVELS]
    z = (1 - bar[0]) ** 0.5 * numbers[0]
    for k, middle in enumerate(MIDDLE):
        t, s, m = bar[k], bar[k + 1], bar[middle]
        n, n_middle, n_next = numbers[1 + 3 * k : 4 + 3 * k]
        x0 = world.denoise_vp(z, t)
        centre = (m**0.5 * (1 - t / m) * x0 + (t / m) ** 0.5 * (1 - m) * z) / (1 - t)
        std = ((1 - t / m) * (1 - m) / (1 - t)) ** 0.5
        offset = world.denoise_vp(torch.zeros(9).double(), m)
        seen = torch.stack([world.matrix @ (world.denoise_vp(e, m) - offset) for e in torch.eye(9).double()], 1)
        data = world.y - world.matrix @ offset - std * seen @ n
        precision = torch.eye(9) / std**2 + seen.T @ seen / world.spread**2
        z_m = torch.linalg.solve(precision, centre / std**2 + seen.T @ data / world.spread**2) + std * n_middle
        if s == m:
            z = z_m
        else:
            up, down = (s / m) ** 0.5 / (1 - s / m), (t / s) ** 0.5 / (1 - t / s)
            total = 1 / (1 - s / m) + (t / s) / (1 - t / s)
            z = (up * z_m + down * z) / total + total**-0.5 * n_next
        assert (found[k] - z / s**0.5).abs().max() < 1e-4
    assert (found[4] - world.denoise_vp(z, bar[4])).abs().max() < 1e-4
