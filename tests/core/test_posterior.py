"""Mean and standard deviation of a posterior, over the samples that did not diverge."""

import pytest
import torch

from invdiff.posterior import Cost, Posterior


@pytest.fixture
def samples() -> torch.Tensor:
    return torch.randn(3, 5, 1, 4, 6, generator=torch.Generator().manual_seed(0))


def test_mean_and_std_without_divergence(samples: torch.Tensor) -> None:
    posterior = Posterior(samples, torch.full((3, 5), -1), Cost())
    assert not posterior.diverged.any()
    assert torch.allclose(posterior.mean, samples.mean(1), atol=1e-6)
    assert torch.allclose(posterior.std, samples.std(1), atol=1e-6)


def test_diverged_samples_are_left_out(samples: torch.Tensor) -> None:
    samples[0, 1] = torch.nan
    samples[0, 3] = 1e9  # finite but no image: left out as well
    samples[1] = torch.inf
    diverged_at = torch.full((3, 5), -1)
    diverged_at[0, 1], diverged_at[0, 3], diverged_at[1] = 0, 7, 2
    posterior = Posterior(samples, diverged_at, Cost())
    assert posterior.diverged.sum().item() == 7
    kept = samples[0, [0, 2, 4]]
    assert torch.allclose(posterior.mean[0], kept.mean(0), atol=1e-6)
    assert torch.allclose(posterior.std[0], kept.std(0), atol=1e-6)
    assert posterior.mean[1].isnan().all()
    assert posterior.std[1].isnan().all()
    assert torch.allclose(posterior.mean[2], samples[2].mean(0), atol=1e-6)


def test_one_sample_has_a_mean_but_no_spread(samples: torch.Tensor) -> None:
    posterior = Posterior(samples[:, :1], torch.full((3, 1), -1), Cost())
    assert torch.equal(posterior.mean, samples[:, 0])
    assert posterior.std.isnan().all()


def test_a_sample_that_diverged_is_not_repaired(samples: torch.Tensor) -> None:
    samples[2, 0] = torch.nan
    diverged_at = torch.full((3, 5), -1)
    diverged_at[2, 0] = 4
    assert Posterior(samples, diverged_at, Cost()).samples[2, 0].isnan().all()


def test_volumes() -> None:
    samples = torch.randn(2, 3, 1, 4, 5, 6)
    posterior = Posterior(samples, torch.full((2, 3), -1), Cost())
    assert torch.allclose(posterior.mean, samples.mean(1))
    assert torch.allclose(posterior.std, samples.std(1))
