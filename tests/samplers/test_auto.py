"""`sampler=auto`: the rules by which a sampler is chosen, each with its reason."""

import pytest
import torch

from invdiff import Compute, InverseProblem
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
from invdiff.problem import Unsupported
from invdiff.samplers import DAPS, DPS, Auto, EnKG, MomentDraw, PnPDM, REDDiff, Sampler

SHAPE = (1, 8, 8)
HALF = LinearCallableOperator(lambda x: x / 2, image_shape=SHAPE)
BLACK_BOX = CallableOperator(torch.square, differentiable=False, image_shape=SHAPE)


@pytest.mark.parametrize(
    ("operator", "noise", "kind", "words"),
    [
        (Inpainting(keep=0.5), GaussianNoise(0.1), MomentDraw, "momentdraw: Inpainting is linear, the noise Gaussian"),
        (HALF, GaussianNoise(0.1), MomentDraw, "and the prior differentiable"),
        (Inpainting(keep=0.5), PoissonNoise(0.1), DAPS, "the noise is PoissonNoise"),
        (JPEG(), GaussianNoise(0.1), DPS, "dps: JPEG has steps"),
        (compose([HDR(), Quantisation()]), PoissonNoise(0.1), DPS, "has steps"),
        (HDR(), GaussianNoise(0.1), MomentDraw, "momentdraw: HDR is nonlinear and differentiable"),
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


class Opaque(WhitePrior):
    differentiable = False


@pytest.mark.parametrize(("operator", "words"), [(Inpainting(keep=0.5), "in closed form"), (HALF, "by conjugate grad")])
def test_a_prior_without_gradients_gets_the_closed_form(operator: Operator, words: str) -> None:
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(torch.full((1, *SHAPE), 0.5)))
    sampler, reason = Auto().resolve(problem, Opaque())
    assert type(sampler) is DAPS
    assert words in reason
    assert not sampler.needs().missing(problem, Opaque())


def test_a_prior_without_gradients_and_an_operator_with_steps_get_no_chain() -> None:
    operator = Quantisation()
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(torch.full((1, *SHAPE), 0.5)))
    sampler, reason = Auto().resolve(problem, Opaque())
    assert type(sampler) is EnKG
    assert "Quantisation has steps" in reason
    for cls in (DAPS, PnPDM, REDDiff):
        with pytest.raises(Unsupported, match=r"an operator without steps .*compatible samplers: .*enkg"):
            cls().check(problem, Opaque())
    DAPS(inner="metropolis").check(problem, Opaque())


@pytest.mark.parametrize("prior", [WhitePrior(), Opaque()])
def test_a_picture_is_nearer_to_the_posterior_mean_than_a_sample(prior: WhitePrior) -> None:
    """Half of the pixels are missing: samples vary there as the prior does, by 0.25, with goal=picture less."""
    operator = Inpainting(mask=torch.arange(64).reshape(8, 8) % 2 == 0)
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(torch.full((1, *SHAPE), 0.4)))
    compute = Compute(device="cpu", progress=False)
    spread = {
        goal: Auto(goal=goal).sample(problem, prior, num_samples=40, compute=compute).std[..., 1::2].mean()  # type: ignore[arg-type]
        for goal in ("posterior", "picture")
    }
    assert spread["picture"] < 0.9 * spread["posterior"]
