"""The distance of samples from the images of a prior, and the finding that the prior does not fit."""

import pytest
import torch
from torch import Tensor

import invdiff
from invdiff import Compute
from invdiff.operators import MRI, GaussianBlur, Inpainting, Operator, SuperResolution
from invdiff.priors import EDMPrior, Prior, load_prior
from invdiff.priors.closed_form.diagonal_gaussian import DiagonalGaussianPrior
from invdiff.priors.ode import generate
from invdiff.scores.prior_fit import CALLS, MARGIN, References, distance_from, features_of, turned
from invdiff.streams import generator

CPU = torch.device("cpu")


def draws(prior: Prior, count: int, shape: tuple[int, int, int]) -> Tensor:
    noise = torch.randn(count, *shape, generator=generator(2, "generate", 0))
    return generate(prior, noise, steps=12).clamp(0, 1)


def others(own: Tensor) -> Tensor:
    """Inverted, in [-1, 1], noise, flat, a ramp."""
    noise = torch.rand(own.shape[1:], generator=generator(1, "generate", 0))
    ramp = torch.linspace(0, 1, own.shape[-1]).expand(own.shape[1:])
    return torch.stack([1 - own[0], 2 * own[0] - 1, noise, torch.full_like(noise, 0.5), ramp])


def distance(prior: Prior, x: Tensor) -> Tensor:
    found = distance_from(prior, x[:, None], torch.zeros(len(x), 1, dtype=torch.bool), CPU)
    assert found is not None
    return found


def test_draws_are_near_and_other_images_far(digits: EDMPrior) -> None:
    own = draws(digits, 3, (1, 32, 32))
    assert distance(digits, own).max() < 1
    assert distance(digits, others(own)).min() > 1.5


def test_images_upside_down_and_inverted(digits: EDMPrior) -> None:
    """An upright digit without a symmetry is denoised best as it is, and its turns best turned back."""
    own = draws(digits, 4, (1, 32, 32))[2:3]
    plain, upside_down, inverted = (turned(digits, x)[0] for x in (own, own.flip(-2), 1 - own))
    assert plain[0] < 0 < upside_down[0]
    assert plain[1] < 0 < inverted[1]
    assert distance(digits, own.flip(-2)) > 1


def test_a_prior_of_any_size_looks_at_the_centre_in_small() -> None:
    photo = load_prior("photo").eval()
    flat = torch.full((1, 3, 96, 160), 0.5)
    flat[..., :32] = flat[..., -32:] = torch.rand(1, 3, 96, 32)
    assert torch.equal(features_of(photo, flat), features_of(photo, torch.full((1, 3, 64, 64), 0.5)))


def test_the_first_sample_that_is_left_is_taken_and_nothing_else(digits: EDMPrior) -> None:
    own = draws(digits, 2, (1, 32, 32))
    samples = torch.stack([torch.stack([torch.full_like(own[0], torch.nan), x]) for x in own])
    lost = torch.tensor([[True, False], [True, True]])
    found = distance_from(digits, samples, lost, CPU)
    assert found is not None
    torch.testing.assert_close(found[0], distance(digits, own[:1])[0])
    assert found[1].isnan()


def test_nothing_is_said_without_references_or_for_tiny_images(digits: EDMPrior) -> None:
    white = DiagonalGaussianPrior.example()
    lost = torch.zeros(1, 1, dtype=torch.bool)
    assert distance_from(white, torch.zeros(1, 1, 1, 32, 32), lost, CPU) is None
    assert distance_from(digits, torch.zeros(1, 1, 1, 8, 8), lost, CPU) is None


def test_references_measured_on_one_half_take_the_other_for_theirs() -> None:
    """MARGIN times the distance that 95 % of others keep is 1; a shift by five deviations is beyond it."""
    x = torch.randn(400, 6, generator=generator(0, "generate", 0))
    known = References.measured(x[:300], x[300:], torch.zeros(4, 2))
    assert (known.distance(x[300:]) < 1 / MARGIN).float().mean() == pytest.approx(0.95, abs=0.011)
    assert (known.distance(x[300:] + 5) > 1).all()


def test_each_image_costs_what_is_stated(digits: EDMPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    plain = EDMPrior.denoise
    monkeypatch.setattr(EDMPrior, "denoise", lambda self, x, sigma: calls.append(sigma) or plain(self, x, sigma))
    distance_from(digits, torch.rand(2, 3, 1, 32, 32), torch.zeros(2, 3, dtype=torch.bool), CPU)
    assert len(calls) == 2 * CALLS


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Inpainting(keep=0.3), SuperResolution(factor=2), GaussianBlur(std=1.5), MRI()])
def test_a_reconstruction_names_the_prior_that_does_not_fit(operator: Operator, digits: EDMPrior) -> None:
    own = draws(digits, 4, (1, 32, 32))
    x = torch.cat([own, others(own)])
    result = invdiff.reconstruct(
        invdiff.simulate(x, operator, 0.05),
        operator,
        noise=0.05,
        prior=digits,
        num_samples=2,
        compute=Compute(progress=False),
    )
    assert result.prior_distance is not None
    assert result.prior_distance[:4].max() < 1 < result.prior_distance[4:].min()
    assert "prior" in [finding.kind for finding in result.verdict]
