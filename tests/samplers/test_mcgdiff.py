"""MCGDiff: a whole run particle by particle in the paper's variance-preserving coordinates, and its grid of levels."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Remembering, Scripted, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import Denoising, GaussianBlur, GaussianNoise
from invdiff.samplers import MCGDiff
from invdiff.samplers.particles.weights import Weights
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)


def log_normal(x: Tensor, mean: Tensor, variance: Tensor | float) -> float:
    variance = torch.as_tensor(variance, dtype=torch.float64)
    return float((-((x - mean) ** 2) / variance - (2 * math.pi * variance).log()).sum() / 2)


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + (2 * sigma) ** 2)  # levels are halved for images in [0, 1]


@pytest.mark.parametrize(("eta", "kappa"), [(1.0, 0.004), (0.6, 0.01)])
def test_a_run_equals_the_algorithm_of_the_paper(eta: float, kappa: float) -> None:
    """Images in [-1, 1], z = sqrt(alpha_bar) (2 x - 1 + noise), two of four coordinates measured, both at level 0.5.

    The algorithm's resampling, which is tested by itself, is left out: the weights are products of increments. The
    slack is at most a hundredth of the variance 0.5^2, which is kappa = 0.005 here.
    """
    count, sigmas = 3, (3.0, 1.2, 0.5, 0.2, 0.0)
    basis = torch.linalg.qr(normal(4, 4, seed=1))[0]
    matrix = 0.8 * basis[:2]
    spread = 0.8 * 0.5
    mean, covariance, y = 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3), normal(1, 2, seed=3)
    numbers = [normal(1, count, *SHAPE, seed=10 + k) for k in range(5)]

    operator = Dense(matrix, SHAPE)
    sampler = MCGDiff(schedule=Levels(values=sigmas), ensemble=count, resample_below=0.0, eta=eta, kappa=kappa)
    problem = InverseProblem(operator, GaussianNoise(spread), y)
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
    weights, zero = Weights(1, count, 0.0), torch.zeros(1, 1, dtype=torch.float64)
    rng = Scripted([numbers[0], *[n for pair in zip([zero] * 3, numbers[1:4], strict=True) for n in pair], numbers[4]])
    with torch.no_grad():
        found = [(x, weights.log_weights) for x, _, _ in sampler.evolve(problem, prior, rng, weights)]

    right = operator.v(torch.eye(4, dtype=torch.float64).reshape(4, *SHAPE)).flatten(1).T  # V
    rotated = (right.T @ matrix.T).T  # U S, (2, 4): the last two columns are zero
    assert torch.allclose(rotated[:, 2:], torch.zeros(2, 2, dtype=torch.float64), atol=1e-12)
    ones = right.T @ torch.ones(4, dtype=torch.float64)
    data = torch.linalg.solve(rotated[:, :2], y[0])  # measured coordinates of x
    target = alpha_bar(0.5) ** 0.5 * (2 * data - ones[:2])  # of the diffusing image at the level of y
    z_mean, z_covariance = 2 * mean - 1, 4 * covariance

    def potential(s: float) -> tuple[Tensor, float]:
        """The paper's g at level s: mean and variance for the coordinate."""
        ratio = alpha_bar(s) / alpha_bar(0.5)
        return ratio**0.5 * target, 1 - (1 - min(kappa, 0.005)) * ratio

    for n in range(count):
        s = sigmas[0]
        centre, width = potential(s)
        noise = 1 - alpha_bar(s)
        pin = noise / (noise + width)
        c = numbers[0][0, n].flatten().clone() * noise**0.5
        c[:2] = pin * centre + (noise * (1 - pin)) ** 0.5 * numbers[0][0, n].flatten()[:2]
        log_weight = log_normal(centre, torch.zeros(2), noise + width) + math.log(4 * alpha_bar(s)) * 2 / 2
        log_weight += 2 / 2 * math.log(2 * math.pi * 0.5**2)
        for k, (s, after) in enumerate(pairwise(sigmas)):
            a, b = alpha_bar(s), alpha_bar(after)
            z = right @ c
            marginal = a * z_covariance + (1 - a) * torch.eye(4, dtype=torch.float64)
            score = -torch.linalg.solve(marginal, z - a**0.5 * z_mean)
            clean = (z + (1 - a) * score) / a**0.5
            variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
            moved = b**0.5 * clean + (1 - b - variance) ** 0.5 / (1 - a) ** 0.5 * (z - a**0.5 * clean)
            m, e = right.T @ moved, numbers[k + 1][0, n].flatten()
            free = m + variance**0.5 * e
            if after >= 0.5:
                centre, width = potential(after)
                before, before_width = potential(s)
                log_weight += log_normal(centre, m[:2], variance + width) - log_normal(before, c[:2], before_width)
                log_weight += math.log(b / a) * 2 / 2  # densities of z at two levels, of one x
                pin = variance / (variance + width)
                free[:2] = pin * centre + (1 - pin) * m[:2] + (variance * (1 - pin)) ** 0.5 * e[:2]
            c = free
            x = ((right @ c) / b**0.5 + 1) / 2
            assert torch.allclose(x, found[k][0][0, n].flatten(), atol=2e-6)
            assert found[k][1][0, n].item() == pytest.approx(log_weight, rel=1e-6, abs=1e-5)


def test_a_level_moves_to_the_measurement_and_no_other_does() -> None:
    schedule = EDM(steps=6, sigma_max=10.0, sigma_min=0.05)
    base = schedule.sigmas()
    t = torch.tensor([[0.3, math.inf, 1e-3, 50.0], [0.07, 0.3, 9.9, 0.05]]).reshape(2, 1, 1, 2, 2)
    found = MCGDiff(schedule=schedule).levels(t, 1.0)
    assert found.shape == (2, 7)
    assert (found.diff(dim=1) < 0).all()
    assert torch.equal(found[:, [0, -1]], base[[0, -1]].expand(2, 2))
    assert float(found[0].sub(0.3).abs().min()) < 1e-7
    assert int((found[0] != base).sum()) == 1
    for level in (0.07, 0.3, 9.9):
        assert float(found[1].sub(level).abs().min()) < 1e-6


def test_unmeasured_directions_have_the_law_of_the_prior() -> None:
    """A blur with tiny singular values: division by them must have no effect."""
    operator = GaussianBlur(std=2.0, kernel_size=7)
    y = operator(0.4 + 0.25 * torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    sampler = MCGDiff(schedule=EDM(steps=60, sigma_max=10.0, sigma_min=0.01), ensemble=16, particles_at_once=10_000)
    posterior = sampler.sample(
        InverseProblem(operator, GaussianNoise(0.05), y), WhitePrior(), num_samples=100, compute=QUIET
    )
    assert not posterior.diverged.any()
    z = operator.vt(posterior.samples[0])
    s = operator.singular_values(z)[0, 0]
    dark = s < 1e-3 * s.max()
    assert int(dark.sum()) > 3
    assert float(z[:, 0][:, dark].std()) == pytest.approx(0.25, rel=0.1)


def test_the_posterior_of_a_gaussian() -> None:
    """N(0.4, 0.25^2) and one measurement 0.8 with noise 0.1."""
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.full((1, 1, 1, 2), 0.8))
    sampler = MCGDiff(schedule=EDM(steps=200, sigma_max=10, sigma_min=0.005), ensemble=200, particles_at_once=10_000)
    cloud = sampler.cloud(problem, WhitePrior(), chains=10, compute=QUIET)
    gain = 0.25**2 / (0.25**2 + 0.1**2)
    assert cloud.mean.mean().item() == pytest.approx(0.4 + gain * 0.4, abs=0.02)
    assert cloud.var.mean().item() == pytest.approx((1 - gain) * 0.25**2, rel=0.15)
