"""Ensembles without gradients on digits drawn from a mixture, for each kind of operator that they accept."""

import pytest
import torch

from invdiff import Compute, InverseProblem, load_prior
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import CallableOperator, GaussianNoise, Inpainting, LinearCallableOperator, Operator
from invdiff.problem import simulate
from invdiff.samplers import EKI, Sampler

SHAPE = (1, 32, 32)


def blocks(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x, 8)


OPERATORS: dict[str, Operator] = {
    "mask": Inpainting(keep=0.03),
    "linear": LinearCallableOperator(blocks, image_shape=SHAPE),
    "black box": CallableOperator(lambda x: blocks(x) ** 2, differentiable=False, image_shape=SHAPE),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("sampler", [EKI(ensemble=64)], ids=lambda sampler: sampler.name())
def test_digits(sampler: Sampler, kind: str) -> None:
    """Above the first guess, or the centre of the prior where there is none, and fitted to the noise."""
    prior, operator, noise = load_prior("digits_mixture"), OPERATORS[kind], GaussianNoise(0.05)
    names, images = drawn_from_prior(2, prior=prior)
    x = to_tensor(images, names)
    problem = InverseProblem(operator, noise, simulate(x, operator, noise), image_shape=SHAPE)
    posterior = sampler.sample(problem, prior, num_samples=4, compute=Compute(device="cpu", progress=False))
    guess = prior.centre.expand_as(x) if problem.first_guess is None else problem.first_guess
    # The error of the mean of 4 samples, less what their number adds to it.
    error = (posterior.mean - x).square().mean() - posterior.std.square().mean() / 4
    assert error < (guess - x).square().mean()
    assert float(posterior.misfit.mean()) < 2
