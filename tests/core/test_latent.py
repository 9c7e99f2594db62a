"""Problems in the space of a latent prior, with its stand-in of a few weights, whose decoder is linear."""

import pytest
import torch
from torch import Tensor

from invdiff import Compute
from invdiff.latent import decoded, latent_problem
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import LatentPrior
from invdiff.samplers import DAPS, DPS, MCG, Sampler
from invdiff.schedules import EDM

SCHEDULE = EDM(steps=10, sigma_max=5.0, sigma_min=0.02)
QUIET = Compute(device="cpu", progress=False)
OPERATOR = Inpainting.random((1, 16, 16), keep=0.5, seed=0)


class Codes(LatentPrior):
    """The exact denoiser of independent standard normal codes."""

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return x / (1 + torch.as_tensor(sigma).reshape(-1, 1, 1, 1) ** 2)


@pytest.fixture
def prior() -> LatentPrior:
    prior = LatentPrior.example()
    prior.__class__ = Codes
    return prior


@pytest.fixture
def truth(prior: LatentPrior) -> Tensor:
    return prior.decode(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "sampler", [DPS(schedule=SCHEDULE), DAPS(schedule=SCHEDULE, inner="hamiltonian", chain_steps=10)]
)
def test_samples_of_images(sampler: Sampler, prior: LatentPrior, truth: Tensor) -> None:
    """They fit the measured pixels far better than samples of the prior."""
    noise = GaussianNoise(0.1)
    y = noise.sample(
        OPERATOR(truth), [torch.Generator().manual_seed(i) for i in range(2)], OPERATOR.measured((1, 16, 16))
    )
    problem = latent_problem(OPERATOR, noise, y, prior)
    assert problem.image_shape == (4, 8, 8)
    posterior = sampler.sample(problem, prior, num_samples=2, compute=QUIET)
    images = decoded(posterior, prior)
    assert images.samples.shape == (2, 2, 1, 16, 16)
    assert torch.equal(images.samples[1, 0], prior.decode(posterior.samples[1, :1])[0])
    assert images.cost is posterior.cost
    assert torch.allclose(images.misfit, posterior.misfit, rtol=1e-4)
    assert not images.diverged.any()
    drawn = prior.decode(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9)))

    def misfit(x: Tensor) -> float:
        return float((OPERATOR(x) - y).square().mean())

    assert misfit(images.samples[:, 0]) < 0.2 * misfit(drawn)


def test_the_problem_is_that_of_the_images(prior: LatentPrior, truth: Tensor) -> None:
    """Its likelihood is that of the decoded codes, and a sampler for linear operators refuses it."""
    y = OPERATOR(truth)
    problem = latent_problem(OPERATOR, GaussianNoise(0.1), y, prior)
    codes = prior.encode(truth)
    assert problem.nll(codes).abs().max() < 1e-6
    assert problem.nll_gradient(codes + 1).shape == codes.shape
    with pytest.raises(ValueError, match="linear operator"):
        MCG().sample(problem, prior, compute=QUIET)


def test_codes_of_any_size(prior: LatentPrior, truth: Tensor) -> None:
    prior.shape = None
    with pytest.raises(ValueError, match="sample_size"):
        latent_problem(OPERATOR, GaussianNoise(0.1), OPERATOR(truth), prior)
