"""The Gaussian prior: every closed form against dense algebra and autograd, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import Denoising, GaussianBlur, Inpainting, Operator
from invdiff.priors import GaussianPrior

SHAPE = (2, 2, 3)
N = 12


@pytest.fixture(scope="module")
def law(normal: Callable) -> tuple[Tensor, Tensor]:
    """A mean and a full covariance that no symmetry makes easy."""
    root = normal(N, N, seed=1)
    return normal(*SHAPE, seed=2), root @ root.T / N + 0.05 * torch.eye(N, dtype=torch.float64)


@pytest.fixture(scope="module")
def prior(law: tuple[Tensor, Tensor]) -> GaussianPrior:
    return GaussianPrior(*law)


def dense_denoise(law: tuple[Tensor, Tensor], x: Tensor, sigma: float) -> Tensor:
    mean, covariance = law
    z = torch.linalg.solve(covariance + sigma**2 * torch.eye(N, dtype=torch.float64), (x - mean).flatten(1).T)
    return mean + (covariance @ z).T.reshape(x.shape)


def test_denoise_is_the_dense_formula(law: tuple, prior: GaussianPrior, normal: Callable) -> None:
    for sigma in [1e-3, 0.1, 1.0, 80.0]:
        x = normal(5, *SHAPE, seed=3) * (1 + sigma)
        assert torch.allclose(prior.denoise(x, sigma), dense_denoise(law, x, sigma), rtol=1e-8, atol=1e-10)


def test_without_noise_the_image_is_known() -> None:
    """Also along directions that the prior does not have."""
    flat = GaussianPrior(torch.zeros(1, 1, 2), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    x = torch.tensor([[[[2.0, -1.0]]]])
    assert torch.allclose(flat.denoise(x, 0.0), x, atol=1e-6)
    assert torch.allclose(flat.denoise(x, 1e-3), torch.tensor(0.5), atol=1e-3)
    exact = GaussianPrior(torch.zeros(1, 1, 2), torch.diag(torch.tensor([1.0, 0.0])))
    for ask in (exact.log_prob, exact.score):
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            ask(x, 0.0)


def test_log_prob_is_the_normal_density(law: tuple, prior: GaussianPrior, normal: Callable) -> None:
    for sigma in [0.0, 0.3]:
        mean, covariance = law
        wanted = torch.distributions.MultivariateNormal(
            mean.flatten(), covariance + sigma**2 * torch.eye(N, dtype=torch.float64)
        )
        x = normal(5, *SHAPE, seed=5)
        assert torch.allclose(prior.log_prob(x, sigma), wanted.log_prob(x.flatten(1)), rtol=1e-9)


def test_samples_have_the_mean_and_the_covariance(law: tuple, prior: GaussianPrior) -> None:
    mean, covariance = law
    count = 40_000
    x = prior.sample(count, torch.Generator().manual_seed(0)).flatten(1)
    variance = covariance.diagonal()
    assert ((x.mean(0) - mean.flatten()).abs() < 5 * (variance / count).sqrt()).all()
    errors = ((torch.outer(variance, variance) + covariance**2) / count).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * errors).all()
    again = prior.sample(3, torch.Generator().manual_seed(0))
    assert torch.equal(again, prior.sample(3, torch.Generator().manual_seed(0)))
    assert again.shape == (3, *SHAPE)


def test_posterior_is_the_dense_formula(law: tuple, prior: GaussianPrior, normal: Callable) -> None:
    mean, covariance = law
    matrix, y, noise_std = normal(7, N, seed=6), normal(7, seed=7), 0.3
    precision = torch.linalg.inv(covariance) + matrix.T @ matrix / noise_std**2
    data = torch.linalg.inv(covariance) @ mean.flatten() + matrix.T @ y / noise_std**2
    posterior = prior.condition(matrix, y, noise_std)
    assert torch.allclose(posterior.covariance, torch.linalg.inv(precision), rtol=1e-7, atol=1e-10)
    assert torch.allclose(posterior.mean.flatten(), torch.linalg.solve(precision, data), rtol=1e-7)
    assert posterior.shape == SHAPE


def test_posterior_of_nothing_is_the_prior(law: tuple, prior: GaussianPrior) -> None:
    posterior = prior.condition(torch.zeros(1, N), torch.zeros(1), 1.0)
    assert torch.allclose(posterior.mean, law[0])
    assert torch.allclose(posterior.covariance, law[1])


@pytest.mark.parametrize("operator", [GaussianBlur(std=1.0, kernel_size=9), Inpainting(keep=0.4), Denoising()])
def test_posterior_in_float32(operator: Operator) -> None:
    """The textbook formula, a difference of covariances, is no covariance any more in float32."""
    for noise_std in [0.1, 0.01, 1e-4]:
        prior = GaussianPrior.example()
        matrix = operator(torch.eye(256).reshape(256, 1, 16, 16)).flatten(1).T
        truth = prior.sample(1, torch.Generator().manual_seed(1))
        y = operator(truth).flatten() + noise_std * torch.randn(256, generator=torch.Generator().manual_seed(2))
        posterior = prior.condition(matrix, y, noise_std)
        assert posterior.mean.dtype == torch.float32
        assert posterior.mean.isfinite().all()
        assert (posterior.eigenvalues >= 0).all()
        # It must know more than the prior did, and the truth must look like a draw from it.
        assert posterior.covariance.trace() < prior.covariance.trace()
        seen = (matrix @ (posterior.mean - truth).flatten()).square().mean().sqrt()
        assert seen < 3 * noise_std + 1e-3


def test_a_covariance_of_low_rank_in_float32(normal: Callable) -> None:
    """Ten images span nine directions: rounding makes the other eigenvalues slightly negative."""
    images = normal(10, 64, seed=8, dtype=torch.float32)
    prior = GaussianPrior(images.mean(0).reshape(1, 8, 8), images.T.cov())
    assert (prior.eigenvalues >= 0).all()
    assert int((prior.eigenvalues > 1e-4).sum()) == 9


@pytest.mark.parametrize(
    ("covariance", "words"),
    [
        (torch.eye(3), "12 x 12 for a mean of 12 values, got \\(3, 3\\)"),
        (torch.eye(N) + torch.ones(N, N).triu(1), "symmetric"),
        (torch.diag(torch.arange(12.0) - 1), "positive semi-definite, got an eigenvalue of -1"),
    ],
)
def test_what_is_no_covariance(covariance: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianPrior(torch.zeros(SHAPE), covariance)
    with pytest.raises(ValueError, match="either a covariance or a root"):
        GaussianPrior(torch.zeros(SHAPE))
