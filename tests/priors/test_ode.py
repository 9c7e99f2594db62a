"""The probability-flow ODE against its solution for a Gaussian prior: x scales as sqrt(s^2 + sigma^2)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.contracts.toys import WhitePrior
from invdiff.priors import GaussianPrior, Prior, load_prior
from invdiff.priors.ode import generate, probability_flow
from invdiff.schedules import karras
from invdiff.streams import Streams, key

S, MEAN = 0.25, 0.4


class Counted(WhitePrior):
    def __init__(self) -> None:
        super().__init__(MEAN, S)
        self.levels: list[float] = []

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.levels.append(float(sigma))
        return super().denoise(x, sigma)


def error(steps: int, heun: bool) -> float:
    high, low = 5.0, 0.02
    x = MEAN + high * torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    found = probability_flow(WhitePrior(MEAN, S), x, karras(high, low, steps + 1), heun=heun)
    exact = MEAN + (x - MEAN) * ((S**2 + low**2) / (S**2 + high**2)) ** 0.5
    return float((found - exact).abs().max())


def test_euler_is_of_first_order() -> None:
    ratios = [error(n, heun=False) / error(2 * n, heun=False) for n in (32, 64)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), ratios


def test_heun_is_of_second_order() -> None:
    ratios = [error(n, heun=True) / error(2 * n, heun=True) for n in (32, 64)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios
    assert error(64, heun=True) < error(64, heun=False) / 20


def test_one_step_to_zero_is_the_denoiser() -> None:
    prior, x = Counted(), torch.randn(2, 1, 4, 4)
    for heun in (False, True):
        prior.levels.clear()
        assert torch.allclose(probability_flow(prior, x, [0.7, 0.0], heun=heun), prior.denoise(x, 0.7), atol=1e-6)
        assert prior.levels[:1] == [0.7]
        assert len(prior.levels) == 2  # ours included: a step to 0 costs one call, by Heun as well


def test_calls_and_steps() -> None:
    levels, seen = [3.0, 1.0, 0.2, 0.0], []
    prior = Counted()
    probability_flow(prior, torch.zeros(1, 1, 2, 2), levels, on_step=seen.append)
    assert (prior.levels, len(seen)) == ([3.0, 1.0, 0.2], 3)
    prior = Counted()
    probability_flow(prior, torch.zeros(1, 1, 2, 2), levels, heun=True)
    assert prior.levels == [3.0, 1.0, 1.0, 0.2, 0.2]


def test_generate_draws_the_prior() -> None:
    """The flow of a Gaussian is linear: unit noise must come out with the prior's spread about its mean."""
    prior = Counted()
    noise = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    x = generate(prior, noise, steps=80)
    assert len(prior.levels) == 2 * 80 - 1
    assert prior.levels[0] == pytest.approx(prior.sigma_range[1])
    # The image starts about 0 and not about the mean, which at sigma_max = 80 no one can see.
    assert torch.allclose(x, MEAN + S * noise, atol=5e-3)
    assert not x.requires_grad


def test_generate_from_a_gaussian_prior(normal: Callable) -> None:
    prior: Prior = GaussianPrior.example()
    assert generate(prior, normal(2, 1, 16, 16, dtype=torch.float32)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mean"), [("photo", (0.4711 + 0.4551 + 0.3990) / 3), ("brain_small", 0.1749)])
def test_images_of_a_network_are_as_bright_as_its_training_images(name: str, mean: float) -> None:
    """`mean` is that of the training images. From black, photographs came out at 0.29."""
    prior = load_prior(name)
    streams = Streams([key(0, "generate", i) for i in range(48)], prior.shape or (3, 64, 64))
    found = torch.cat([generate(prior, z) for z in streams.normal().split(8)]).mean((1, 2, 3))
    assert abs(float(found.mean()) - mean) < 3 * float(found.std()) / len(found) ** 0.5
