"""Noise: what is drawn, what is scored, and that the two are the same distribution."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from invdiff.operators import (
    GaussianNoise,
    ImpulseNoise,
    LaplaceNoise,
    Noise,
    NoNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    QuantisationNoise,
    SpeckleNoise,
)
from invdiff.operators.noise.base import count_nll, expected_deviance

Normal = Callable[..., Tensor]
N = 100_000  # entries of a Monte Carlo test

MODELS: dict[str, Noise] = {
    "gaussian": GaussianNoise(0.5),
    "none": NoNoise(0.5),
    "poisson": PoissonNoise(0.125),
    "poisson-gaussian": PoissonGaussianNoise(0.125, 0.25),
    "laplace": LaplaceNoise(0.25),
    "impulse": ImpulseNoise(0.25, 0.125, high=1.5),
    "speckle": SpeckleNoise(3.0),
    "quantisation": QuantisationNoise(2, 0.25, low=-0.5, high=1.5),
}
PER_IMAGE: dict[str, Noise] = {
    "gaussian": GaussianNoise(torch.tensor([0.5, 0.25, 2.0])),
    "none": NoNoise(torch.tensor([0.5, 0.25, 2.0])),
    "poisson": PoissonNoise(torch.tensor([0.125, 0.5, 0.25])),
    "poisson-gaussian": PoissonGaussianNoise(torch.tensor([0.125, 0.5, 0.25]), torch.tensor([0.25, 0.125, 1.0])),
    "poisson-gaussian-one": PoissonGaussianNoise(0.125, torch.tensor([0.25, 0.125, 1.0])),
    "laplace": LaplaceNoise(torch.tensor([0.5, 0.25, 2.0])),
    "impulse": ImpulseNoise(torch.tensor([0.25, 0.5, 0.125]), torch.tensor([0.125, 0.25, 0.5])),
    "impulse-one": ImpulseNoise(torch.tensor([0.25, 0.5, 0.125]), 0.125),
    "speckle": SpeckleNoise(torch.tensor([1.0, 4.0, 2.5])),
    "quantisation": QuantisationNoise(3, torch.tensor([0.25, 0.125, 0.5])),
}
NOISY = {name: noise for name, noise in MODELS.items() if name != "none"}


def each(models: dict[str, Noise]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("noise", models.values(), ids=list(models))


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def within(values: Tensor, wanted: float, errors: float = 5) -> bool:
    """Whether the mean of independent values is what it should be, to this many standard errors."""
    values = values.flatten().double()
    return bool((values.mean() - wanted).abs() <= errors * values.std() / math.sqrt(values.numel()))


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_gaussian_moments() -> None:
    for dtype in [torch.float32, torch.float64]:
        for sigma in [0.05, 3.0]:
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


def test_poisson_moments() -> None:
    for gain in [0.01, 0.5]:
        for level in [0.02, 0.5, 40.0]:
            clean = torch.full((1, N), level)
            y = PoissonNoise(gain).sample(clean, streams(0))
            assert within(y, level)
            assert within((y - level) ** 2, gain * level)
            counts = y / gain
            assert (counts - counts.round()).abs().max() <= 1e-2


def test_poisson_counts_nothing_below_zero() -> None:
    assert (PoissonNoise(0.1).sample(torch.full((1, 50), -2.0), streams(0)) == 0).all()


@each(NOISY)
def test_the_variance_is_that_of_the_draws(noise: Noise) -> None:
    """About the noiseless value; that is the mean, but where values are replaced or rounded."""
    for level in [0.05, 0.4, 1.1]:
        clean = torch.full((1, N), level)
        y = noise.sample(clean, streams(0))
        assert y.dtype == torch.float32
        assert within((y - level) ** 2, float(noise.variance(clean[:, :1])))
        if not isinstance(noise, (ImpulseNoise, QuantisationNoise)):
            assert within(y, level)


def test_a_stream_per_image(normal: Normal) -> None:
    """The same stream gives the same y whatever else is in the batch; another stream another y."""
    for noise in NOISY.values():
        clean = normal(3, 1, 6, 6).abs()
        together = noise.sample(clean, streams(5, 6, 7))
        for i, seed in enumerate((5, 6, 7)):
            assert torch.equal(noise.sample(clean[i : i + 1], streams(seed)), together[i : i + 1])
        assert not torch.equal(noise.sample(clean, streams(8, 6, 7))[0], together[0])


def test_a_stream_for_every_image_is_needed(normal: Normal) -> None:
    with pytest.raises(ValueError, match="zip"):
        GaussianNoise(0.3).sample(normal(3, 4), streams(0, 1))


def test_without_noise_y_is_clean(normal: Normal) -> None:
    for dtype in (torch.float32, torch.complex64):
        clean = normal(2, 5, dtype=dtype)
        y = NoNoise(0.3).sample(clean, streams(0, 1))
        assert torch.equal(y, clean)
        assert y.data_ptr() != clean.data_ptr()


# -- what is scored ----------------------------------------------------------------------------------------------------


def log_density(noise: Noise, y: Tensor, clean: Tensor) -> Tensor:
    """Of each entry, by another hand; levels shared by all images."""
    normal = torch.distributions.Normal
    match noise:
        case GaussianNoise(sigma=sigma):
            return normal(clean, sigma.double()).log_prob(y)
        case PoissonNoise(gain=gain):
            return torch.distributions.Poisson(clean / gain.double()).log_prob((y / gain).round())
        case PoissonGaussianNoise(gain=gain, sigma=sigma):
            return normal(clean, (gain * clean + sigma**2).sqrt()).log_prob(y)
        case LaplaceNoise(scale=scale):
            return torch.distributions.Laplace(clean, scale.double()).log_prob(y)
        case SpeckleNoise(looks=looks):
            return torch.distributions.Gamma(looks.double(), looks / clean).log_prob(y)
        case ImpulseNoise(fraction=fraction, sigma=sigma):
            centres = torch.stack([clean, torch.full_like(clean, noise.low), torch.full_like(clean, noise.high)])
            weights = torch.stack([1 - fraction, fraction / 2, fraction / 2]).reshape(3, *[1] * clean.dim())
            return (weights * normal(centres, sigma.double()).log_prob(y).exp()).sum(0).log()
        case QuantisationNoise(sigma=sigma):
            half, law = noise.step / 2, normal(clean, sigma.double())
            begin = torch.where(y - half < noise.low, -math.inf, y - half)
            end = torch.where(y + half > noise.high, math.inf, y + half)
            return (law.cdf(end) - law.cdf(begin)).log()
    raise AssertionError(f"no density for {noise}")


@each(MODELS)
def test_nll_is_the_log_density(noise: Noise, normal: Normal) -> None:
    one, other = normal(2, 30, seed=1).abs() + 0.1, normal(2, 30, seed=2).abs() + 0.1
    y = noise.sample(one, streams(0, 1))
    wanted = (log_density(noise, y, other) - log_density(noise, y, one)).sum(1)
    torch.testing.assert_close(noise.nll(y, one) - noise.nll(y, other), wanted)


@each(NOISY)
def test_what_is_scored_is_what_is_drawn(noise: Noise) -> None:
    """The gradient at the truth is zero on average: no other image of this family explains the draws better."""
    for level in (0.3, 0.9):
        clean = torch.full((1, N), level, dtype=torch.float64, requires_grad=True)
        y = noise.sample(clean.detach(), streams(3))
        (gradient,) = torch.autograd.grad(noise.nll(y, clean).sum(), clean)
        assert gradient.std() > 0.1
        assert within(gradient, 0)


def test_complex_nll_is_that_of_its_parts(normal: Normal) -> None:
    """A complex measurement and the same one as pairs of reals, with sigma / sqrt(2), are one likelihood."""
    y, clean = normal(2, 5, dtype=torch.complex128), normal(2, 5, seed=1, dtype=torch.complex128)
    parts = GaussianNoise(0.5 / math.sqrt(2)).nll(torch.view_as_real(y), torch.view_as_real(clean))
    torch.testing.assert_close(GaussianNoise(0.5).nll(y, clean), parts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts, (y - clean).abs().square().sum(1) / 0.25, rtol=1e-6, atol=1e-6)


def test_nll_is_summed_over_the_measurement_and_not_over_the_batch(normal: Normal) -> None:
    for noise in (PER_IMAGE | {f"{name}-shared": noise for name, noise in MODELS.items()}).values():
        y, clean = normal(3, 2, 4, 5).abs(), normal(3, 2, 4, 5, seed=1).abs() + 0.5
        nll = noise.nll(y, clean)
        assert nll.shape == (3,)
        for i in range(3):
            one, row = noise.select(torch.tensor([i])), slice(i, i + 1)
            torch.testing.assert_close(one.nll(y[row], clean[row]), nll[row])
            halves = [one.nll(y[row, :, half], clean[row, :, half]) for half in (slice(0, 2), slice(2, 4))]
            torch.testing.assert_close(halves[0] + halves[1], nll[row])


def test_gradient(normal: Normal) -> None:
    """Against finite differences, on images inside and outside the range of images."""
    for noise in (MODELS | {f"{name}-per-image": noise for name, noise in PER_IMAGE.items()}).values():
        clean = (normal(3, 6, seed=1).abs() + 0.1).requires_grad_(True)
        y = noise.sample(clean.detach(), streams(0, 1, 2))
        assert torch.autograd.gradcheck(partial(noise.nll, y), (clean,))
        assert torch.autograd.gradcheck(partial(noise.nll, y), ((clean - 2).detach().requires_grad_(True),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", [0.5, torch.tensor([0.5, 0.25])], ids=["shared", "per-image"])
def test_gaussian_gradient(sigma: float | Tensor, dtype: torch.dtype, normal: Normal) -> None:
    """Against finite differences, and against (clean - y) / sigma^2, twice that for a complex entry."""
    noise = GaussianNoise(sigma)
    y, clean = normal(2, 3, 4, dtype=dtype), normal(2, 3, 4, seed=1, dtype=dtype).requires_grad_(True)
    assert torch.autograd.gradcheck(partial(noise.nll, y), (clean,))
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
    assert torch.autograd.gradcheck(partial(noise.nll, y), (clean,))
    (gradient,) = torch.autograd.grad(noise.nll(y, clean).sum(), clean)
    torch.testing.assert_close(gradient, (1 - y / clean.detach()) / gain)


# -- the Poisson likelihood below its floor ----------------------------------------------------------------------------


def slope(noise: Noise, count: float, rate: float) -> tuple[float, float]:
    """nll and its derivative by the rate, in counts."""
    gain = float(noise.gain)  # type: ignore[arg-type]
    clean = torch.tensor([[rate * gain]], dtype=torch.float64, requires_grad=True)
    value = noise.nll(torch.tensor([[count * gain]], dtype=torch.float64), clean)
    (gradient,) = torch.autograd.grad(value.sum(), clean)
    return value.item(), gradient.item() * gain


def test_poisson_continuation_is_smooth() -> None:
    """Value and slope agree on both sides of a tenth of a count."""
    for count in [0, 1, 7, 100]:
        noise = PoissonNoise(0.25)
        (below, slope_below), (above, slope_above) = slope(noise, count, 0.1 - 1e-9), slope(noise, count, 0.1 + 1e-9)
        assert math.isclose(below, above, abs_tol=1e-5)
        assert math.isclose(slope_below, slope_above, rel_tol=1e-6)
        assert math.isclose(slope_above, 1 - count / 0.1, rel_tol=1e-6)


def test_poisson_is_finite_below_zero_and_pulls_back() -> None:
    for rate in [0.0, -1e-3, -1.0, -1e4]:
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


@pytest.mark.parametrize("counts", [0.01, 0.1, 1.0, 10.0, 1000.0])
def test_poisson_misfit_is_one_at_the_truth_for_few_and_many_counts(counts: float, normal: Normal) -> None:
    """Black pixels, where nothing can be counted, and bright ones together."""
    noise, image = PoissonNoise(1 / counts), normal(1, 400).abs() * (normal(1, 400, seed=1) > 0)
    clean = image.expand(400, 400)
    misfit = noise.misfit(noise.sample(clean, streams(*range(400))), clean)
    assert within(misfit, 1)


def test_poisson_misfit_sees_a_wrong_image_but_no_small_error(normal: Normal) -> None:
    clean = normal(1, N).abs() * (normal(1, N, seed=1) > 0)
    for counts in (10.0, 100.0):
        noise = PoissonNoise(1 / counts)
        y = noise.sample(clean, streams(0))
        assert noise.misfit(y, (clean + 0.1 / counts * normal(1, N, seed=2)).clamp(min=0)) < 1.2, "a tenth of a count"
        assert noise.misfit(y, 0.5 * clean) > 1.5
    nothing = torch.zeros(1, 4)
    assert noise.misfit(nothing, nothing) == 0
    assert noise.misfit(nothing, torch.full((1, 4), torch.nan)).isnan().all()


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.02, 0.0999, 0.1001, 1.7, 30.0, 59.0, 61.0, 500.0])
def test_the_expected_deviance_is_the_sum_over_all_counts(rate: float) -> None:
    count, at = torch.arange(1200.0, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64)
    chance = torch.distributions.Poisson(at).log_prob(count).exp()
    exact = chance @ (2 * (count_nll(count, at.expand_as(count)) - count_nll(count, count)))
    assert float(expected_deviance(at)) == pytest.approx(float(exact), rel=1e-4, abs=1e-9)


DARK = NOISY | {"few levels, little noise": QuantisationNoise(3, 0.01), "one look": SpeckleNoise(1.0)}


@each(DARK)
def test_misfit_is_one_at_a_truth_with_black_pixels(noise: Noise, normal: Normal) -> None:
    image = normal(1, 400).abs() * (normal(1, 400, seed=1) > 0.3)
    clean = image.expand(400, 400)
    assert within(noise.misfit(noise.sample(clean, streams(*range(400))), clean), 1)


@each(NOISY)
def test_misfit_is_one_at_the_truth(noise: Noise) -> None:
    for level in [0.05, 0.7]:
        clean = torch.full((N, 1), level)
        assert within(noise.misfit(noise.sample(clean.T, streams(0)).T, clean), 1)


def test_misfit_without_noise_counts_tolerances(normal: Normal) -> None:
    noise, clean = NoNoise(torch.tensor([0.1, 0.2])), normal(2, 6)
    y = noise.sample(clean, streams(0, 1))
    assert (noise.misfit(y, clean) == 0).all()
    torch.testing.assert_close(noise.misfit(y + 0.2, clean).float(), torch.tensor([4.0, 1.0]))


# -- what was not measured ---------------------------------------------------------------------------------------------


@each(NOISY)
def test_hidden_entries_do_not_exist(noise: Noise, normal: Normal) -> None:
    """Neither noise nor likelihood, misfit or gradient, even where y marks them by NaN."""
    for hidden in [torch.nan, torch.inf, 1e3]:
        for per_image in [False, True]:
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


@each(PER_IMAGE)
def test_every_level_per_image(noise: Noise, normal: Normal) -> None:
    """Draws, scores and misfits of rows, in any order and repeated, are those of each image alone."""
    clean, index = normal(3, 2, 5).abs() + 0.2, torch.tensor([2, 0, 0])
    y = noise.sample(clean, streams(0, 1, 2))
    chosen = noise.select(index)
    assert (noise.images, chosen.images) == (3, 3)
    torch.testing.assert_close(chosen.nll(y[index], clean[index]), noise.nll(y, clean)[index])
    torch.testing.assert_close(chosen.misfit(y[index], clean[index]), noise.misfit(y, clean)[index])
    for i in range(3):
        alone, row = noise.select(torch.tensor([i])), slice(i, i + 1)
        assert alone.images == 1
        torch.testing.assert_close(alone.sample(clean[row], streams(i)), y[row])
        torch.testing.assert_close(alone.nll(y[row], clean[row]), noise.nll(y, clean)[row])
    assert not torch.equal(alone.nll(y[:1] + 0.1, clean[:1]), noise.nll(y + 0.1, clean)[:1])
    assert noise.images == 3


def test_single_precision_stays(normal: Normal) -> None:
    for noise in (MODELS | {f"{name}-per-image": noise for name, noise in PER_IMAGE.items()}).values():
        clean = normal(3, 4, dtype=torch.float32).abs()
        y = noise.sample(clean, streams(0, 1, 2))
        assert y.dtype == torch.float32
        assert noise.nll(y, clean).dtype == torch.float32
        assert noise.misfit(y, clean).dtype == torch.float32
        assert all(buffer.dtype == torch.float32 for buffer in noise.buffers())
        for copied in (copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))):
            torch.testing.assert_close(copied.nll(y, clean), noise.nll(y, clean))
        torch.testing.assert_close(
            noise.nll(y, clean), noise.nll(y.double(), clean.double()).float(), rtol=1e-4, atol=1e-4
        )


def test_a_sick_row_harms_no_other(normal: Normal) -> None:
    for noise in NOISY.values():
        clean = normal(2, 4).abs() + 0.2
        y = noise.sample(clean, streams(0, 1))
        wanted = noise.nll(y, clean)[0]
        clean[1, 2] = torch.nan
        nll = noise.nll(y, clean)
        assert torch.equal(nll[0], wanted)
        assert nll[1].isnan()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_bad_sigma() -> None:
    for sigma in [0, -0.1, math.nan, math.inf, torch.tensor([0.1, 0.0])]:
        with pytest.raises(ValueError, match="sigma must be positive, in the units of the measurement, got"):
            GaussianNoise(sigma)


def test_sigma_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"sigma must be a number or one per image, \(B,\), got shape 2x1"):
        GaussianNoise(torch.ones(2, 1))


def test_bad_gain() -> None:
    for gain in [0, -0.1, math.nan, math.inf]:
        with pytest.raises(ValueError, match=f"gain must be positive, the value of one count, got {gain}"):
            PoissonNoise(gain)


def test_complex_measurements_are_refused() -> None:
    """When drawing and when scoring, in one line."""
    for noise in ({name: noise for name, noise in MODELS.items() if not isinstance(noise, GaussianNoise)}).values():
        clean = torch.ones(1, 4, dtype=torch.complex64)
        words = f"{type(noise).__name__} requires a real measurement, got a complex one; use noise=gaussian"
        assert noise.mismatch(clean) == words
        with pytest.raises(ValueError, match=words):
            noise.sample(clean, streams(0))


def test_own_draws_are_accepted(normal: Normal) -> None:
    for noise in MODELS.values():
        observed = torch.tensor([True, True, False, True])
        y = noise.sample(normal(2, 4).abs(), streams(0, 1), observed)
        assert noise.mismatch(torch.where(observed, y, torch.nan), observed) is None


def test_negative_measurements_are_refused() -> None:
    for noise in [PoissonNoise(), SpeckleNoise()]:
        y, observed = torch.tensor([[0.5, -0.25, -0.125], [0.0, -3.0, 0.0]]), torch.tensor([[True, False, True]])
        reason = noise.mismatch(y)
        assert reason is not None
        assert "must be >= 0, got 3 value(s) below zero, down to -3;" in reason
        reason = noise.mismatch(y, observed)
        assert reason is not None
        assert "1 value(s) below zero, down to -0.125;" in reason
        assert noise.mismatch(y.abs()) is None


def test_levels_of_another_number_of_images_are_refused() -> None:
    for noise in PER_IMAGE.values():
        assert noise.mismatch(torch.zeros(2, 4)) == "noise: levels are for 3 images, y has 2"


def test_bad_levels() -> None:
    for make, words in [
        (NoNoise, "no noise: tolerance must be positive, in the units of the measurement"),
        (LaplaceNoise, "laplace noise: scale must be positive, in the units of the measurement"),
        (SpeckleNoise, "speckle noise: looks must be positive, the number of intensities averaged"),
        (PoissonGaussianNoise, "poisson-gaussian noise: gain must be positive, the value of one count"),
        (lambda v: PoissonGaussianNoise(0.1, v), "poisson-gaussian noise: sigma must be positive, in the units"),
        (ImpulseNoise, "impulse noise: fraction must be positive, the probability of an impulse"),
        (lambda v: ImpulseNoise(0.1, v), "impulse noise: sigma must be positive, in the units of the measurement"),
        (lambda v: QuantisationNoise(3, v), "quantisation noise: sigma must be positive, in the units of the"),
    ]:
        for value in [0, -0.1, math.nan, math.inf, torch.tensor([0.1, 0.0])]:
            with pytest.raises(ValueError, match=words):
                make(value)
            with pytest.raises(ValueError, match=r"must be a number or one per image, \(B,\), got shape 2x1"):
                make(torch.full((2, 1), 0.5))


def test_bad_parameters() -> None:
    for make, words in [
        (lambda: ImpulseNoise(1.0), "fraction, the probability of an impulse, must be < 1, got 1.0"),
        (
            lambda: ImpulseNoise(low=1.0, high=0.0),
            "low must be < high, the values of the impulses, got 1.0 and",
        ),
        (lambda: QuantisationNoise(low=1.0, high=1.0), "low must be < high, the outermost levels, got 1.0 and 1.0"),
        (lambda: SpeckleNoise(floor=0), "speckle noise: floor, the darkest intensity, must be > 0, got 0"),
        (lambda: QuantisationNoise(0), "quantisation noise: bits must be an integer from 1 to 8, got 0"),
        (lambda: QuantisationNoise(9), "bits must be an integer from 1 to 8, got 9"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
