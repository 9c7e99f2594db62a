"""Operator calls of one sample: forward models, adjoints, solves and Jacobian products, each counted once."""

import pytest
import torch

from helpers import normal
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import GaussianBlur, GaussianNoise
from invdiff.samplers import (
    ALDI,
    DAPS,
    DPS,
    DSD,
    DSG,
    EKI,
    LGD,
    LMAPS,
    MCG,
    MGPS,
    MMPS,
    RDMC,
    RSD,
    SAG,
    SITCOM,
    TMPD,
    DFlow,
    Dreamguider,
    EnKG,
    FlowChef,
    MomentDraw,
    PiGDM,
    REDDiff,
    Sampler,
    ScorePriorVI,
)
from invdiff.schedules import EDM, VP

SEVEN = {"schedule": VP(steps=7)}
NORM = 20 * 2 * 2  # of the operator: iterations, each with two gradients, of a call and a Jacobian product
CASES: list[tuple[Sampler, int]] = [
    # A call and a Jacobian product in every step; two calls more for the longest step.
    (DPS(**SEVEN), NORM + 7 * 4),
    (DPS(**SEVEN, guidance="published"), 7 * 2),
    (DPS(**SEVEN, guidance="likelihood"), 7 * 2),
    # Two calls, an adjoint and a pseudo-inverse; without projection one call and one adjoint.
    (MCG(**SEVEN, projection="exact", project_above=0.0), NORM + 7 * 4),
    (MCG(**SEVEN, projection="exact", project_above=0.0, weight="pinv"), 7 * 4),
    (MCG(**SEVEN, projection="exact", project_above=1e6), NORM + 7 * 2),
    # A call, an adjoint and a solve, and as much in every iteration; by conjugate gradients a call, then two products.
    (MMPS(**SEVEN, iterations=1), 7 * 6),
    (MMPS(**SEVEN, iterations=3, solver="cg"), 7 * 7),
    # Two calls, two adjoints and two solves, and a call, an adjoint and a solve in every iteration.
    (MomentDraw(**SEVEN, root=2, iterations=3), 7 * (6 + 3 * 3)),
    # A call, an adjoint and a solve; by default a call more for the length of the step.
    (PiGDM(**SEVEN), 7 * 4),
    (PiGDM(**SEVEN, weight="published"), 7 * 3),
    # A call for the residual, two with an adjoint each for the variances and the change, one for its length;
    # a call, an adjoint and a solve at the end, as of the next two.
    (TMPD(**SEVEN), 7 * 5 + 3),
    # A call and a Jacobian product for each draw; two calls for the length.
    (LGD(**SEVEN, draws=3), 7 * (3 * 2 + 2) + 3),
    # A call and a Jacobian product; two calls more for the longest step, where there is noise to replace.
    (DSG(**SEVEN), 7 * 2 + 6 * 2 + 3),
    (Dreamguider(**SEVEN), 7 * 4 + 3),
    (SAG(**SEVEN, calls=2), 7 * 4 + 3),
    (FlowChef(**SEVEN, iterations=2), 6 * 2 * 4),
    # A call, an adjoint and a solve.
    (LMAPS(**SEVEN), 7 * 3),
    # A call and a Jacobian product for each of two gradients an iteration; of the start and each step.
    (MGPS(**SEVEN, iterations=3), 6 * 3 * 2 * 2),
    (DFlow(steps=3), 4 * 2),
    (SITCOM(**SEVEN, iterations=3), 7 * 3 * 2),
    (DAPS(**SEVEN, inner="closed_form"), 7 * 3),
    # A call and a Jacobian product in every step of the chain, and four times as much for the step size.
    (DAPS(**SEVEN, inner="langevin", chain_steps=5), 7 * (5 + 4) * 2),
    (DAPS(**SEVEN, inner="hamiltonian", chain_steps=5), 7 * (5 + 4) * 2),
    # A call in every step, one at the start, three for the step size.
    (DAPS(**SEVEN, inner="metropolis", chain_steps=5), 7 * (5 + 1 + 3)),
    # A call and a Jacobian product in every step, and one call for the start.
    (REDDiff(**SEVEN), NORM + 7 * 2 + 1),
    (REDDiff(**SEVEN, data_term="published"), 7 * 2 + 1),
    # A call and a Jacobian product in every step of the chain, and four times as much for the step size.
    (RDMC(**SEVEN, inner=5), 7 * (5 + 4) * 2),
    # That of every particle.
    (RSD(**SEVEN, ensemble=3), 3 * (NORM + 7 * 2 + 1)),
    (DSD(**SEVEN), NORM + 7 * 2 + 1),
    # A call and a Jacobian product in every update, and one call for the start.
    (ScorePriorVI(schedule=EDM(steps=3), updates=5), 5 * 2 + 1),
    # A call in every update.
    (ALDI(schedule=EDM(steps=7), ensemble=128, updates=3), 128 * 3),
    (EKI(schedule=EDM(steps=7), ensemble=128, updates=3), 128 * 3),
    # Two updates of six particles in every step but the first.
    (EnKG(schedule=EDM(steps=7), ensemble=6, ode_steps=3), 6 * 6 * 2),
]


@pytest.mark.parametrize("name", sorted({type(sampler).__name__ for sampler, _ in CASES}))
def test_operator_calls(name: str) -> None:
    operator = GaussianBlur(std=1.0, kernel_size=5)
    y = operator(0.5 + 0.2 * normal(2, 1, 8, 8, dtype=torch.float32))
    problem = InverseProblem(operator, GaussianNoise(0.1), y)
    for sampler, calls in CASES:
        if type(sampler).__name__ == name:
            compute = Compute(device="cpu", progress=False)
            found = sampler.sample(problem, WhitePrior(), num_samples=3, compute=compute)
            assert found.cost.operator_calls == 2 * 3 * calls, sampler
