"""Dreamguider: a whole run in the paper's coordinates, and steps that the noise of y bounds."""

from itertools import pairwise

import pytest
import torch

from helpers import Answers, BothCoordinates, Dense, Levels, Scripted, normal
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import Dreamguider

LEVELS = (6.0, 1.7, 0.9, 0.4, 0.0)  # in the paper's images
SHAPE = (1, 3, 3)


def test_a_run_equals_the_paper() -> None:
    """The mean of DDPM less v (c sqrt(a_s) g_D - d ... g_eps) times the distance over gradients."""
    world = BothCoordinates(Dense(normal(4, 9, seed=5), SHAPE), SHAPE, spread=0.3)
    numbers = world.numbers(5)
    levels = Levels(values=tuple(n / 2 for n in LEVELS))
    found = world.run(Dreamguider(schedule=levels, low=0.7, high=0.2, bounded=False), numbers)
    bar = [1 / (1 + level**2) for level in LEVELS]
    z = first = (1 - bar[0]) ** 0.5 * numbers[0]
    farthest, squares = 0.0, 0.0
    for k, (a, a_next) in enumerate(pairwise(bar[:-1])):  # the last step is one of `explained`
        x0 = world.denoise_vp(z, a)
        eps = ((z - a**0.5 * x0) / (1 - a) ** 0.5).requires_grad_(True)
        clean = (z - (1 - a) ** 0.5 * eps) / a**0.5
        clean.retain_grad()
        (world.y - world.matrix @ clean).norm().backward()
        alpha = a / a_next
        farthest, squares = max(farthest, float((z - first).norm())), squares + float(clean.grad.square().sum())
        variance = (1 - alpha) * (1 - a_next) / (1 - a)
        pull = 0.7 * a_next**0.5 * clean.grad - 0.2 * (1 - alpha) / (alpha * (1 - a)) ** 0.5 * eps.grad
        mean = (a_next**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - a_next) * z) / (1 - a)
        z = mean - variance * farthest / squares**0.5 * pull + variance**0.5 * numbers[k + 1]
        assert (found[k] - z / a_next**0.5).abs().max() < 1e-5


def test_bounded_steps_do_not_go_past_the_data() -> None:
    """The clean estimate goes to y where its noise is small, however large the weights; first z has to move."""
    y, x0 = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.5, 0.9]]).double()
    problem = InverseProblem(Dense(torch.eye(2), (1, 1, 2)), GaussianNoise(0.01), y)
    sampler = Dreamguider(schedule=Levels(values=(2.0, 1.0, 0.5, 0.0)), low=1e3, high=1e3)
    numbers = Scripted([normal(1, 1, 1, 2, seed=k) for k in range(3)])
    steps = sampler.iterate(problem, Answers(x0.reshape(1, 1, 1, 2)), numbers)  # type: ignore[arg-type]
    with torch.no_grad():
        first, second = next(steps), next(steps)
    assert float(first.x0.flatten()[1]) == pytest.approx(0.9)
    assert float((second.x0 - 0.5).abs().max()) < 0.02
