"""Stationary fields against the dense Gaussian with the same covariance."""

import math

import pytest
import torch
from torch import Tensor

from invdiff.operators import CT, CircularBlur, Denoising, GaussianNoise, Inpainting
from invdiff.operators.core.base import LinearOperator
from invdiff.priors import GaussianFieldPrior, GaussianPrior
from invdiff.problem import InverseProblem

SHAPE, N = (2, 5, 6), 60
DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def field(seed: int = 0) -> GaussianFieldPrior:
    """Any spectrum, another for each channel."""
    noise = torch.fft.fft2(draw(*SHAPE, seed=seed))
    return GaussianFieldPrior(draw(*SHAPE, seed=seed + 1), noise.abs().square() / 30 + 0.01)


def dense(prior: GaussianFieldPrior) -> GaussianPrior:
    """Lag by lag: no Fourier transform of an image."""
    covariance = torch.fft.ifft2(prior.spectrum).real
    c, h, w = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    c, h, w = c.flatten(), h.flatten(), w.flatten()
    lags = covariance[c[:, None], (h[:, None] - h) % SHAPE[1], (w[:, None] - w) % SHAPE[2]]
    return GaussianPrior(prior.mean, torch.where(c[:, None] == c, lags, 0))


def test_it_is_the_dense_gaussian() -> None:
    for sigma in [0.0, 0.01, 1.0, 100.0]:
        prior = field()
        full = dense(prior)
        x, v = (1 + sigma) * draw(4, *SHAPE, seed=3), draw(4, *SHAPE, seed=4)
        assert torch.allclose(prior.std, full.std)
        assert torch.allclose(prior.log_prob(x, sigma), full.log_prob(x, sigma), rtol=1e-9)
        assert torch.allclose(prior.denoise(x, sigma), full.denoise(x, sigma), rtol=1e-8, atol=1e-10)
        assert torch.allclose(prior.score(x, sigma), full.score(x, sigma), rtol=1e-7, atol=1e-9)
        assert torch.allclose(prior.jvp(x, sigma, v), full.jvp(x, sigma, v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("operator", "stationary"),
    [
        (Denoising(), True),
        (CircularBlur(torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.4, 0.1], [0.0, 0.1, 0.0]])), True),
        (Inpainting(keep=0.4), False),
        (CT(views=4, size=SHAPE[1:]), False),
    ],
)
def test_posterior(operator: LinearOperator, stationary: bool) -> None:
    prior, noise = field(), GaussianNoise(0.3)
    y = operator(prior.sample(1, torch.Generator().manual_seed(0))) + 0.3 * draw(1, 1, 1, 1, seed=5)
    problem = InverseProblem(operator, noise, y)
    posterior, evidence = prior.posterior_and_evidence(problem)
    wanted, wanted_evidence = dense(prior).posterior_and_evidence(problem)
    assert isinstance(posterior, GaussianFieldPrior if stationary else GaussianPrior)
    x = draw(3, *SHAPE, seed=6)
    assert torch.allclose(posterior.mean, wanted.mean, rtol=1e-7, atol=1e-9)
    assert torch.allclose(posterior.std, wanted.std, rtol=1e-7)
    assert torch.allclose(posterior.log_prob(x), wanted.log_prob(x), rtol=1e-8)
    assert torch.allclose(evidence, wanted_evidence, rtol=1e-9)


def test_a_posterior_at_image_size() -> None:
    prior = GaussianFieldPrior.power_law((3, 128, 128))
    operator, truth = CircularBlur(torch.ones(7, 7) / 49), prior.sample(1, torch.Generator().manual_seed(0))
    y = operator(truth) + 0.02 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    posterior = prior.posterior(InverseProblem(operator, GaussianNoise(0.02), y))
    errors = (truth[0] - posterior.mean) / posterior.std
    assert float(errors.square().mean()) == pytest.approx(1, abs=0.1)
    masked = InverseProblem(Inpainting(keep=0.5), GaussianNoise(0.02), truth)
    with pytest.raises(ValueError, match="Inpainting is not stationary and takes a 49152 x 49152 matrix"):
        prior.posterior(masked)


def test_samples_have_the_spectrum() -> None:
    prior, count = field(), 20_000
    z = torch.fft.fft2(prior.sample(count, torch.Generator().manual_seed(0)) - prior.mean, norm="ortho")
    found = z.abs().square().mean(0)
    # A coefficient that is its own conjugate is one real number, with twice the relative variance.
    assert ((found / prior.spectrum - 1).abs() < 5 * (2 / count) ** 0.5).all()


def test_matern_of_one_half_is_exponential() -> None:
    """nu = 1/2 is exp(-lag / length) on the plane; far from the edges the torus is one."""
    prior = GaussianFieldPrior.matern((1, 256, 256), length=16.0, smoothness=0.5, std=2.0)
    covariance = torch.fft.ifft2(prior.spectrum.double()).real[0]
    assert float(covariance[0, 0]) == pytest.approx(4, rel=1e-5)
    lags = torch.tensor([4, 8, 16, 32])
    assert torch.allclose(covariance[0, lags] / covariance[0, 0], torch.exp(-lags / 16).double(), atol=0.03)


def test_power_law() -> None:
    for exponent in [0.0, 1.0, 3.0]:
        spectrum = GaussianFieldPrior.power_law((1, 32, 64), exponent=exponent, std=0.3).spectrum[0].double()
        assert float(spectrum.mean()) == pytest.approx(0.09, rel=1e-5)
        assert float((spectrum[0, 4] / spectrum[0, 8]).log2()) == pytest.approx(exponent, abs=1e-5)
        assert float(spectrum[4, 0]) == pytest.approx(float(spectrum[0, 8]), rel=1e-5)
        assert float(spectrum[0, 0]) == pytest.approx(float(spectrum[0, 1]), rel=1e-5)


def test_from_the_covariance_at_every_lag() -> None:
    prior = field()
    again = GaussianFieldPrior.from_covariance(prior.mean, torch.fft.ifft2(prior.spectrum).real)
    assert torch.allclose(again.spectrum, prior.spectrum)
    with pytest.raises(ValueError, match="covariance of a field must be >= 0"):
        GaussianFieldPrior.from_covariance(torch.zeros(1, 4, 4), torch.ones(4, 4) - 3 * torch.eye(4))


def test_without_variance_there_is_no_density() -> None:
    flat = GaussianFieldPrior(torch.zeros(1, 4, 4), torch.zeros(4, 4).index_fill(1, torch.tensor([0]), 1.0))
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(flat.denoise(x, 0.0), x)
    for ask in (flat.log_prob, flat.score):
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            ask(x, 0.0)


@pytest.mark.parametrize(
    ("mean", "spectrum", "words"),
    [
        (torch.zeros(4, 4), torch.ones(4, 4), r"must be \(C, H, W\)"),
        (torch.full((1, 4, 4), math.nan), torch.ones(4, 4), "finite numbers"),
        (torch.zeros(1, 4, 4), torch.ones(3, 4), r"shape of its mean, \(1, 4, 4\).*got \(3, 4\)"),
        (torch.zeros(1, 4, 4), -torch.ones(4, 4), ">= 0 and finite, got -1"),
        (torch.zeros(1, 4, 4), torch.full((4, 4), math.nan), ">= 0 and finite, got nan"),
        (torch.zeros(1, 4, 4), torch.arange(16.0).reshape(4, 4), "equal at k and -k"),
    ],
)
def test_what_is_no_field(mean: Tensor, spectrum: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianFieldPrior(mean, spectrum)


def test_what_is_no_length() -> None:
    for length in [0.0, math.nan, math.inf]:
        with pytest.raises(ValueError, match="must be positive"):
            GaussianFieldPrior.matern((1, 8, 8), length=length)
