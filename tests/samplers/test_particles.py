"""The core of the particle filters: weights, resampling, evidence, clouds."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import CallableOperator, Denoising, GaussianBlur, GaussianNoise, Inpainting, PoissonNoise
from invdiff.samplers.moves import largest_curvature
from invdiff.samplers.particles.base import each_particle
from invdiff.samplers.particles.cloud import Cloud
from invdiff.samplers.particles.spectrum import Spectrum
from invdiff.samplers.particles.weights import Weights, effective, inverse_cdf, normalised, systematic, take, uniform
from invdiff.streams import Streams, key


def streams(rows: int, seed: int = 0, first: int = 0) -> Streams:
    return Streams([key(seed, "sample", first + i) for i in range(rows)], (1,))


def random_weights(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


# -- resampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [0.0, 0.37, 1 - 2**-53])
def test_systematic_counts_are_the_expected_ones_rounded(u: float) -> None:
    weights = normalised(random_weights(50, 23))
    ancestors = systematic(weights, torch.full((50,), u, dtype=torch.float64))
    for row, expected in zip(ancestors, 23 * weights, strict=True):
        assert ((torch.bincount(row, minlength=23) - expected).abs() < 1 + 1e-9).all()


def test_systematic_counts_are_unbiased() -> None:
    weights = normalised(random_weights(1, 7)).expand(4000, 7)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.stack([torch.bincount(row, minlength=7) for row in systematic(weights, u)]).double()
    assert torch.allclose(counts.mean(0), 7 * weights[0], atol=2e-3)


def test_a_particle_without_weight_is_never_taken() -> None:
    log_weights = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]], dtype=torch.float64)
    points = torch.tensor([[0.0, 0.1, 0.9, 1 - 2**-53]], dtype=torch.float64)
    assert set(inverse_cdf(normalised(log_weights), points).flatten().tolist()) == {1, 3}


def test_uniform_numbers_are_uniform_and_of_each_row() -> None:
    u = uniform(streams(2000), torch.zeros(1))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert float((u.sort().values - (torch.arange(2000) + 0.5) / 2000).abs().max()) < 0.04  # Kolmogorov-Smirnov
    assert torch.equal(uniform(streams(1, first=7), torch.zeros(1)), u[7:8])


@pytest.mark.parametrize(("threshold", "times"), [(0.0, 0), (0.5, 1), (1.0, 1)])
def test_a_chain_is_resampled_where_its_effective_number_is_low(threshold: float, times: int) -> None:
    weights = Weights(2, 4, threshold)
    weights.multiply(torch.tensor([[0.0, 0, 0, 0], [9.0, 0, 0, 0]]))
    before = weights.log_evidence
    ancestors = weights.resample(streams(2))
    assert weights.resamplings.tolist() == [0, times]
    assert ancestors[0].tolist() == [0, 1, 2, 3]
    assert ancestors[1].tolist() == ([0, 0, 0, 0] if times else [0, 1, 2, 3])
    assert torch.allclose(weights.log_evidence, before)  # resampling keeps the evidence
    assert weights.log_weights[1].tolist() == ([0.0] * 4 if times else [9.0, 0, 0, 0])
    assert torch.allclose(weights.ess[:, 0], effective(normalised(torch.tensor([[0.0] * 4, [9.0, 0, 0, 0]]).double())))


def test_the_stream_of_a_chain_does_not_depend_on_whether_it_was_resampled() -> None:
    a, b = streams(1), streams(1)
    for rng, threshold in ((a, 0.0), (b, 1.0)):
        weights = Weights(1, 4, threshold)
        weights.multiply(random_weights(1, 4))
        weights.resample(rng)
    assert torch.equal(a.normal(), b.normal())


def test_everything_of_an_ancestor_is_taken() -> None:
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    index = torch.tensor([[2, 2, 0], [1, 0, 1]])
    assert torch.equal(take(values, index)[0], values[0][[2, 2, 0]])
    assert torch.equal(take(values[..., 0, 0], index)[1], values[1, [1, 0, 1], 0, 0])


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_of_any_size_are_normalised() -> None:
    weights = Weights(1, 3, 0.5)
    weights.multiply(torch.tensor([[-1e6, -1e6 + math.log(3), -1e7]], dtype=torch.float64))
    weights.multiply(torch.tensor([[1e3]]))
    assert torch.allclose(weights.normalised, torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64))
    assert weights.log_evidence.item() == pytest.approx(-1e6 + 1e3 + math.log(4 / 3), abs=1e-6)


@pytest.mark.parametrize("bad", [[-math.inf] * 3, [math.nan] * 3, [0.0, math.nan, 0.0], [0.0, math.inf, 0.0]])
def test_a_lost_chain_stays_lost_and_alone(bad: list[float]) -> None:
    weights = Weights(2, 3, 1.0)
    weights.multiply(torch.tensor([bad, [0.0, 1.0, 2.0]]))
    for _ in range(2):
        assert weights.lost.tolist() == [True, False]
        weights.resample(streams(2))
    weights.multiply(torch.ones(2, 3))
    assert weights.lost.tolist() == [True, False]
    assert weights.resamplings.tolist() == [0, 1]
    assert bool(weights.log_evidence[1].isfinite())


# -- evidence: a Gaussian random walk, observed at every step ----------------------------------------------------------


def filtered(chains: int, count: int, threshold: float, seed: int = 0) -> tuple[Weights, Tensor]:
    """A bootstrap filter: x_t = x_{t-1} + n, observed as y_t = x_t + n'; the weights after the last observation."""
    rng, weights = streams(chains, seed), Weights(chains, count, threshold)
    x = torch.zeros(chains, count, dtype=torch.float64)
    for t, y in enumerate(OBSERVED):
        if t:
            x = take(x, weights.resample(rng))
        x = x + rng.normal((count,), dtype=torch.float64)
        weights.multiply(-((y - x) ** 2) / 2 - math.log(2 * math.pi) / 2)
    return weights, x


OBSERVED = (0.8, 1.5, 0.2, -0.9)


def exact() -> tuple[float, float]:
    """Log-evidence and last filtering mean, by Kalman's recursion."""
    mean, variance, log_evidence = 0.0, 0.0, 0.0
    for y in OBSERVED:
        variance += 1
        log_evidence += -((y - mean) ** 2) / (2 * (variance + 1)) - math.log(2 * math.pi * (variance + 1)) / 2
        gain = variance / (variance + 1)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    return log_evidence, mean


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_evidence_is_unbiased(threshold: float) -> None:
    """The mean over 200 chains of 50 particles, to four standard errors."""
    ratio = (filtered(200, 50, threshold)[0].log_evidence - exact()[0]).exp()
    assert float(ratio.mean() - 1) == pytest.approx(0, abs=4 * float(ratio.std()) / 200**0.5)
    assert float(ratio.std()) < 1.5  # else the line above proves nothing


def test_weights_that_are_forgotten_between_resamplings_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: increments that replace the weights instead of multiplying them."""
    monkeypatch.setattr(Weights, "multiply", lambda self, factor: setattr(self, "log_weights", factor.double()))
    ratio = (filtered(200, 50, 0.5)[0].log_evidence - exact()[0]).exp()
    assert abs(float(ratio.mean() - 1)) > 4 * float(ratio.std()) / 200**0.5


def test_the_error_falls_like_the_root_of_the_number_of_particles() -> None:
    errors = []
    for count in (16, 256, 4096):
        weights, x = filtered(40, count, 0.5)
        errors.append(float(((weights.normalised * x).sum(1) - exact()[1]).square().mean().sqrt()))
    slope = statistics.linear_regression([math.log(n) for n in (16, 256, 4096)], [math.log(e) for e in errors]).slope
    assert -0.65 < slope < -0.35


def test_without_resampling_it_is_importance_sampling() -> None:
    weights, x = filtered(3, 100, 0.0)
    rng = streams(3)
    path = []
    for t in range(len(OBSERVED)):
        if t:
            uniform(rng, x)
        path.append(rng.normal((100,), dtype=torch.float64))
    walk = torch.stack(path).cumsum(0)
    log_weights = sum(
        torch.distributions.Normal(step, 1.0).log_prob(torch.tensor(y)) for step, y in zip(walk, OBSERVED, strict=True)
    )
    assert torch.allclose(x, walk[-1])
    assert torch.allclose(weights.log_weights, torch.as_tensor(log_weights))


def test_a_chain_is_the_same_whatever_the_others() -> None:
    together, x = filtered(5, 20, 0.5)
    rng = streams(1, first=3)
    weights, alone = Weights(1, 20, 0.5), torch.zeros(1, 20, dtype=torch.float64)
    for t, y in enumerate(OBSERVED):
        if t:
            alone = take(alone, weights.resample(rng))
        alone = alone + rng.normal((20,), dtype=torch.float64)
        weights.multiply(-((y - alone) ** 2) / 2 - math.log(2 * math.pi) / 2)
    assert torch.equal(alone[0], x[3])
    assert torch.equal(weights.log_weights[0], together.log_weights[3])


# -- clouds ------------------------------------------------------------------------------------------------------------


def cloud(log_weights: Tensor, particles: Tensor) -> Cloud:
    rows = len(log_weights)
    return Cloud(particles, log_weights.double(), torch.zeros(rows), torch.zeros(rows, 0), torch.zeros(rows))


def test_mean_and_variance_are_weighted() -> None:
    particles = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1, 1)
    found = cloud(torch.tensor([[0.5, 0.25, 0.25]]).log(), particles)
    assert found.mean.item() == pytest.approx(2.5)
    assert found.var.item() == pytest.approx(0.5 * 1 + 0.25 * 4 + 0.25 * 36 - 2.5**2)


def test_draws_come_as_often_as_they_weigh() -> None:
    particles = torch.arange(3.0).reshape(1, 3, 1, 1, 1)
    drawn = cloud(torch.tensor([[0.5, 0.2, 0.3]]).log(), particles).draw(4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 4000, 1, 1, 1)
    counts = torch.bincount(drawn.flatten().long(), minlength=3) / 4000
    assert torch.allclose(counts, torch.tensor([0.5, 0.2, 0.3]), atol=0.035)


def test_a_lost_chain_of_a_cloud_is_not_a_number() -> None:
    found = cloud(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.ones(2, 2, 1, 1, 1))
    assert found.lost.tolist() == [True, False]
    for values in (found.mean, found.var, found.draw(3, torch.Generator().manual_seed(0))):
        assert values[0].isnan().all()
        assert values[1].isfinite().all()


# -- what the methods share --------------------------------------------------------------------------------------------


def test_particles_meet_the_parameters_of_their_own_image() -> None:
    operator = Inpainting.random((1, 4, 4), keep=0.5, seed=0, images=3)
    x = torch.randn(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = each_particle(lambda index, part: operator.select(index)(part), x, 4)
    for row in range(3):
        assert torch.equal(found[row], operator.select(torch.full((5,), row))(x[row]))


def test_largest_curvature_is_that_of_the_likelihood() -> None:
    y = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    noise = GaussianNoise(torch.tensor([0.1, 0.2]))
    for operator in (Denoising(), Inpainting(keep=0.4), GaussianBlur(std=0.8, kernel_size=5)):
        n = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
        largest = torch.linalg.matrix_norm(operator(n).flatten(1), 2) ** 2
        found = largest_curvature(InverseProblem(operator, noise, y), WhitePrior())
        assert torch.allclose(found, largest / noise.sigma.double() ** 2, rtol=0.02)
    squares = CallableOperator(torch.square, image_shape=(1, 6, 6))
    assert largest_curvature(InverseProblem(squares, PoissonNoise(0.1), y + 0.25), WhitePrior()).isfinite().all()


def test_a_spectrum_explains_all_that_an_image_can() -> None:
    """nll(x) is the misfit in its coordinates plus a constant, masks and levels per image included."""
    for operator in (GaussianBlur(std=0.8, kernel_size=5), Inpainting(keep=0.4)):
        noise = GaussianNoise(torch.tensor([0.1, 0.3]))
        x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        problem = InverseProblem(operator, noise, operator(x) + 0.1 * x.flip(0))
        seen = Spectrum.of(problem, WhitePrior())
        residual = seen.data[:, 0] - seen.values[:, 0] * operator.vt(0.7 * x - 0.5)  # about grey
        nll = (residual**2 / (2 * seen.variance[:, 0])).flatten(1).sum(1) + seen.unexplained
        assert torch.allclose(nll, problem.nll(0.7 * x), rtol=1e-5)
