"""Independent pixels against the dense Gaussian with the same covariance."""

import math

import pytest
import torch
from torch import Tensor

from invdiff.operators import CT, MRI, Denoising, GaussianNoise, Inpainting
from invdiff.operators.core.base import LinearOperator
from invdiff.priors import DiagonalGaussianPrior, GaussianPrior
from invdiff.problem import InverseProblem

SHAPE = (2, 5, 6)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, STD = draw(*SHAPE, seed=0), 0.1 + draw(*SHAPE, seed=1).abs()
PRIOR = DiagonalGaussianPrior(MEAN, STD)
DENSE = GaussianPrior(MEAN, torch.diag(STD.flatten() ** 2))


def test_it_is_the_dense_gaussian() -> None:
    for sigma in [0.0, 0.01, 1.0, 100.0]:
        x, v = (1 + sigma) * draw(4, *SHAPE, seed=3), draw(4, *SHAPE, seed=4)
        assert torch.allclose(PRIOR.std, DENSE.std)
        assert torch.allclose(PRIOR.log_prob(x, sigma), DENSE.log_prob(x, sigma), rtol=1e-9)
        assert torch.allclose(PRIOR.denoise(x, sigma), DENSE.denoise(x, sigma), rtol=1e-9)
        assert torch.allclose(PRIOR.score(x, sigma), DENSE.score(x, sigma), rtol=1e-9)
        assert torch.allclose(PRIOR.jvp(x, sigma, v), DENSE.jvp(x, sigma, v), rtol=1e-9)


@pytest.mark.parametrize(
    ("operator", "diagonal"),
    [
        (Denoising(), True),
        (Inpainting(keep=0.4), True),
        (CT(views=4, size=SHAPE[1:]), False),
        (MRI(acceleration=2, complex_image=True), False),
    ],
)
def test_posterior(operator: LinearOperator, diagonal: bool) -> None:
    y = operator(PRIOR.sample(1, torch.Generator().manual_seed(0))) + 0.2
    problem = InverseProblem(operator, GaussianNoise(0.3), y, image_shape=SHAPE)
    posterior, evidence = PRIOR.posterior_and_evidence(problem)
    wanted, wanted_evidence = DENSE.posterior_and_evidence(problem)
    assert isinstance(posterior, DiagonalGaussianPrior if diagonal else GaussianPrior)
    x = draw(3, *SHAPE, seed=6)
    assert torch.allclose(posterior.mean, wanted.mean, rtol=1e-7, atol=1e-9)
    assert torch.allclose(posterior.std, wanted.std, rtol=1e-7)
    assert torch.allclose(posterior.log_prob(x), wanted.log_prob(x), rtol=1e-8)
    assert torch.allclose(posterior.score(x, 0.1), wanted.score(x, 0.1), rtol=1e-7, atol=1e-9)
    assert torch.allclose(evidence, wanted_evidence, rtol=1e-9)


def test_a_posterior_at_image_size() -> None:
    prior = DiagonalGaussianPrior.white((3, 256, 256))
    operator, truth = Inpainting(keep=0.5), prior.sample(1, torch.Generator().manual_seed(0))
    y = operator(truth) + 0.1 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    posterior = prior.posterior(InverseProblem(operator, GaussianNoise(0.1), y))
    errors = (truth[0] - posterior.mean) / posterior.std
    assert float(errors.square().mean()) == pytest.approx(1, abs=5 * (2 / errors.numel()) ** 0.5)
    views = InverseProblem(CT(views=8), GaussianNoise(0.1), CT(views=8)(truth))
    with pytest.raises(ValueError, match="CT is not diagonal and takes a 196608 x 196608 matrix"):
        prior.posterior(views)


def test_pixels_that_are_known() -> None:
    prior = DiagonalGaussianPrior(torch.full((1, 1, 2), 0.5), torch.tensor([[[0.0, 1.0]]]))
    x = torch.tensor([[[[2.0, -1.0]]]])
    assert torch.equal(prior.denoise(x, 0.0), x)
    assert float(prior.denoise(x, 1e-3)[0, 0, 0, 0]) == 0.5
    assert torch.equal(prior.sample(3, torch.Generator())[..., 0], torch.full((3, 1, 1), 0.5))
    posterior = prior.posterior(InverseProblem(Denoising(), GaussianNoise(0.1), x))
    assert posterior.mean[0, 0].tolist() == pytest.approx([0.5, 0.5 - 1.5 / 1.01])
    for ask in (prior.log_prob, prior.score):
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            ask(x, 0.0)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (torch.zeros(4, 4), torch.ones(4, 4), r"must be \(C, H, W\)"),
        (torch.full((1, 4, 4), math.nan), torch.ones(1, 4, 4), "finite numbers"),
        (torch.zeros(1, 4, 4), torch.ones(4, 4), r"the shape of the mean, \(1, 4, 4\), got \(4, 4\)"),
        (torch.zeros(1, 4, 4), -torch.ones(1, 4, 4), ">= 0 and finite, got -1"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 4), math.nan), ">= 0 and finite, got nan"),
    ],
)
def test_what_are_no_pixels(mean: Tensor, std: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiagonalGaussianPrior(mean, std)


def test_what_is_no_std() -> None:
    for std in [0.0, -1.0, math.nan, math.inf]:
        with pytest.raises(ValueError, match="must be positive and finite"):
            DiagonalGaussianPrior.white((1, 8, 8), std=std)
