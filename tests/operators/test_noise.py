"""Noise: what is drawn, what is scored, and that the two are the same distribution."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.operators import GaussianNoise, Noise, PoissonNoise

Normal = Callable[..., Tensor]
N = 100_000  # entries of a Monte Carlo test


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def within(values: Tensor, wanted: float, errors: float = 5) -> bool:
    """Whether the mean of independent values is what it should be, to this many standard errors."""
    values = values.flatten().double()
    return bool((values.mean() - wanted).abs() <= errors * values.std() / math.sqrt(values.numel()))


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_moments(sigma: float, dtype: torch.dtype) -> None:
    clean = torch.full((1, N), 0.3, dtype=dtype)
    noise = GaussianNoise(sigma).sample(clean, streams(0)) - clean
    assert noise.dtype == dtype
    assert within(noise, 0)
    assert within(noise**2, sigma**2)


def test_complex_gaussian_moments() -> None:
    """sigma^2 is the variance of the complex number, half of it in each part, the parts independent."""
    clean = torch.full((1, N), 0.3 - 0.2j, dtype=torch.complex64)
    noise = GaussianNoise(0.7).sample(clean, streams(0)) - clean
    assert noise.dtype == torch.complex64
    assert within(noise.real, 0)
    assert within(noise.imag, 0)
    assert within(noise.abs() ** 2, 0.49)
    assert within(noise.real**2, 0.245)
    assert within(noise.imag**2, 0.245)
    assert within(noise.real * noise.imag, 0)


@pytest.mark.parametrize("level", [0.02, 0.5, 40.0])
@pytest.mark.parametrize("gain", [0.01, 0.5])
def test_poisson_moments(level: float, gain: float) -> None:
    clean = torch.full((1, N), level)
    y = PoissonNoise(gain).sample(clean, streams(0))
    assert within(y, level)
    assert within((y - level) ** 2, gain * level)
    counts = y / gain
    assert (counts - counts.round()).abs().max() <= 1e-2


def test_poisson_counts_nothing_below_zero() -> None:
    assert (PoissonNoise(0.1).sample(torch.full((1, 50), -2.0), streams(0)) == 0).all()


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(0.1)], ids=["gaussian", "poisson"])
def test_a_stream_per_image(noise: Noise, normal: Normal) -> None:
    """The same stream gives the same y whatever else is in the batch; another stream another y."""
    clean = normal(3, 1, 4, 4).abs()
    together = noise.sample(clean, streams(5, 6, 7))
    for i, seed in enumerate((5, 6, 7)):
        assert torch.equal(noise.sample(clean[i : i + 1], streams(seed)), together[i : i + 1])
    assert not torch.equal(noise.sample(clean, streams(8, 6, 7))[0], together[0])


def test_a_stream_for_every_image_is_needed(normal: Normal) -> None:
    with pytest.raises(ValueError, match="zip"):
        GaussianNoise(0.3).sample(normal(3, 4), streams(0, 1))


# -- what is scored ----------------------------------------------------------------------------------------------------


def test_gaussian_nll_is_the_log_density(normal: Normal) -> None:
    y, one, other = normal(2, 3, 4), normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    noise = GaussianNoise(0.5)
    density = torch.distributions.Normal
    wanted = (density(other, 0.5).log_prob(y) - density(one, 0.5).log_prob(y)).flatten(1).sum(1)
    torch.testing.assert_close(noise.nll(y, one) - noise.nll(y, other), wanted)


def test_complex_nll_is_that_of_its_parts(normal: Normal) -> None:
    """A complex measurement and the same one as pairs of reals, with sigma / sqrt(2), are one likelihood."""
    y, clean = normal(2, 5, dtype=torch.complex128), normal(2, 5, seed=1, dtype=torch.complex128)
    parts = GaussianNoise(0.5 / math.sqrt(2)).nll(torch.view_as_real(y), torch.view_as_real(clean))
    torch.testing.assert_close(GaussianNoise(0.5).nll(y, clean), parts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts, (y - clean).abs().square().sum(1) / 0.25, rtol=1e-6, atol=1e-6)


def test_poisson_nll_is_the_log_density(normal: Normal) -> None:
    gain = 0.2
    one, other = normal(2, 30, seed=1).abs() + 0.1, normal(2, 30, seed=2).abs() + 0.1
    noise = PoissonNoise(gain)
    y = noise.sample(one, streams(0, 1))
    counts, density = (y / gain).round(), torch.distributions.Poisson
    wanted = (density(other / gain).log_prob(counts) - density(one / gain).log_prob(counts)).sum(1)
    torch.testing.assert_close(noise.nll(y, one) - noise.nll(y, other), wanted)


@pytest.mark.parametrize(
    "noise", [GaussianNoise(0.5), GaussianNoise(torch.tensor([0.5, 0.25, 2.0])), PoissonNoise(0.1)]
)
def test_nll_is_summed_over_the_measurement_and_not_over_the_batch(noise: Noise, normal: Normal) -> None:
    y, clean = normal(3, 2, 4, 5).abs(), normal(3, 2, 4, 5, seed=1).abs() + 0.5
    nll = noise.nll(y, clean)
    assert nll.shape == (3,)
    for i in range(3):
        one, row = noise.select(torch.tensor([i])), slice(i, i + 1)
        torch.testing.assert_close(one.nll(y[row], clean[row]), nll[row])
        halves = [one.nll(y[row, :, half], clean[row, :, half]) for half in (slice(0, 2), slice(2, 4))]
        torch.testing.assert_close(halves[0] + halves[1], nll[row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", [0.5, torch.tensor([0.5, 0.25])], ids=["shared", "per-image"])
def test_gaussian_gradient(sigma: float | Tensor, dtype: torch.dtype, normal: Normal) -> None:
    """Against finite differences, and against (clean - y) / sigma^2, twice that for a complex entry."""
    noise = GaussianNoise(sigma)
    y, clean = normal(2, 3, 4, dtype=dtype), normal(2, 3, 4, seed=1, dtype=dtype).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda c: noise.nll(y, c), (clean,))
    (gradient,) = torch.autograd.grad(noise.nll(y, clean).sum(), clean)
    level = noise.sigma.double().reshape(-1, 1, 1)
    torch.testing.assert_close(gradient, (2 if dtype.is_complex else 1) * (clean - y).detach() / level**2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gaussian_gradient_where_the_residual_is_zero(dtype: torch.dtype, normal: Normal) -> None:
    """A modulus has no derivative there, its square has: zero, with the curvature of everywhere else."""
    y = normal(1, 3, dtype=dtype)
    clean = y.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(GaussianNoise(0.5).nll(y, clean).sum(), clean, create_graph=True)
    assert (gradient == 0).all()
    parts = torch.view_as_real(gradient) if dtype.is_complex else gradient
    (curvature,) = torch.autograd.grad(parts.sum(), clean)
    wanted = torch.full((1, 3), 8 + 8j if dtype.is_complex else 4, dtype=dtype)
    torch.testing.assert_close(curvature, wanted)


def test_poisson_gradient(normal: Normal) -> None:
    gain = 0.1
    noise = PoissonNoise(gain)
    clean = (normal(2, 6, seed=1).abs() + 0.05).requires_grad_(True)
    y = noise.sample(clean.detach(), streams(0, 1))
    assert torch.autograd.gradcheck(lambda c: noise.nll(y, c), (clean,))
    (gradient,) = torch.autograd.grad(noise.nll(y, clean).sum(), clean)
    torch.testing.assert_close(gradient, (1 - y / clean.detach()) / gain)


# -- the Poisson likelihood below its floor ----------------------------------------------------------------------------


def slope(noise: Noise, count: float, rate: float) -> tuple[float, float]:
    """nll and its derivative by the rate, in counts."""
    gain = noise.gain
    clean = torch.tensor([[rate * gain]], dtype=torch.float64, requires_grad=True)
    value = noise.nll(torch.tensor([[count * gain]], dtype=torch.float64), clean)
    (gradient,) = torch.autograd.grad(value.sum(), clean)
    return value.item(), gradient.item() * gain


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_poisson_continuation_is_smooth(count: int) -> None:
    """Value and slope agree on both sides of a tenth of a count."""
    noise = PoissonNoise(0.25)
    (below, slope_below), (above, slope_above) = slope(noise, count, 0.1 - 1e-9), slope(noise, count, 0.1 + 1e-9)
    assert math.isclose(below, above, abs_tol=1e-5)
    assert math.isclose(slope_below, slope_above, rel_tol=1e-6)
    assert math.isclose(slope_above, 1 - count / 0.1, rel_tol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1e-3, -1.0, -1e4])
def test_poisson_is_finite_below_zero_and_pulls_back(rate: float) -> None:
    noise = PoissonNoise(0.25)
    value, derivative = slope(noise, 3, rate)
    assert math.isclose(value, 0.1 - 3 * math.log(0.1) + (1 - 30) * (rate - 0.1), rel_tol=1e-9)
    assert math.isclose(derivative, 1 - 30, rel_tol=1e-9)


@pytest.mark.parametrize("count", [0, -0.5])
def test_poisson_without_a_count_does_not_reward_negative_rates(count: float) -> None:
    """Below zero counts as zero, as it does when drawing: flat there, exact above."""
    noise = PoissonNoise(0.25)
    assert slope(noise, count, -3.0) == (slope(noise, count, -1e-12)[0], 0)
    assert slope(noise, 0, -3.0)[0] == pytest.approx(0, abs=1e-12)
    assert slope(noise, 0, 0.05) == pytest.approx((0.05, 1))


# -- misfit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gaussian_misfit_is_one_at_the_truth(dtype: torch.dtype, normal: Normal) -> None:
    noise, clean = GaussianNoise(torch.tensor([0.1, 2.0])), normal(2, N, dtype=dtype)
    error = 5 * math.sqrt((1 if dtype.is_complex else 2) / N)
    misfit = noise.misfit(noise.sample(clean, streams(0, 1)), clean)
    assert misfit.shape == (2,)
    assert ((misfit - 1).abs() <= error).all()
    assert ((noise.misfit(clean + 3 * noise.sigma[:, None], clean) - 9).abs() <= 1e-4).all()


def test_poisson_misfit_is_one_at_the_truth(normal: Normal) -> None:
    noise, clean = PoissonNoise(0.1), normal(1, N).abs() + 0.1
    misfit = noise.misfit(noise.sample(clean, streams(0)), clean)
    assert abs(misfit.item() - 1) <= 5 * math.sqrt((2 + (0.1 / clean).mean().item()) / N)


# -- what was not measured ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [GaussianNoise(0.5), PoissonNoise(0.1)], ids=["gaussian", "poisson"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("hidden", [torch.nan, torch.inf, 1e3])
def test_hidden_entries_do_not_exist(noise: Noise, per_image: bool, hidden: float, normal: Normal) -> None:
    """Neither noise nor likelihood, misfit or gradient, even where y marks them by NaN."""
    shape = (2, 1, 4, 5) if per_image else (1, 1, 4, 5)
    observed = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    clean = normal(2, 3, 4, 5).abs() + 0.2
    y = noise.sample(clean, streams(0, 1), observed)
    assert (y.masked_select(~observed) == 0).all()
    torch.testing.assert_close(y, torch.where(observed, noise.sample(clean, streams(0, 1)), 0))

    y = torch.where(observed, y, hidden)
    clean.requires_grad_(True)
    nll, misfit = noise.nll(y, clean, observed), noise.misfit(y, clean, observed)
    (gradient,) = torch.autograd.grad(nll.sum(), clean)
    (other,) = torch.autograd.grad(misfit.sum(), clean)
    assert (gradient.masked_select(~observed) == 0).all()
    assert (other.masked_select(~observed) == 0).all()
    for i in range(2):
        seen = observed.expand(2, 3, 4, 5)[i]
        own_y, own_clean = y[i][seen][None], clean.detach()[i][seen][None].requires_grad_(True)
        own = noise.nll(own_y, own_clean)
        torch.testing.assert_close(nll[i : i + 1], own)
        torch.testing.assert_close(misfit[i : i + 1], noise.misfit(own_y, own_clean))
        torch.testing.assert_close(gradient[i][seen], torch.autograd.grad(own.sum(), own_clean)[0][0])


# -- a level per image -------------------------------------------------------------------------------------------------


def test_sigma_per_image() -> None:
    noise = GaussianNoise(torch.tensor([0.1, 1.0, 10.0]))
    draws = noise.sample(torch.zeros(3, N), streams(0, 1, 2))
    for row, sigma in zip(draws, (0.1, 1.0, 10.0), strict=True):
        assert within(row**2, sigma**2)


def test_select(normal: Normal) -> None:
    """Rows in any order and repeated, as several samples per image are."""
    noise, index = GaussianNoise(torch.tensor([0.1, 1.0, 10.0])), torch.tensor([2, 0, 0])
    y, clean = normal(3, 4), normal(3, 4, seed=1)
    some = noise.select(index)
    torch.testing.assert_close(some.sigma, torch.tensor([10.0, 0.1, 0.1]))
    torch.testing.assert_close(some.nll(y[index], clean[index]), noise.nll(y, clean)[index])
    torch.testing.assert_close(some.misfit(y[index], clean[index]), noise.misfit(y, clean)[index])
    assert torch.equal(noise.sigma, torch.tensor([0.1, 1.0, 10.0]))
    shared = GaussianNoise(0.1)
    assert shared.select(index) is shared


def test_single_precision_stays(normal: Normal) -> None:
    y, clean = normal(2, 4, dtype=torch.float32), normal(2, 4, seed=1, dtype=torch.float32)
    for noise in (GaussianNoise(0.1), GaussianNoise(torch.tensor([0.1, 1.0], dtype=torch.float64)), PoissonNoise(0.1)):
        assert noise.nll(y, clean).dtype == torch.float32
        assert noise.misfit(y, clean).dtype == torch.float32
        assert all(buffer.dtype == torch.float32 for buffer in noise.buffers())
        torch.testing.assert_close(copy.deepcopy(noise).nll(y, clean), noise.nll(y, clean))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0, -0.1, math.nan, math.inf, torch.tensor([0.1, 0.0])])
def test_bad_sigma(sigma: float | Tensor) -> None:
    with pytest.raises(ValueError, match="sigma must be positive, in the units of the measurement, got"):
        GaussianNoise(sigma)


def test_sigma_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"sigma is a number or one per image, \(B,\), got shape 2x1"):
        GaussianNoise(torch.ones(2, 1))


@pytest.mark.parametrize("gain", [0, -0.1, math.nan, math.inf])
def test_bad_gain(gain: float) -> None:
    with pytest.raises(ValueError, match=f"gain must be positive, the value of one count, got {gain}"):
        PoissonNoise(gain)
