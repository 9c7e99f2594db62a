"""The result of a sampler: statistics over the samples that did not diverge, each computed once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.operators import CallableOperator, Denoising, GaussianNoise, Operator
from invdiff.posterior import Cost, Posterior
from invdiff.problem import InverseProblem


@pytest.fixture
def samples() -> Tensor:
    return torch.randn(3, 5, 1, 4, 6, generator=torch.Generator().manual_seed(0))


def of(samples: Tensor, diverged: Any = (), operator: Operator | None = None, y: Tensor | None = None) -> Posterior:
    """A posterior whose samples at these (image, sample) diverged at step 2."""
    diverged_at = torch.full(samples.shape[:2], -1)
    for place in diverged:
        diverged_at[place] = 2
    y = torch.zeros(len(samples), *samples.shape[2:]) if y is None else y
    return Posterior(samples, diverged_at, Cost(), InverseProblem(operator or Denoising(), GaussianNoise(0.1), y))


def test_statistics_without_divergence(samples: Tensor) -> None:
    posterior = of(samples)
    assert not posterior.diverged.any()
    assert torch.allclose(posterior.mean, samples.mean(1), atol=1e-6)
    assert torch.allclose(posterior.std, samples.std(1), atol=1e-6)
    assert torch.allclose(posterior.misfit, samples.square().flatten(2).mean(2) / 0.1**2)
    for level in (0.9, 0.5, 0.123):
        wanted = np.quantile(samples.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=1)
        np.testing.assert_allclose(torch.stack(posterior.interval(level)), wanted, atol=1e-6)


def test_diverged_samples_are_left_out(samples: Tensor) -> None:
    samples[0, 1] = torch.nan
    samples[0, 3] = 1e9  # finite but no image: left out as well
    samples[1] = torch.inf
    posterior = of(samples, [(0, 1), (0, 3), 1])
    assert posterior.diverged.sum().item() == 7
    kept = samples[0, [0, 2, 4]]
    assert torch.allclose(posterior.mean[0], kept.mean(0), atol=1e-6)
    assert torch.allclose(posterior.std[0], kept.std(0), atol=1e-6)
    assert posterior.mean[1].isnan().all()
    assert posterior.std[1].isnan().all()
    assert torch.allclose(posterior.mean[2], samples[2].mean(0), atol=1e-6)
    low, high = posterior.interval(0.5)
    assert torch.allclose(low[0], kept.quantile(0.25, 0))
    assert torch.allclose(high[0], kept.quantile(0.75, 0))
    assert low[1].isnan().all()
    assert high[2].isfinite().all()


def test_conditional_means_of_the_sampler_are_the_mean_alone(samples: Tensor) -> None:
    """Where the operator is ambiguous, where they cannot be aligned, not even that."""
    samples[0, 1] = torch.nan
    plain = of(samples, [(0, 1)])
    posterior = replace(plain, conditional_mean=plain.average(10 + samples))
    assert torch.allclose(posterior.mean[0], 10 + samples[0, [0, 2, 3, 4]].mean(0), atol=1e-5)
    assert torch.equal(posterior.mean_of_samples, plain.mean)
    assert torch.equal(posterior.std, plain.std)
    assert torch.equal(posterior.interval()[0], plain.interval()[0])
    ambiguous = of(samples[1:], operator=Magnitude())
    assert torch.equal(replace(ambiguous, conditional_mean=posterior.mean[1:]).mean, ambiguous.mean)


def test_one_sample_has_a_mean_but_no_spread(samples: Tensor) -> None:
    posterior = of(samples[:, :1])
    assert torch.equal(posterior.mean, samples[:, 0])
    assert posterior.std.isnan().all()
    assert torch.stack(posterior.interval()).isnan().all()


def test_a_sample_that_diverged_is_not_repaired(samples: Tensor) -> None:
    samples[2, 0] = torch.nan
    assert of(samples, [(2, 0)]).samples[2, 0].isnan().all()


@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_levels(samples: Tensor, level: float) -> None:
    with pytest.raises(ValueError, match=f"interval: level must be > 0 and < 1, got {level}"):
        of(samples).interval(level)


def test_volumes() -> None:
    samples = torch.randn(2, 3, 1, 4, 5, 6)
    posterior = of(samples, operator=CallableOperator(torch.tanh, image_shape=(1, 4, 5, 6)))
    assert torch.allclose(posterior.mean, samples.mean(1))
    assert torch.allclose(posterior.std, samples.std(1))
    assert posterior.interval()[0].shape == (2, 1, 4, 5, 6)


class Magnitude(Operator):
    """Loses the sign of each image, and counts its calls."""

    calls = aligned = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.abs()

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        self.aligned += 1
        return torch.where((x * reference).sum((1, 2, 3), keepdim=True) < 0, -x, x)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape


def test_statistics_are_of_aligned_samples_and_computed_once() -> None:
    truth = 0.5 + torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([[-1, 1, 1], [1, -1, -1]]).reshape(2, 3, 1, 1, 1)
    off = torch.tensor([0.0, 0.02, 0.04]).reshape(1, 3, 1, 1, 1)  # the first sample fits best
    samples, operator = signs * (truth[:, None] + off), Magnitude()
    posterior = of(samples, operator=operator, y=truth)
    assert operator.calls == 0
    for _ in range(2):
        sign = signs[:, :1]
        assert torch.equal(posterior.aligned.samples, sign * (truth[:, None] + off))
        assert torch.equal(posterior.mean, posterior.aligned.mean)
        assert torch.allclose(posterior.mean, sign[:, 0] * (truth + 0.02))
        assert torch.allclose(posterior.std, torch.full_like(truth, 0.02), atol=1e-6)
        low, high = posterior.interval(0.5)
        assert torch.allclose(high - low, torch.full_like(truth, 0.02), atol=1e-6)
        assert torch.allclose(posterior.facing(truth).mean, truth + 0.02)
    assert torch.equal(posterior.samples, samples), "the samples themselves were moved"
    assert operator.calls == 3, "a misfit was computed twice"
    assert operator.aligned == 3 + 1 + 3, "the samples were moved twice"
    assert torch.allclose(posterior.facing(-truth).mean, -(truth + 0.02))
