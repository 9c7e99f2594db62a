"""Quantisation after noise: probabilities of intervals, in the tails too, and what one bit still tells."""

import math
from collections.abc import Callable

import mpmath  # comes with torch
import pytest
import torch
from torch import Tensor

from invdiff.operators import LinearCallableOperator, QuantisationNoise
from invdiff.operators.noise.quantisation import log_interval
from invdiff.problem import InverseProblem

Normal = Callable[..., Tensor]


def stream(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_probabilities_of_all_levels_sum_to_one(bits: int) -> None:
    noise = QuantisationNoise(bits, 0.1, low=-1, high=2)
    levels = noise.low + noise.step * torch.arange(2**bits, dtype=torch.float64)
    for clean in (-30.0, -1.0, 0.3, 1.9, 30.0):
        nll = noise.entry_nll(levels[:, None], torch.full((2**bits, 1), clean, dtype=torch.float64))
        assert math.isclose(float((-nll).exp().sum()), 1, rel_tol=1e-10)


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("clean", [-0.1, 0.3, 0.5])
def test_probabilities_are_the_frequencies_of_the_draws(bits: int, clean: float) -> None:
    noise, n = QuantisationNoise(bits, 0.15), 100_000
    y = noise.sample(torch.full((1, n), clean), stream())
    levels = noise.step * torch.arange(2**bits)
    wanted = (-noise.entry_nll(levels[:, None], torch.full((2**bits, 1), clean))).exp().flatten()
    found = torch.stack([((y - level).abs() < 1e-6).double().mean() for level in levels])
    assert math.isclose(float(found.sum()), 1)
    assert ((found - wanted).abs() <= 5 * (wanted * (1 - wanted) / n).sqrt() + 1e-6).all()


def test_intervals_in_the_tails() -> None:
    """Value and gradient against a hundred digits."""
    for low in [-1e4, -300.0, -40.0, -1.0, -0.05, 0.0, 2.0, 40.0, 300.0, 1e4]:
        for width in [0.1, 1.0, 30.0]:
            for dtype, tolerance in [(torch.float32, 1e-5), (torch.float64, 1e-12)]:
                begin = torch.tensor(low, dtype=dtype, requires_grad=True)
                end = begin + width
                value = log_interval(begin, end)
                (gradient,) = torch.autograd.grad(value, begin)  # of moving both ends
                with mpmath.workdps(100):
                    a, b = (
                        sorted((abs(begin.item()), abs(end.item())))
                        if low >= 0
                        else sorted((-begin.item(), -end.item()))
                    )
                    a, b = mpmath.mpf(a), mpmath.mpf(b)
                    probability = (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2
                    heights = [mpmath.exp(-(z**2) / 2) / mpmath.sqrt(2 * mpmath.pi) for z in (a, b)]
                    slope = float((heights[1] - heights[0]) / probability) * (1 if low >= 0 else -1)
                    wanted = float(mpmath.log(probability))
                assert value.item() == pytest.approx(wanted, rel=tolerance, abs=tolerance)
                assert gradient.item() == pytest.approx(slope, rel=10 * tolerance, abs=10 * tolerance)


def test_gradient_is_finite_and_points_into_the_interval() -> None:
    for clean in [-1e3, -1.0, 0.0, 0.49, 1.5, 1e3]:
        for sigma in [1e-4, 0.05, 10.0]:
            noise = QuantisationNoise(2, sigma)
            y, at = noise.step * torch.arange(4.0)[None], torch.full((1, 4), clean, requires_grad=True)
            nll = noise.nll(y, at)
            (gradient,) = torch.autograd.grad(nll.sum(), at)
            assert nll.isfinite().all()
            assert gradient.isfinite().all()
            outside = (y - clean).abs() > noise.step / 2 + 3 * sigma
            beyond = ((y == 0) & (clean < 0)) | (
                (y == 1) & (clean > 1)
            )  # the outermost levels take all that lies there
            assert (gradient.sign() == (clean - y).sign())[outside & ~beyond].all()
            assert (gradient[beyond & outside].abs() <= 1e-6 / sigma).all()


def test_fine_steps_are_gaussian_noise(normal: Normal) -> None:
    """Sheppard: steps far below sigma add a twelfth of their square to the variance."""
    noise, clean = QuantisationNoise(8, 0.05), 0.5 + 0.05 * normal(1, 50)
    wanted = torch.full_like(clean, float(noise.sigma) ** 2 + noise.step**2 / 12)
    torch.testing.assert_close(noise.variance(clean), wanted, rtol=1e-5, atol=0)


def test_one_bit_compressed_sensing(normal: Normal) -> None:
    """The sign of each of 512 noisy projections gives back the direction of an image of 64 pixels."""
    shape, matrix = (1, 8, 8), normal(512, 64, seed=5) / 8
    operator = LinearCallableOperator(lambda x: x.flatten(1) @ matrix.to(x).T, image_shape=shape)
    noise, truth = QuantisationNoise(1, 0.3, low=-1, high=1), normal(1, *shape, seed=6)
    y = noise.sample(operator(truth), stream())
    assert set(y.flatten().tolist()) == {-1, 1}
    problem = InverseProblem(operator, noise, y.float())
    x = torch.zeros(1, *shape)
    for _ in range(200):
        x = x - 0.02 * problem.nll_gradient(x)
    cosine = torch.nn.functional.cosine_similarity(x.flatten(), truth.float().flatten(), dim=0)
    assert cosine >= 0.9


def test_measurements_off_the_levels_are_refused() -> None:
    noise = QuantisationNoise(3)
    y = torch.tensor([[0.0, 1 / 7, 0.52, 1.0]])
    words = "quantisation noise: y must lie on 8 levels from 0 to 1, got 1 other value(s), such as 0.52; "
    assert noise.mismatch(y) == words + "set bits, low and high"
    assert noise.mismatch(y, torch.tensor([True, True, False, True])) is None
    assert noise.mismatch(torch.tensor([[2.0]])) is not None
    assert QuantisationNoise(1, low=-1, high=1).mismatch(torch.tensor([[-1.0, 1.0]])) is None
