"""Guided denoisers: where the last step ends."""

import pytest
import torch

from helpers import Dense, Levels, Normals, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import DSG, LGD, TMPD

SHAPE, LEVELS = (1, 3, 3), Levels(values=(5.0, 1.0, 0.2, 0.0))


@pytest.mark.parametrize("method", [DSG, LGD, TMPD])
def test_the_last_step_explains_precise_data_of_linear_operators(method: type[DSG | LGD | TMPD]) -> None:
    """To a misfit of 1 + 4 sqrt(2 / 4) at the most; three steps leave its clean estimates far above."""
    matrix, prior = normal(4, 9, seed=1), gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    y = (0.5 + 0.3 * normal(1, 9, seed=2)) @ matrix.T
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.01), y)
    with torch.no_grad():
        *_, last = method(schedule=LEVELS).iterate(problem, prior, Normals(1, SHAPE))  # type: ignore[arg-type]
    assert float(problem.misfit(last.x0)) > 20
    assert float(problem.misfit(last.x)) < 4
