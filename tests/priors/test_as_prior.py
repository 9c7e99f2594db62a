"""Ways in for other people's denoisers."""

from collections.abc import Callable

import pytest
import torch
from deepinv.models import DRUNet
from torch import Tensor, nn

from invdiff.contracts.toys import WhitePrior
from invdiff.priors import CallablePrior, DeepinvPrior, as_prior
from invdiff.shapes import sigma_per_row

Normal = Callable[..., Tensor]


def halved(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma_per_row(sigma, x))


def test_a_prior_stays_what_it_is() -> None:
    prior = WhitePrior()
    assert as_prior(prior) is prior
    with pytest.raises(TypeError, match="declares its shape"):
        as_prior(prior, channels=3)


def test_a_function_of_images_and_levels(normal: Normal) -> None:
    x, sigma = normal(2, 1, 4, 4), torch.tensor([0.5, 2.0], dtype=torch.float64)
    prior = as_prior(halved, channels=1, sigma_range=(0.1, 3.0))
    assert isinstance(prior, CallablePrior)
    assert torch.equal(prior.denoise(x, sigma), halved(x, sigma))
    assert torch.equal(prior.denoise(x, 0.5), halved(x, torch.tensor([0.5, 0.5], dtype=x.dtype)))
    assert prior.mismatch((3, 4, 4)) == "this prior expects 1 channel, got 3"


def test_outside_its_levels_it_is_told_the_nearest(normal: Normal) -> None:
    x = normal(2, 1, 4, 4)
    prior = as_prior(halved, sigma_range=(0.1, 3.0))
    assert torch.equal(prior.denoise(x, 50.0), prior.denoise(x, 3.0))
    assert torch.equal(prior.denoise(x, 0.0), prior.denoise(x, 0.1))


def test_a_module_is_frozen_and_evaluated() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.layers(x)

    network = Network()
    prior = as_prior(network, shape=(1, 8, 8))
    assert not network.training
    assert not any(p.requires_grad for p in prior.parameters())
    assert len(list(prior.parameters())) == 2


def test_a_function_that_autograd_must_not_enter(normal: Normal) -> None:
    x = normal(1, 1, 4, 4).requires_grad_(True)
    assert not CallablePrior(halved, differentiable=False).denoise(x, 0.5).requires_grad
    assert CallablePrior(halved).denoise(x, 0.5).requires_grad


def test_a_denoiser_of_deepinv() -> None:
    denoiser = DRUNet(in_channels=1, out_channels=1, nc=(2, 2, 2, 2), nb=1, pretrained=None)
    prior = as_prior(denoiser, value_range=(-1.0, 1.0), sigma_range=(0.01, 0.5))
    assert isinstance(prior, DeepinvPrior)
    assert (prior.function, prior.channels, prior.sigma_range) == (denoiser, 1, (0.01, 0.5))


def test_other_things() -> None:
    for thing in [3, "drunet", None, DRUNet, WhitePrior]:
        with pytest.raises(TypeError, match="an invdiff Prior, a deepinv Denoiser or a function"):
            as_prior(thing)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x, sigma: x[:, :, :2], r"of shape \(2, 1, 4, 4\), got \(2, 1, 2, 4\)"),
        (lambda x, sigma: torch.cat([x, x], 1), r"\(2, 2, 4, 4\).*ParametrisedPrior"),
        (lambda x, sigma: x.numpy(), "ndarray"),
    ],
)
def test_an_answer_that_is_no_image(answer: Callable[[Tensor, Tensor], Tensor], said: str, normal: Normal) -> None:
    with pytest.raises(ValueError, match=said):
        as_prior(answer).denoise(normal(2, 1, 4, 4), 0.5)


def test_levels_that_are_none() -> None:
    for levels in [(1.0, 0.1), (-1.0, 1.0), (float("nan"), 1.0), (0.1, float("nan"))]:
        with pytest.raises(ValueError, match="sigma_range must be"):
            CallablePrior(halved, sigma_range=levels)


def test_a_range_that_is_none() -> None:
    for values in [(1.0, 0.0), (0.0, float("nan"))]:
        with pytest.raises(ValueError, match="value_range must be"):
            CallablePrior(halved, value_range=values)
