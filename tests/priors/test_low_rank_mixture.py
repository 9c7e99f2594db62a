"""Mixtures of a few directions each, against the dense mixture with the same covariances."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from invdiff.priors import EDMPrior, GaussianMixturePrior, LowRankMixturePrior

K, SHAPE, N, RANK = 3, (2, 3, 5), 30, 4
DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)
MEANS, FACTORS = 0.3 * draw(K, *SHAPE, seed=1), 0.3 * draw(K, N, RANK, seed=2)
NOISE = torch.tensor([0.05, 0.1, 0.3], dtype=DOUBLE)


def dense(factors: Tensor = FACTORS) -> GaussianMixturePrior:
    identity = NOISE[:, None, None] ** 2 * torch.eye(N, dtype=DOUBLE)
    return GaussianMixturePrior(WEIGHTS, MEANS, factors @ factors.mT + identity)


def test_it_is_the_dense_mixture() -> None:
    for sigma in [0.0, 1e-3, 0.3, 100.0]:
        lean, full = LowRankMixturePrior(WEIGHTS, MEANS, FACTORS, NOISE), dense()
        x = full.sample(5, torch.Generator().manual_seed(0)) + sigma * draw(5, *SHAPE, seed=3)
        v = draw(5, *SHAPE, seed=4)
        assert torch.allclose(lean.log_prob(x, sigma), full.log_prob(x, sigma), rtol=1e-9)
        assert torch.allclose(lean.denoise(x, sigma), full.denoise(x, sigma), rtol=1e-8, atol=1e-11)
        assert torch.allclose(lean.score(x, sigma), full.score(x, sigma), rtol=1e-7, atol=1e-9)
        assert torch.allclose(lean.jvp(x, sigma, v), full.jvp(x, sigma, v), rtol=1e-7, atol=1e-9)
        assert torch.allclose(lean.mean, full.mean)
        assert torch.allclose(lean.std, full.std)


def test_samples_have_the_covariance() -> None:
    prior = LowRankMixturePrior(torch.ones(1).double(), MEANS[:1], FACTORS[:1], NOISE[:1])
    count = 40_000
    covariance = FACTORS[0] @ FACTORS[0].T + NOISE[0] ** 2 * torch.eye(N)
    x = prior.sample(count, torch.Generator().manual_seed(0)).flatten(1)
    variance = covariance.diagonal()
    errors = ((torch.outer(variance, variance) + covariance**2) / count).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * errors).all()


@pytest.mark.parametrize("kind", ["dependent", "zero", "none", "full"])
def test_any_factors(kind: str) -> None:
    """Columns that depend on each other, vanish, are missing, or are as many as pixels."""
    factors = {
        "dependent": torch.cat([FACTORS, FACTORS[..., :2]], 2),
        "zero": torch.zeros(K, N, 2, dtype=DOUBLE),
        "none": torch.zeros(K, N, 0, dtype=DOUBLE),
        "full": draw(K, N, N, seed=5) / 5,
    }[kind]
    lean, full = LowRankMixturePrior(WEIGHTS, MEANS, factors, NOISE), dense(factors)
    x = draw(4, *SHAPE, seed=3)
    assert torch.allclose(lean.factors @ lean.factors.mT, factors @ factors.mT, atol=1e-12)
    for sigma in (0.0, 0.2):
        assert torch.allclose(lean.log_prob(x, sigma), full.log_prob(x, sigma), rtol=1e-8)
        assert torch.allclose(lean.denoise(x, sigma), full.denoise(x, sigma), rtol=1e-8, atol=1e-10)


def test_a_component_without_weight_says_nothing() -> None:
    weights = torch.tensor([0.7, 0.3, 0.0], dtype=DOUBLE)
    with_it = LowRankMixturePrior(weights, MEANS, FACTORS, NOISE)
    without = LowRankMixturePrior(weights[:2], MEANS[:2], FACTORS[:2], NOISE[:2])
    x = draw(3, *SHAPE, seed=3)
    assert torch.allclose(with_it.denoise(x, 0.2), without.denoise(x, 0.2), rtol=1e-10)
    assert torch.allclose(with_it.jvp(x, 0.2, x), without.jvp(x, 0.2, x), rtol=1e-10, atol=1e-12)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float32, 1e-6)])
def test_a_file_keeps_everything(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    prior = LowRankMixturePrior(WEIGHTS.float(), MEANS.float(), FACTORS.float(), NOISE.float(), value_range=(-2, 2))
    prior.save(tmp_path / "prior.safetensors", dtype=dtype)
    again = LowRankMixturePrior.load(tmp_path / "prior.safetensors")
    assert (again.shape, again.value_range, again.means.dtype) == (SHAPE, (-2.0, 2.0), torch.float32)
    assert load_file(tmp_path / "prior.safetensors")["factors"].dtype == dtype
    x = draw(3, *SHAPE, seed=3).float()
    assert torch.allclose(again.denoise(x, 0.3), prior.denoise(x, 0.3), atol=tolerance)
    assert torch.allclose(again.std, prior.std, atol=tolerance)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    EDMPrior.example().save(path)
    with pytest.raises(ValueError, match="must be of kind low_rank_mixture, got network"):
        LowRankMixturePrior.load(path)
    prior = LowRankMixturePrior(WEIGHTS, MEANS, FACTORS, NOISE)
    prior.save(path)
    tensors = load_file(path)
    header = {"invdiff": json.dumps({"kind": "low_rank_mixture", "shape": [2, 3, 5], "value_range": [0, 1]})}
    for spoilt, words in (
        ({"means": torch.full_like(tensors["means"], torch.nan)}, "NaN or infinity in means"),
        ({"noise_std": torch.zeros(3)}, "do not fit their header: .*positive"),
    ):
        save_file({**tensors, **spoilt}, path, metadata=header)
        with pytest.raises(ValueError, match=words):
            LowRankMixturePrior.load(path)
    del tensors["factors"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(ValueError, match="do not fit their header"):
        LowRankMixturePrior.load(path)


@pytest.mark.parametrize(
    ("factors", "noise", "words"),
    [
        (FACTORS[:2], NOISE, r"\(3, 30, r <= 30\), got \(2, 30, 4\)"),
        (FACTORS * torch.nan, NOISE, "factors must be finite"),
        (FACTORS, NOISE[:2], "3 positive numbers"),
        (FACTORS, NOISE * torch.nan, "3 positive numbers"),
        (FACTORS, 0 * NOISE, "3 positive numbers"),
    ],
)
def test_what_is_no_mixture(factors: Tensor, noise: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LowRankMixturePrior(WEIGHTS, MEANS, factors, noise)
