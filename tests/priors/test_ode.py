"""Images of a prior by Heun's method on the flow."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.contracts.toys import WhitePrior
from invdiff.priors import GaussianPrior, Prior, load_prior
from invdiff.priors.ode import flow_log_prob, generate
from invdiff.schedules import karras
from invdiff.shapes import row_gradient
from invdiff.streams import Streams, key

S, MEAN = 0.25, 0.4


class Counted(WhitePrior):
    def __init__(self) -> None:
        super().__init__(MEAN, S)
        self.levels: list[float] = []

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.levels.append(float(sigma))
        return super().denoise(x, sigma)


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


def test_the_flow_has_the_probability_of_a_gaussian() -> None:
    """And its gradient; the factor 2 pi is left out."""
    x = 0.4 + torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 1, 3, 4)
    probe = torch.where(torch.arange(12).reshape(1, 3, 4) % 3 == 0, 1.0, -1.0).double().expand(2, 1, 3, 4)
    levels = karras(50.0, 0.01, 80, 7.0).flip(0).tolist()
    prior, variance = WhitePrior(MEAN, S), S**2 + 0.01**2
    found = flow_log_prob(prior, x, levels, probe)
    exact = -6 * torch.tensor(variance).log() - (x - MEAN).square().flatten(1).sum(1) / (2 * variance)
    assert torch.allclose(found, exact, rtol=0.02)
    gradient = row_gradient(lambda x: flow_log_prob(prior, x, levels, probe), x)
    assert torch.allclose(gradient, -(x - MEAN) / variance, atol=0.03 * float(gradient.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mean"), [("photo", (0.4711 + 0.4551 + 0.3990) / 3), ("brain_small", 0.1749)])
def test_images_of_a_network_are_as_bright_as_its_training_images(name: str, mean: float) -> None:
    """`mean` is that of the training images. From black, photographs came out at 0.29."""
    prior = load_prior(name)
    streams = Streams([key(0, "generate", i) for i in range(48)], prior.shape or (3, 64, 64))
    found = torch.cat([generate(prior, z) for z in streams.normal().split(8)]).mean((1, 2, 3))
    assert abs(float(found.mean()) - mean) < 3 * float(found.std()) / len(found) ** 0.5
