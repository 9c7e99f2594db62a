"""Photon-counting tomography."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import CT, CTTransmission, GaussianNoise, PoissonNoise
from invdiff.problem import InverseProblem

Normal = Callable[..., Tensor]


def disk(size: int = 32) -> Tensor:
    axis = torch.linspace(-1, 1, size)
    return 0.8 * (axis**2 + axis[:, None] ** 2 < 0.6**2).float()[None, None]


@pytest.mark.parametrize("size", [(16, 16), (12, 30)])
def test_attenuation_is_that_of_an_image_side_of_ones(size: tuple[int, int]) -> None:
    """Of any image: the attenuation does not depend on the number of pixels."""
    y = CTTransmission(views=2, attenuation=3.0, size=size)(torch.ones(1, 1, *size))
    along_rows = y[0, 0, y.shape[2] // 2, 1]
    assert along_rows == pytest.approx(math.exp(-3.0 * size[1] / max(size)), rel=1e-5)


def test_counts(normal: Normal) -> None:
    """The likelihood is that of Poisson counts: its gradient is A'(counts - expected counts), as in the textbook."""
    photons, attenuation, size = 50.0, 2.0, 6
    operator, linear = CTTransmission(views=5, attenuation=attenuation), CT(views=5, pixel_size=attenuation / size)
    x = 0.5 + 0.1 * normal(2, 1, size, size)
    noise = PoissonNoise(gain=1 / photons)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    y = noise.sample(operator(x), generators)
    got = InverseProblem(operator, noise, y).nll_gradient(x + 0.02)
    wanted = linear.adjoint(photons * y - photons * torch.exp(-linear(x + 0.02)))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_the_tangent_goes_on_below_negative_line_integrals() -> None:
    """Exact as far as images are not negative as a whole, then a straight line of the same value and slope."""
    operator = CTTransmission(views=1, attenuation=1.0)
    level = torch.tensor([0.5, -0.5, -1.0, -3.0], dtype=torch.float64)
    y = operator(level[:, None, None, None].expand(-1, 1, 4, 4))[:, 0, 2, 0]
    e = math.e
    torch.testing.assert_close(y, torch.tensor([e**-0.5, e**0.5, e, e + 2 * e], dtype=torch.float64))


def test_gradient(normal: Normal) -> None:
    """Against finite differences, on both branches."""
    operator = CTTransmission(views=3, attenuation=6.0)
    x = 2 * normal(1, 1, 5, 5)
    t = operator.ct(x) * 6 / 5
    assert (t < -1.1).any()
    assert (t > -0.9).any()
    assert torch.autograd.gradcheck(operator, x.requires_grad_(True), rtol=1e-6)


def test_noisy_iterates_stay_finite(normal: Normal) -> None:
    """Where a sampler starts, images are noise of standard deviation 50; the bare exponential is infinite there."""
    operator, x = CTTransmission(views=8), 50 * normal(1, 1, 32, 32, dtype=torch.float32)
    y = operator(disk())
    for noise in (PoissonNoise(gain=1e-3), GaussianNoise(0.01)):
        problem = InverseProblem(operator, noise, y)
        assert problem.nll(x).isfinite().all()
        assert problem.nll_gradient(x).isfinite().all()
    assert operator(x - 1000).isfinite().all()


def test_first_guess() -> None:
    """Without noise it is the filtered back-projection of the line integrals; with many photons close to that."""
    operator, x = CTTransmission(views=60), disk()
    y = operator(x)
    exact = CT(views=60).first_guess(CT(views=60)(x))
    torch.testing.assert_close(operator.first_guess(y), exact, rtol=1e-4, atol=1e-4)
    noisy = PoissonNoise(gain=1e-6).sample(y, [torch.Generator().manual_seed(0)])
    assert (operator.first_guess(noisy) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("attenuation", [4.0, 20.0])
def test_first_guess_without_a_single_photon(attenuation: float) -> None:
    """Zero counts, and all of them zero in one image: finite, and the other images as they are alone."""
    operator = CTTransmission(views=20, attenuation=attenuation)
    y = PoissonNoise(gain=1 / 20).sample(operator(disk()), [torch.Generator().manual_seed(0)])
    assert (y == 0).any()
    both = torch.cat([torch.zeros_like(y), y])
    guess = operator.first_guess(both)
    assert guess.isfinite().all()
    torch.testing.assert_close(guess[1:], operator.first_guess(y))


def test_first_guess_of_negative_data(normal: Normal) -> None:
    """With Gaussian noise dark rays go below zero, or a millionth above: no ray is darker than an image of ones."""
    operator = CTTransmission(views=20)
    y = torch.full((1, 1, 46, 20), 1e-9)
    y[..., ::2, :] = -0.1
    black = torch.full_like(y, math.exp(-4 * math.sqrt(2)))
    torch.testing.assert_close(operator.first_guess(y), operator.first_guess(black), rtol=1e-4, atol=1e-4)


def test_shapes_are_those_of_ct() -> None:
    operator = CTTransmission(views=7, geometry="fan", size=[6, 9], detectors=12)
    assert operator.image_shape((1, 12, 7)) == (1, 6, 9)
    assert operator(torch.zeros(2, 3, 6, 9)).shape == (2, 3, 12, 7)
    assert operator.mismatch((1, 9, 6)) == "ct: size is 6x9, the image 9x6"


@pytest.mark.parametrize("attenuation", [0, -1.0, float("inf")])
def test_bad_attenuation(attenuation: float) -> None:
    with pytest.raises(
        ValueError, match=f"ct_transmission: attenuation, a line integral, must be > 0, got {attenuation}"
    ):
        CTTransmission(attenuation=attenuation)
