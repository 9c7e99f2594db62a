"""D-Flow: the noise it ends at, in closed form where flow and operator are linear, and its descent."""

import pytest
import torch

from helpers import Dense, Levels, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.integrators.adjoint import flow
from invdiff.operators import GaussianNoise
from invdiff.samplers import DFlow
from invdiff.samplers.optimisers import LBFGS

SHAPE, LEVELS = (1, 3, 3), (5.0, 1.0, 0.2, 0.0)


@pytest.mark.parametrize("perturb", [True, False])
def test_it_ends_at_the_mode(perturb: bool) -> None:
    """z minimises |z - z'|^2 / 2 + |y' - A F(z)|^2 / (2 sigma_y^2); as published z' = 0 and y' = y."""
    matrix, y, start = normal(4, 9, seed=1), normal(2, 4, seed=2), normal(2, *SHAPE, seed=3)
    noise = normal(2, 4, seed=4)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.5), y)
    sampler = DFlow(schedule=Levels(values=LEVELS), steps=25, perturb=perturb)
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, Scripted([start, noise]))  # type: ignore[arg-type]
    units = torch.cat([torch.zeros(1, 9), torch.eye(9)]).double().reshape(-1, *SHAPE)
    sigmas = sampler.schedule.levels(prior.scale)
    ends, _ = flow(prior.denoise, prior.start(sigmas[0], units), sigmas)
    ends = ends[-1].flatten(1)
    offset, columns = ends[0], (ends[1:] - ends[0]).T
    about, goal = (start.flatten(1), y + 0.5 * noise) if perturb else (torch.zeros(2, 9).double(), y)
    seen = matrix @ columns
    precision = torch.eye(9).double() + seen.T @ seen / 0.5**2
    data = goal - offset @ matrix.T - about @ seen.T
    z = about + torch.linalg.solve(precision, seen.T @ data.T / 0.5**2).T
    assert (last.x.flatten(1) - offset - z @ columns.T).abs().max() < 1e-4


def test_the_descent_never_rises_and_rows_are_apart() -> None:
    """Rosenbrock's valley and a bowl of condition 100, each as by itself."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.requires_grad_(True)
        valley = 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2
        value = torch.where(torch.arange(len(x)) == 0, valley, 100 * x[:, 0] ** 2 + x[:, 1] ** 2)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    x = torch.tensor([[-1.2, 1.0], [0.3, 2.0]]).double()
    descent = LBFGS(x, *function(x))
    for _ in range(80):
        before, trial = descent.value, descent.trial()
        descent.report(trial.detach(), *function(trial))
        assert (descent.value <= before).all()
    assert (descent.x - torch.tensor([[1.0, 1.0], [0.0, 0.0]])).abs().max() < 1e-5
