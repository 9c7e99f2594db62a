"""Posteriors of low-rank mixtures by low-rank algebra, against dense algebra on the same covariances."""

import pickle

import pytest
import torch
from torch import Tensor

from invdiff import load_prior
from invdiff.operators import (
    CT,
    MRI,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearOperator,
    MatrixOperator,
    MulticoilMRI,
    NoNoise,
)
from invdiff.priors import GaussianMixturePrior, LowRankMixturePosterior, LowRankMixturePrior
from invdiff.priors.closed_form import whitening
from invdiff.problem import InverseProblem

K, SHAPE, N = 3, (1, 6, 6), 36
DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


WEIGHTS, MEANS = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE), 0.5 + 0.1 * draw(K, *SHAPE, seed=1)
FACTORS, NOISE = 0.1 * draw(K, N, 3, seed=2), torch.tensor([0.1, 0.15, 0.2], dtype=DOUBLE)
PRIOR = LowRankMixturePrior(WEIGHTS, MEANS, FACTORS, NOISE)
DENSE = GaussianMixturePrior(
    WEIGHTS, MEANS, FACTORS @ FACTORS.mT + NOISE[:, None, None] ** 2 * torch.eye(N, dtype=DOUBLE)
)
OPERATORS: dict[str, LinearOperator] = {
    "mask": Inpainting(keep=0.4),
    "blur": GaussianBlur(std=1.0, kernel_size=5),
    "few views": CT(views=2),
    "many views": CT(views=12),
    "matrix that repeats itself": MatrixOperator(torch.cat([draw(5, N, seed=3)] * 2).float(), image_shape=SHAPE),
    "single coil": MRI(acceleration=2, center_fraction=0.3),
    "coils": MulticoilMRI(coils=2, acceleration=2, center_fraction=0.3),
}
every = pytest.mark.parametrize("name", OPERATORS)


def problem(operator: LinearOperator, sigma: float = 0.2) -> InverseProblem:
    noise = GaussianNoise(sigma)
    clean = operator(PRIOR.sample(1, torch.Generator().manual_seed(5)))
    observed = operator.measured(tuple(clean.shape[1:]))
    y = noise.sample(clean, [torch.Generator().manual_seed(6)], observed)
    if observed is not None:
        y = torch.where(observed, y, torch.nan)  # what was not measured says nothing, whatever stands there
    return InverseProblem(operator, noise, y, image_shape=SHAPE)


def both(name: str, sigma: float = 0.2) -> tuple[LowRankMixturePosterior, GaussianMixturePrior]:
    return PRIOR.posterior(problem(OPERATORS[name], sigma)), DENSE.posterior(problem(OPERATORS[name], sigma))


@every
def test_weights_moments_and_evidence(name: str) -> None:
    for sigma in [1e-3, 0.2, 5.0]:
        lean, dense = both(name, sigma)
        assert torch.allclose(lean.weights, dense.weights, rtol=1e-6, atol=1e-9)
        assert torch.allclose(lean.mean, dense.mean, rtol=1e-7, atol=1e-9)
        assert torch.allclose(lean.std, dense.std, rtol=1e-6, atol=1e-9)
        wanted = DENSE.log_evidence(problem(OPERATORS[name], sigma))
        assert torch.allclose(lean.evidence, wanted, rtol=1e-7)
        assert torch.equal(PRIOR.log_evidence(problem(OPERATORS[name], sigma)), lean.evidence)


@every
def test_density_denoiser_and_jacobian(name: str) -> None:
    for sigma in [0.0, 1e-2, 0.5, 50.0]:
        lean, dense = both(name)
        x = dense.sample(4, torch.Generator().manual_seed(7)) + sigma * draw(4, *SHAPE, seed=8)
        v = draw(4, *SHAPE, seed=9)
        assert torch.allclose(lean.log_prob(x, sigma), dense.log_prob(x, sigma), rtol=1e-7, atol=1e-7)
        assert torch.allclose(lean.denoise(x, sigma), dense.denoise(x, sigma), rtol=1e-7, atol=1e-9)
        assert torch.allclose(lean.jvp(x, sigma, v), dense.jvp(x, sigma, v), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mask", "few views", "coils"])
def test_draws(name: str) -> None:
    """Mean and covariance of the draws, in the eigenbasis of the dense covariance."""
    lean, dense = both(name)
    count = 20_000
    away = (dense.means - dense.mean).flatten(1)
    covariance = torch.einsum("k,kij->ij", dense.weights, dense.covariances + away[:, :, None] * away[:, None])
    variances, basis = torch.linalg.eigh(covariance)
    z = (lean.sample(count, torch.Generator().manual_seed(0)) - dense.mean).flatten(1) @ basis / variances.sqrt()
    assert (z.mean(0).abs() < 5 / count**0.5).all()
    spread = (z.pow(4).mean(0) - 1).clamp(min=1)
    assert ((z.square().mean(0) - 1).abs() < 5 * (spread / count).sqrt()).all()
    assert (((z.T @ z) / count - torch.eye(N)).abs() < 0.06).all()
    again = [lean.sample(3, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Inpainting(keep=0.3), CT(views=30)], ids=["mask", "scanner"])
def test_brains(operator: LinearOperator) -> None:
    """At image size, 100 components: draws fit the measurement like the truth does, and have the stated moments."""
    prior, noise, count = load_prior("brain_mixture"), GaussianNoise(0.05), 1000
    truth = prior.sample(1, torch.Generator().manual_seed(0))
    clean = operator(truth)
    observed = operator.measured(tuple(clean.shape[1:]))
    y = noise.sample(clean, [torch.Generator().manual_seed(1)], observed)
    posterior = prior.posterior(InverseProblem(operator, noise, y, image_shape=prior.shape))
    x = posterior.sample(count, torch.Generator().manual_seed(2))

    seen = torch.ones_like(y[0], dtype=torch.bool) if observed is None else observed.expand(1, *y.shape[1:])[0]
    misfits = ((operator(x) - y) / 0.05)[:, seen].square().mean(1)
    # Truth and draws are exchangeable given y, and the truth's misfit is chi^2.
    assert (misfits - 1).abs().mean() < 3 * (2 / int(seen.sum())) ** 0.5

    away = (x - posterior.mean).flatten(1).double()
    std = posterior.std.flatten().double()
    means, squares = away.mean(0), away.square()
    errors = means / std * count**0.5
    spreads = (squares.mean(0) - std**2) / squares.std(0) * count**0.5
    for standardised in (errors, spreads):
        assert standardised.abs().max() < 6
        assert standardised.square().mean() == pytest.approx(1, abs=0.3)


def test_exact_data_are_fitted() -> None:
    operator = CT(views=2)
    truth = PRIOR.sample(1, torch.Generator().manual_seed(5))
    posterior = PRIOR.posterior(InverseProblem(operator, NoNoise(1e-5), operator(truth)))
    x = posterior.sample(10, torch.Generator().manual_seed(0))
    assert (operator(x) - operator(truth)).abs().max() < 1e-3
    assert x.std(0).max() > 0.02


def test_images_of_one_operator_share_its_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, calls = CT(views=3), []
    original = whitening._decompose_dense
    monkeypatch.setattr(whitening, "_decompose_dense", lambda rows: calls.append(1) or original(rows))
    for sigma in (0.1, 0.3):
        found = PRIOR.posterior(problem(operator, sigma))
        assert torch.allclose(found.mean, DENSE.posterior(problem(operator, sigma)).mean, atol=1e-9)
    assert len(calls) == 1


def test_a_posterior_can_be_pickled() -> None:
    for name in ("mask", "few views"):
        posterior = both(name)[0]
        again = pickle.loads(pickle.dumps(posterior))
        first, second = (p.sample(2, torch.Generator().manual_seed(0)) for p in (posterior, again))
        assert torch.equal(first, second)


def test_a_second_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot take a second measurement"):
        both("mask")[0].posterior(problem(OPERATORS["mask"]))


def test_matrices_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "DENSE_LIMIT", 10)
    with pytest.raises(ValueError, match=r"decomposes the .* matrix of CT, the limit is 10"):
        PRIOR.posterior(problem(CT(views=4)))


@pytest.mark.parametrize("rows", [5, 50])
def test_nothing_seen_is_nothing_learnt(rows: int) -> None:
    blind = MatrixOperator(torch.zeros(rows, N), image_shape=SHAPE)
    posterior = PRIOR.posterior(problem(blind))
    x = draw(2, *SHAPE, seed=8)
    assert torch.allclose(posterior.mean, PRIOR.mean)
    assert torch.allclose(posterior.std, PRIOR.std)
    assert torch.allclose(posterior.denoise(x, 0.3), PRIOR.denoise(x, 0.3))
    assert posterior.sample(2, torch.Generator().manual_seed(0)).isfinite().all()
