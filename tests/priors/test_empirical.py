"""A finite set of images: softmax over it, and Bayes' rule image by image."""

import pytest
import torch
from torch import Tensor

from invdiff.operators import MRI, GaussianNoise, Inpainting, LaplaceNoise, Noise, NonlinearBlur, Operator, PoissonNoise
from invdiff.priors import EmpiricalPrior, GaussianMixturePrior
from invdiff.problem import InverseProblem

SHAPE, N = (1, 4, 4), 16


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES = 0.5 + 0.2 * draw(7, *SHAPE, seed=0)
WEIGHTS = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.1, 0.2, 0.1], dtype=torch.float64)


def test_it_is_the_limit_of_narrow_gaussians() -> None:
    for sigma in [0.05, 0.4, 30.0]:
        prior = EmpiricalPrior(IMAGES, WEIGHTS)
        narrow = GaussianMixturePrior.isotropic(WEIGHTS, IMAGES, 1e-6)
        x, v = (
            prior.sample(4, torch.Generator().manual_seed(0)) + sigma * draw(4, *SHAPE, seed=1),
            draw(4, *SHAPE, seed=2),
        )
        assert torch.allclose(prior.denoise(x, sigma), narrow.denoise(x, sigma), rtol=1e-6, atol=1e-8)
        assert torch.allclose(prior.log_prob(x, sigma), narrow.log_prob(x, sigma), rtol=1e-6)
        assert torch.allclose(prior.jvp(x, sigma, v), narrow.jvp(x, sigma, v), rtol=1e-6, atol=1e-8)
        assert torch.allclose(prior.mean, narrow.mean)
        assert torch.allclose(prior.std, narrow.std, atol=1e-9)


def test_without_noise_the_nearest_image_is_left() -> None:
    prior = EmpiricalPrior(IMAGES, WEIGHTS)
    x = IMAGES[[1, 4]] + 0.01 * draw(2, *SHAPE, seed=1)
    for sigma in (0.0, 1e-12, torch.tensor([0.0, 1e-3])):
        assert torch.allclose(prior.denoise(x, sigma), IMAGES[[1, 4]], atol=1e-12)
    assert not torch.allclose(prior.denoise(IMAGES[2:3], 0.0), IMAGES[2:3])  # it has no weight
    assert torch.equal(prior.jvp(x, 0.0, x), torch.zeros_like(x))
    for ask in (prior.log_prob, prior.score):
        for sigma in (0.0, torch.tensor([0.0, 1.0])):
            with pytest.raises(ValueError, match="no density at sigma = 0"):
                ask(x, sigma)


def test_the_score_of_images_as_close_to_each_other_as_the_noise() -> None:
    """In float32 the differences that count are near the rounding of a pixel."""
    near = (0.5 + 1e-5 * draw(3, *SHAPE, seed=0)).float()
    x = near[:1] + 1e-5 * draw(1, *SHAPE, seed=1).float()
    leaf = x.double().requires_grad_(True)
    (wanted,) = torch.autograd.grad(EmpiricalPrior(near.double()).log_prob(leaf, 1e-5).sum(), leaf)
    assert (EmpiricalPrior(near).score(x, 1e-5) - wanted).norm() < 1e-5 * wanted.norm()


def test_samples_come_with_their_weights() -> None:
    prior, count = EmpiricalPrior(IMAGES, WEIGHTS), 20_000
    x = prior.sample(count, torch.Generator().manual_seed(0))
    found = (x[:, None] == IMAGES).flatten(2).all(2).double().mean(0)
    assert found.sum() == pytest.approx(1)
    assert ((found - WEIGHTS).abs() <= 5 * (WEIGHTS * (1 - WEIGHTS) / count).sqrt()).all()


@pytest.mark.parametrize(
    ("operator", "noise"),
    [
        (Inpainting(keep=0.5), GaussianNoise(0.3)),
        (MRI(acceleration=2, center_fraction=0.3), GaussianNoise(0.3)),
        (NonlinearBlur.example()[0], LaplaceNoise(0.3)),
        (Inpainting(keep=0.5), PoissonNoise(0.2)),
    ],
)
def test_posterior_of_any_operator_and_noise(operator: Operator, noise: Noise) -> None:
    y = operator(IMAGES[:1].clamp(min=0.1).float()).to(torch.complex128 if isinstance(operator, MRI) else torch.float64)
    problem = InverseProblem(operator, noise, y, image_shape=SHAPE)
    wanted = WEIGHTS * torch.stack([(-problem.nll(x[None])[0]).exp() for x in IMAGES])
    posterior = EmpiricalPrior(IMAGES, WEIGHTS).posterior(problem)
    assert torch.allclose(posterior.weights, wanted / wanted.sum(), rtol=1e-6)
    assert torch.equal(posterior.images, IMAGES)


def test_evidence_has_all_constants() -> None:
    prior, noise = EmpiricalPrior(IMAGES, WEIGHTS), GaussianNoise(0.3)
    for operator in (Inpainting(keep=0.5), MRI(acceleration=2, center_fraction=0.3)):
        y = operator(IMAGES[:1])
        seen = operator.measured(tuple(y.shape[1:])).expand(y.shape)
        residual = (y - operator(IMAGES))[seen.expand(7, *y.shape[1:])].reshape(7, -1)
        std = noise.sigma.double()
        if y.is_complex():
            residual, std = torch.view_as_real(residual).flatten(1), std / 2**0.5
        wanted = WEIGHTS.log() + torch.distributions.Normal(0, std).log_prob(residual).sum(1)
        found = prior.log_evidence(InverseProblem(operator, noise, y))
        assert torch.allclose(found, wanted.logsumexp(0), rtol=1e-7)
    with pytest.raises(ValueError, match="Gaussian noise, got LaplaceNoise"):
        prior.log_evidence(InverseProblem(Inpainting(keep=0.5), LaplaceNoise(), IMAGES[:1]))


def test_two_measurements_one_after_the_other() -> None:
    prior, first, second = (
        EmpiricalPrior(IMAGES),
        *(InverseProblem(Inpainting(keep=0.5, seed=seed), GaussianNoise(0.3), IMAGES[3:4]) for seed in (0, 1)),
    )
    together = -(first.select(torch.zeros(7).long()).nll(IMAGES) + second.select(torch.zeros(7).long()).nll(IMAGES))
    assert torch.allclose(prior.posterior(first).posterior(second).weights, together.softmax(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "weights", "words"),
    [
        (IMAGES[0], None, r"\(N, C, H, W\)"),
        (IMAGES * torch.nan, None, "NaN"),
        (IMAGES, WEIGHTS[:3], "weights of 7 images"),
        (IMAGES, 2 * WEIGHTS, "with sum 2"),
        (IMAGES, WEIGHTS * torch.nan, ">= 0, with sum 1, got .* nan"),
    ],
)
def test_what_is_no_set_of_images(images: Tensor, weights: Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EmpiricalPrior(images, weights)
