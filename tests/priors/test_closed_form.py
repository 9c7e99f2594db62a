"""What every prior in closed form promises, by autograd in float64."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from invdiff.operators import Denoising, GaussianNoise, Inpainting, LaplaceNoise, PhaseRetrieval
from invdiff.priors import (
    ClosedFormPrior,
    DiagonalGaussianPrior,
    EmpiricalPrior,
    GaussianFieldPrior,
    GaussianMixturePrior,
    GaussianPrior,
    LowRankMixturePrior,
)
from invdiff.problem import InverseProblem

SHAPE = (1, 4, 4)
N = 16


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(sigma: float = 0.3) -> InverseProblem:
    return InverseProblem(Inpainting(keep=0.5), GaussianNoise(sigma), draw(1, *SHAPE, seed=9))


def priors(dtype: torch.dtype) -> dict[str, ClosedFormPrior]:
    """The same laws in any precision: their parameters are numbers of float32."""

    def rounded(x: Tensor) -> Tensor:
        return x.float().to(dtype)

    weights, means = rounded(torch.tensor([0.5, 0.3, 0.2])), rounded(draw(3, *SHAPE, seed=1))
    roots = draw(3, N, N, seed=2) / 4
    covariances = rounded(roots @ roots.mT + 0.05 * torch.eye(N))
    low = LowRankMixturePrior(weights, means, rounded(draw(3, N, 2, seed=3)), rounded(torch.tensor([0.2, 0.3, 0.5])))
    isotropic = GaussianMixturePrior.isotropic(weights, means, 0.4)
    return {
        "gaussian": GaussianPrior(means[0], covariances[0]),
        "diagonal": DiagonalGaussianPrior(means[0], 0.2 + means[1].abs()),
        "field": GaussianFieldPrior.matern(SHAPE, length=2.0).to(dtype),
        "dense mixture": GaussianMixturePrior(weights, means, covariances),
        "isotropic mixture": isotropic,
        "posterior of the isotropic": isotropic.posterior(measured()),
        "low rank": low,
        "posterior of the low rank": low.posterior(measured()),
        "empirical": EmpiricalPrior(means, weights),
    }


PRIORS, SINGLE = priors(torch.float64), priors(torch.float32)
every = pytest.mark.parametrize("name", PRIORS)


@every
def test_score_and_denoiser_are_of_the_density(name: str) -> None:
    for sigma in [0.03, 0.5, 20.0]:
        prior = PRIORS[name]
        x = (prior.sample(4, torch.Generator().manual_seed(0)) + sigma * draw(4, *SHAPE, seed=4)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(prior.log_prob(x, sigma).sum(), x)
        assert torch.allclose(prior.score(x, sigma), gradient, rtol=1e-6, atol=1e-9 / sigma)
        assert torch.allclose(prior.denoise(x, sigma), x + sigma**2 * gradient, rtol=1e-6, atol=1e-9)


@every
def test_the_score_keeps_its_digits_where_there_is_little_noise(name: str) -> None:
    """D - x would be nothing but rounding."""
    for sigma in (1e-4,) if name == "empirical" else (0.0, 1e-4):  # a set of images has no density without noise
        x = PRIORS[name].sample(4, torch.Generator().manual_seed(0)) + sigma * draw(4, *SHAPE, seed=4)
        x = x.float().double().requires_grad_(True)
        (wanted,) = torch.autograd.grad(PRIORS[name].log_prob(x, sigma).sum(), x)
        for prior, image, error in ((PRIORS[name], x, 1e-9), (SINGLE[name], x.float(), 1e-5)):
            found = prior.score(image, sigma)
            assert found.dtype == image.dtype
            assert (found - wanted).norm() < error * wanted.norm()


@every
def test_jacobian(name: str) -> None:
    for sigma in [0.03, 0.5, 20.0]:
        prior = PRIORS[name]
        x = prior.sample(3, torch.Generator().manual_seed(0)) + sigma * draw(3, *SHAPE, seed=4)
        v, w = draw(3, *SHAPE, seed=5), draw(3, *SHAPE, seed=6)
        _, wanted = torch.autograd.functional.jvp(partial(prior.denoise, sigma=sigma), x, v)
        found = prior.jvp(x, sigma, v)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8)
        assert torch.allclose((w * found).sum(), (v * prior.jvp(x, sigma, w)).sum(), rtol=1e-6, atol=1e-8)


def test_each_row_has_its_own_sigma() -> None:
    sigmas, v = torch.tensor([0.1, 2.0, 0.1, 0.5], dtype=torch.float64), draw(4, *SHAPE, seed=5)
    for name, prior in PRIORS.items():
        x = prior.sample(4, torch.Generator().manual_seed(0)) + 0.1 * draw(4, *SHAPE, seed=4)
        for function in (prior.denoise, prior.score, prior.log_prob, lambda x, s, p=prior: p.jvp(x, s, v)):
            together = function(x, sigmas)
            for i, sigma in enumerate(sigmas.tolist()):
                assert torch.allclose(together[i], function(x, sigma)[i], rtol=1e-9, atol=1e-12), name


@every
def test_without_noise_and_with_a_lot(name: str) -> None:
    """At sigma = 0 the image is known; at a huge one it is the mean."""
    prior = PRIORS[name]
    x = prior.sample(3, torch.Generator().manual_seed(0))
    assert torch.allclose(prior.denoise(x, 0.0), x, atol=1e-12)
    assert torch.allclose(prior.denoise(x, 1e-6), x, atol=1e-5)
    assert torch.allclose(prior.denoise(1e7 * draw(3, *SHAPE, seed=7), 1e7), prior.mean, atol=1e-5)
    assert torch.allclose(prior.score(x, 1e7), torch.zeros(()).double(), atol=1e-12)


@every
def test_samples_have_the_mean_and_the_std(name: str) -> None:
    prior, count = PRIORS[name], 20_000
    x = prior.sample(count, torch.Generator().manual_seed(0))
    assert x.shape == (count, *SHAPE)
    assert ((x.mean(0) - prior.mean).abs() < 5 * prior.std / count**0.5).all()
    fourth = (x - prior.mean).pow(4).mean(0)
    errors = ((fourth - prior.std**4).clamp(min=0) / count).sqrt()
    assert (((x - prior.mean).square().mean(0) - prior.std**2).abs() < 5 * errors + 1e-9).all()
    first, second = (prior.sample(3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


# A set of images has no density, and the posterior of the low rank takes no second measurement.
@pytest.mark.parametrize("name", sorted(set(PRIORS) - {"empirical", "posterior of the low rank"}))
def test_bayes(name: str) -> None:
    """p(x) p(y | x) = p(y) p(x | y), with all constants."""
    prior, problem = PRIORS[name], measured()
    posterior, evidence = prior.posterior_and_evidence(problem)
    x = draw(3, *SHAPE, seed=8)
    seen = problem.observed.expand(1, *SHAPE)[0]
    residual = (problem.y - x)[:, seen]
    likelihood = torch.distributions.Normal(0, problem.noise.sigma.double()).log_prob(residual).sum(1)
    joint = prior.log_prob(x) + likelihood
    assert torch.allclose(joint, evidence + posterior.log_prob(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (InverseProblem(Denoising(), GaussianNoise(), draw(2, *SHAPE, seed=0)), r"one measurement, got 2.*select"),
        (InverseProblem(Denoising(), LaplaceNoise(), draw(1, *SHAPE, seed=0)), "Gaussian noise, got LaplaceNoise"),
        (InverseProblem(Denoising(), GaussianNoise(), draw(1, 1, 5, 5, seed=0)), r"shape \(1, 4, 4\), got \(1, 5, 5\)"),
        (
            InverseProblem(PhaseRetrieval(), GaussianNoise(), PhaseRetrieval()(draw(1, *SHAPE, seed=0).float())),
            "linear operator, got PhaseRetrieval",
        ),
    ],
)
def test_what_has_no_closed_form(problem: InverseProblem, words: str) -> None:
    for name in ("gaussian", "diagonal", "field", "dense mixture", "low rank"):
        with pytest.raises(ValueError, match=words):
            PRIORS[name].posterior(problem)


ASKED = draw(2, *SHAPE, seed=4)


@pytest.mark.parametrize(
    ("x", "sigma", "words"),
    [
        (draw(2, 1, 5, 5, seed=4), 0.1, r"images must be \(B, 1, 4, 4\), got \(2, 1, 5, 5\)"),
        (ASKED[0], 0.1, r"images must be \(B, 1, 4, 4\), got \(1, 4, 4\)"),
        (ASKED, torch.tensor([0.1, 0.2, 0.3]), r"sigma must be one value or 2 values, one per image, got \(3,\)"),
        (ASKED, -0.1, "sigma must be >= 0, got -0.1"),
        (ASKED, math.nan, "sigma must be >= 0, got nan"),
        (ASKED, torch.tensor([0.1, -0.2]), "sigma must be >= 0, got -0.2"),
        (ASKED, torch.tensor([0.1, math.nan]), "sigma must be >= 0, got nan"),
    ],
)
def test_bad_arguments_are_refused(x: Tensor, sigma: float | Tensor, words: str) -> None:
    for prior in PRIORS.values():
        for ask in (prior.denoise, prior.score, prior.log_prob, lambda x, s, prior=prior: prior.jvp(x, s, x)):
            with pytest.raises(ValueError, match=words):
                ask(x, sigma)


def test_a_direction_for_each_image() -> None:
    for prior in PRIORS.values():
        with pytest.raises(ValueError, match=r"images must be \(2, 1, 4, 4\), got \(1, 1, 4, 4\)"):
            prior.jvp(ASKED, 0.1, ASKED[:1])


@every
def test_answers_have_the_precision_of_the_question(name: str) -> None:
    """Under autocast too: a closed form keeps its digits."""
    for prior in (PRIORS[name], SINGLE[name]):
        for x in (ASKED, ASKED.float()):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = prior.denoise(x, 0.3), prior.score(x, 0.3), prior.log_prob(x, 0.3), prior.jvp(x, 0.3, x)
            assert all(answer.dtype == x.dtype for answer in found)
            assert torch.allclose(found[0].double(), PRIORS[name].denoise(ASKED, 0.3), atol=1e-5)


def test_an_empty_batch() -> None:
    none = torch.zeros(0, *SHAPE, dtype=torch.float64)
    for prior in PRIORS.values():
        found = prior.sample(0, torch.Generator()), prior.denoise(none, 0.3), prior.score(none, torch.zeros(0))
        assert all(x.shape == (0, *SHAPE) for x in (*found, prior.jvp(none, 0.3, none)))
        assert prior.log_prob(none, 0.3).shape == (0,)


def test_levels_per_image_are_selected() -> None:
    y = draw(2, *SHAPE, seed=0)
    both = InverseProblem(Denoising(), GaussianNoise(torch.tensor([0.1, 0.4])), y)
    alone = InverseProblem(Denoising(), GaussianNoise(0.4), y[1:])
    prior = PRIORS["dense mixture"]
    assert torch.equal(prior.posterior(both.select(torch.tensor([1]))).mean, prior.posterior(alone).mean)
