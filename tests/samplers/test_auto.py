"""`sampler=auto`: the rules by which a sampler is chosen, each with its reason."""

import pytest
import torch

from invdiff import InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import (
    HDR,
    JPEG,
    CallableOperator,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    Noise,
    Operator,
    PhaseRetrieval,
    PoissonNoise,
    Quantisation,
    compose,
)
from invdiff.samplers import DAPS, DPS, Auto, EnKG, Sampler

SHAPE = (1, 8, 8)
HALF = LinearCallableOperator(lambda x: x / 2, image_shape=SHAPE)
BLACK_BOX = CallableOperator(torch.square, differentiable=False, image_shape=SHAPE)


@pytest.mark.parametrize(
    ("operator", "noise", "kind", "words"),
    [
        (Inpainting(keep=0.5), GaussianNoise(0.1), DAPS, "daps: Inpainting is linear and the noise Gaussian"),
        (HALF, GaussianNoise(0.1), DAPS, "by conjugate gradients"),
        (Inpainting(keep=0.5), PoissonNoise(0.1), DAPS, "the noise is PoissonNoise"),
        (JPEG(), GaussianNoise(0.1), DPS, "dps: JPEG has steps"),
        (compose([HDR(), Quantisation()]), GaussianNoise(0.1), DPS, "has steps"),
        (HDR(), GaussianNoise(0.1), DAPS, "small steps, as HDR is nonlinear and differentiable"),
        (HDR(), PoissonNoise(0.1), DAPS, "Hamiltonian chains, as HDR is nonlinear"),
        (
            PhaseRetrieval(),
            GaussianNoise(0.1),
            DAPS,
            "Hamiltonian chains at many levels, as more than one image fits the data of PhaseRetrieval",
        ),
        (BLACK_BOX, GaussianNoise(0.1), EnKG, "enkg: CallableOperator is a black box"),
    ],
)
def test_the_choice_runs_and_has_a_reason(operator: Operator, noise: Noise, kind: type[Sampler], words: str) -> None:
    problem, prior = InverseProblem(operator, noise, operator(torch.full((1, *SHAPE), 0.5))), WhitePrior()
    sampler, reason = Auto().resolve(problem, prior)
    assert type(sampler) is kind
    assert words in reason
    assert not sampler.needs().missing(problem, prior)
