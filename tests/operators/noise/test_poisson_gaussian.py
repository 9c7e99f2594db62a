"""Photon counts with read-out noise: how good the Gaussian is that stands for the exact density."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import GaussianNoise, PoissonGaussianNoise


@pytest.mark.parametrize(("count", "error"), [(1, 0.05), (10, 0.036), (100, 0.013)])
def test_density_against_the_sum_over_counts(count: int, error: float) -> None:
    """Total variation, with read-out noise of one count."""
    gain = 0.125
    noise, k = PoissonGaussianNoise(gain, gain), torch.arange(0.0, 200, dtype=torch.float64)
    y = gain * torch.linspace(-10, 200, 4201, dtype=torch.float64)
    weights = torch.distributions.Poisson(torch.tensor(float(count), dtype=torch.float64)).log_prob(k)
    exact = (weights + torch.distributions.Normal(gain * k, gain).log_prob(y[:, None])).exp().sum(1)
    clean = torch.full_like(y, gain * count)
    scored = (-noise.entry_nll(y[None], clean[None])[0]).exp() / math.sqrt(2 * math.pi)
    step = y[1] - y[0]
    assert abs(float(scored.sum() * step) - 1) <= 1e-6
    assert 0.8 * error <= float((exact - scored).abs().sum() * step / 2) <= error


def test_dark_images_carry_read_out_noise_alone(normal: Callable[..., Tensor]) -> None:
    y, clean = normal(2, 5), -normal(2, 5, seed=1).abs()
    difference = PoissonGaussianNoise(0.125, 0.5).nll(y, clean) - GaussianNoise(0.5).nll(y, clean)
    torch.testing.assert_close(difference, torch.full_like(difference, 5 * math.log(0.5)))
