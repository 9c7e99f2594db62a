"""SAG: a whole run in the paper's coordinates, with backpropagation in place of the adjoint."""

from itertools import pairwise

import pytest

from helpers import BothCoordinates, Dense, Levels, normal
from invdiff.samplers import SAG
from invdiff.schedules import karras

LEVELS = (6.0, 1.7, 0.9, 0.4, 0.0)  # in the paper's images
SHAPE = (1, 3, 3)


@pytest.mark.parametrize("calls", [1, 3])
def test_a_run_equals_the_paper(calls: int) -> None:
    """In z = sqrt(a) x + sqrt(1 - a) n: DDIM to the clean image X, an ancestral step less rho grad_z |y - A X|."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), SHAPE), SHAPE, spread=0.3)
    numbers = world.numbers(5)
    found = world.run(SAG(schedule=Levels(values=tuple(n / 2 for n in LEVELS)), calls=calls), numbers)
    z = LEVELS[0] / (1 + LEVELS[0] ** 2) ** 0.5 * numbers[0]
    for k, (level, after) in enumerate(list(pairwise(LEVELS))[:-1]):  # the last step is a step of `explained`
        a, a_next = 1 / (1 + level**2), 1 / (1 + after**2)
        start = z.clone().requires_grad_(True)
        inner = [1 / (1 + n**2) for n in (*karras(level, LEVELS[-2], calls).tolist(), 0.0)]
        w, clean = start, []
        for b, b_next in pairwise(inner):
            clean.append(world.denoise_vp(w, b))
            w = b_next**0.5 * clean[-1] + (1 - b_next) ** 0.5 * (w - b**0.5 * clean[-1]) / (1 - b) ** 0.5
        residual = world.y - world.matrix @ w
        residual.norm().backward()
        residual, x0, pulled = residual.detach(), clean[0].detach(), a**0.5 * start.grad
        slope = -world.matrix.T @ residual / residual.norm()
        seen = (world.matrix @ pulled).square().sum()
        share = level**2 / (level**2 + world.spread**2 * pulled.square().sum() / seen)
        magnified = (pulled.norm() / slope.norm()).clamp(min=1)
        rho = share * residual.norm() * (slope @ pulled).clamp(min=0) / seen / magnified
        mean = (a_next**0.5 * (1 - a / a_next) * x0 + (a / a_next) ** 0.5 * (1 - a_next) * z) / (1 - a)
        std = ((1 - a / a_next) * (1 - a_next) / (1 - a)) ** 0.5
        z = mean + std * numbers[k + 1] - rho * start.grad
        assert (found[k] - z / a_next**0.5).abs().max() < 1e-5
