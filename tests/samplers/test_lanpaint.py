"""LanPaint: the authors' update digit by digit, the law of its dynamics, and the posterior as its steps grow."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Levels, Normals, Remembering, Scripted, assert_law, gaussian, normal, smooth
from invdiff import Compute, InverseProblem
from invdiff.engine.step import Step
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import GaussianMixturePrior, GaussianPrior, Prior
from invdiff.samplers import LanPaint
from invdiff.samplers.relaxation import Relaxation
from invdiff.samplers.splitting.lanpaint import Known
from invdiff.schedules import EDM

QUIET = Compute(device="cpu", progress=False)
SHAPE = (1, 2, 2)
MASK = torch.tensor([[1, 0], [0, 1]])
PAIR = torch.tensor([[1, 0]])  # one pixel known, one not


def masked_problem(y: Tensor, sigma: float | Tensor, mask: Tensor = MASK, rows: int = 1) -> InverseProblem:
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(sigma), y)
    return problem.select(torch.arange(len(y)).repeat_interleave(rows))


def run(sampler: LanPaint, problem: InverseProblem, prior: Prior, rng: object) -> list[Step]:
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


def test_a_run_equals_the_update_of_the_authors() -> None:
    """Images in [-1, 1] and variance-preserving coordinates, as in their code; they step along the flow."""
    sigmas, lam, step, inner = (2.0, 0.7, 0.2, 0.0), 4.0, 0.3, 3
    mean, covariance = 0.5 + 0.1 * normal(4, seed=2), smooth(2, 2, std=0.3)
    y, mask = normal(1, *SHAPE, seed=3), MASK.flatten().bool()
    per_level = 1 + 2 * (inner - 1)
    numbers = [normal(1, *SHAPE, seed=10 + k) for k in range(2 + 3 * (per_level + 1))]
    sampler = LanPaint(
        schedule=Levels(values=sigmas), inner_steps=inner, step_size=step, lam=lam, eta=0.0, known="exact"
    )
    prior = Remembering(gaussian(mean.reshape(SHAPE), covariance))  # as of a network: grey is its centre
    found = run(sampler, masked_problem(y, 0.1), prior, Scripted(numbers))

    draws = iter(n.flatten() for n in numbers)
    z_mean, z_covariance, z_y = 2 * mean - 1, 4 * covariance, 2 * y.flatten() - 1

    def clean(x_t: Tensor, abar: float) -> Tensor:
        marginal = abar * z_covariance + (1 - abar) * torch.eye(4, dtype=torch.float64)
        score = -torch.linalg.solve(marginal, x_t - abar**0.5 * z_mean)
        return (x_t + (1 - abar) * score) / abar**0.5

    fixed = next(draws)
    z = 2 * sigmas[0] * next(draws)  # noise about mid-grey, 0 in the paper's images
    for k, (s, after) in enumerate(pairwise(sigmas)):
        abar = 1 / (1 + (2 * s) ** 2)
        z = torch.where(mask, z_y + 2 * s * fixed, z)
        x_t = abar**0.5 * z
        dt = step * (1 - abar)
        a = torch.where(mask, 1 + lam, 1.0).double() / (1 - abar)

        def coefficient(x_t: Tensor, abar: float = abar, a: Tensor = a) -> Tensor:
            x0 = clean(x_t, abar)
            big = torch.where(mask, (1 + lam) * z_y - lam * x0, x0)
            return (abar**0.5 * big - x_t) / (1 - abar) + a * x_t

        def advance(x_t: Tensor, c: Tensor, dt: float, a: Tensor = a) -> Tensor:
            decay = torch.exp(-a * dt)
            return decay * x_t + (1 - decay) / a * c + ((1 - decay**2) / a) ** 0.5 * next(draws)

        c = coefficient(x_t)
        x_t = advance(x_t, c, dt)
        for _ in range(inner - 1):
            x_t = advance(x_t, c, dt / 2)
            fresh = coefficient(x_t)
            x_t = advance(x_t + (fresh - c) * dt, c, dt / 2)
            c = fresh
        z = x_t / abar**0.5
        z = z + (after - s) / s * (z - clean(x_t, abar))
        next(draws)  # of a stochastic step
        z = torch.where(mask, z_y + 2 * after * fixed, z)
        assert (found[k].x.flatten() - (z + 1) / 2).abs().max() < 1e-6


@pytest.mark.parametrize("friction", [0.3, 0.8, 3.0])
@pytest.mark.parametrize("pull", [1.0, 6.0, 300.0])
def test_the_oscillator_is_solved_exactly(friction: float, pull: float) -> None:
    """dy = q dt, dq = G (C - A y) dt - G q dt + G D dW, with v = q / sqrt(G); covariance by Van Loan's exponential."""
    s, time, force, g = 0.7, 0.4, 1.3, 5 * friction**2
    drift = torch.tensor([[0, 1], [-g * pull, -g]], dtype=torch.float64)
    noise = torch.diag(torch.tensor([0, 2 * (g * s) ** 2], dtype=torch.float64))
    block = torch.cat([torch.cat([-drift, noise], 1), torch.cat([torch.zeros(2, 2), drift.T], 1)]).double()
    grown = torch.linalg.matrix_exp(block * time)
    moved, scale = grown[2:, 2:].T, torch.tensor([1, g**-0.5], dtype=torch.float64)
    covariance = (moved @ grown[:2, 2:]) * torch.outer(scale, scale)

    def number(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64)

    step = Relaxation.of(number(pull), number(time), number(s), friction)

    def after(x: float, v: float, *z: float) -> Tensor:
        new = step(number(x), number(v), number(force), Scripted([number(n) for n in z]))
        return torch.stack([t for t in new if t is not None]).flatten()

    start = torch.tensor([0.4 - force / pull, -0.2 * g**0.5], dtype=torch.float64)
    wanted = (moved @ start) * scale + torch.tensor([force / pull, 0])
    rest = after(0.4, -0.2, 0, 0)
    assert (rest - wanted).abs().max() < 1e-6
    spread = torch.stack([after(0.4, -0.2, 1, 0), after(0.4, -0.2, 0, 1)], 1) - rest[:, None]
    assert (spread @ spread.T - covariance).abs().max() < 1e-6


def test_a_strong_friction_forgets_the_velocity() -> None:
    pull, time, s = 2 * torch.ones(1, *SHAPE).double(), 0.3 * torch.ones(1, *SHAPE).double(), torch.ones(1, 1, 1, 1)
    plain, damped = Relaxation.of(pull, time, s, None), Relaxation.of(pull, time, s, 1e3)
    for found, wanted in ((damped.turn[0], plain.turn[0]), (damped.spread[0], plain.spread[0])):
        assert torch.allclose(found, wanted, atol=1e-5)


def settled(sampler: LanPaint, problem: InverseProblem, prior: Prior, values: tuple[float, ...], rows: int) -> Tensor:
    """The image at rest at the last level but two, before the step to the next one."""
    memory = Remembering(prior)
    sampler = replace(sampler, schedule=Levels(values=values))
    with torch.no_grad():
        steps = sampler.iterate(problem, memory, Normals(rows, SHAPE))  # type: ignore[arg-type]
        for _ in range(len(values) - 2):
            next(steps)
    return memory.images


@pytest.mark.parametrize("friction", [None, 1.0])
@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_law_at_rest_is_that_of_the_guided_score(lam: float, friction: float | None) -> None:
    """On a Gaussian the guided score is linear, and the law at rest of its dynamics solves a Lyapunov equation.

    It is not N(x_k; y, s^2) p_s(x_u | x_k): known pixels are coupled to unknown ones too weakly or too strongly.
    """
    rows, s, sigma = 2000, 0.3, 0.1
    mean, covariance = torch.full((4,), 0.5).double(), smooth(2, 2, std=0.3)
    y = torch.tensor([0.9, 0.0, 0.0, 0.3]).double()
    problem = masked_problem(y.reshape(1, *SHAPE), sigma, rows=rows)
    sampler = LanPaint(inner_steps=200, step_size=0.1, lam=lam, friction=friction)
    x = settled(sampler, problem, gaussian(mean.reshape(SHAPE), covariance), (s, 0.01, 0.0), rows)

    # dx = (offset - pull x) dt + s sqrt(2) dW
    prior_pull = s**2 * torch.linalg.inv(covariance + s**2 * torch.eye(4))
    mask, width = MASK.flatten().bool(), s**2 / (s**2 - sigma**2)
    pull = torch.where(mask[:, None], (1 + lam) * width * torch.eye(4) - lam * prior_pull, prior_pull)
    offset = torch.where(mask, (1 + lam) * width * y - lam * (prior_pull @ mean), prior_pull @ mean)
    noise = 2 * s**2 * torch.eye(4).double()
    if friction is not None:
        g, nil, one = 5 * friction**2, torch.zeros(4, 4).double(), torch.eye(4).double()
        pull = torch.cat([torch.cat([nil, -(g**0.5) * one], 1), torch.cat([g**0.5 * pull, g * one], 1)])
        noise = torch.block_diag(nil, g * noise)
        offset = torch.cat([torch.zeros(4).double(), g**0.5 * offset])
    one = torch.eye(len(pull)).double()
    law = torch.linalg.solve(torch.kron(pull, one) + torch.kron(one, pull), noise.flatten()).reshape(noise.shape)
    assert_law(x, torch.linalg.solve(pull, offset)[:4], law[:4, :4])


@pytest.mark.parametrize("friction", [None, 1.0])
def test_a_level_below_the_noise_of_y_comes_to_rest_at_the_posterior(friction: float | None) -> None:
    """Of the image with the noise of that level: p_s(x) N(y; x_k, sigma_y^2 - s^2), whatever the guidance."""
    rows, s, sigma = 2000, 0.15, 0.2
    mean, covariance = torch.full((4,), 0.5).double(), smooth(2, 2, std=0.15)
    y, mask = torch.tensor([0.9, 0.0, 0.0, 0.3]).double(), MASK.flatten().double()
    problem = masked_problem(y.reshape(1, *SHAPE), sigma, rows=rows)
    sampler = LanPaint(inner_steps=200, step_size=0.1, friction=friction)
    x = settled(sampler, problem, gaussian(mean.reshape(SHAPE), covariance), (0.25, 0.16, s, 0.01, 0.0), rows)
    prior_precision = torch.linalg.inv(covariance + s**2 * torch.eye(4))
    law = torch.linalg.inv(prior_precision + torch.diag(mask) / (sigma**2 - s**2))
    assert_law(x, law @ (prior_precision @ mean + mask * y / (sigma**2 - s**2)), law)


def gaussian_pair() -> GaussianPrior:
    covariance = 0.3**2 * torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64)
    return GaussianPrior(torch.tensor([[[0.5, 0.4]]], dtype=torch.float64), covariance)


def two_modes() -> GaussianMixturePrior:
    means = torch.tensor([[0.3, 0.2], [0.6, 0.8]], dtype=torch.float64).reshape(2, 1, 1, 2)
    covariance = 0.1**2 * torch.tensor([[1, 0.5], [0.5, 1]], dtype=torch.float64)
    return GaussianMixturePrior(torch.tensor([0.4, 0.6], dtype=torch.float64), means, covariance.expand(2, 2, 2))


def errors(prior: Any, y: float, noise: tuple[float, ...], rows: int = 2000, **settings: Any) -> Tensor:
    """Of mean and standard deviation of every pixel, in posterior standard deviations, for each noise level."""
    measured = torch.tensor([y, 0]).double().expand(len(noise), 1, 1, 2)
    problem = masked_problem(measured, torch.tensor(noise).double(), PAIR, rows)
    x = run(LanPaint(**settings), problem, prior, Normals(rows * len(noise), (1, 1, 2)))[-1].x
    found = []
    for image, draws in enumerate(x.unflatten(0, (len(noise), rows))):
        posterior = prior.posterior(problem.select(torch.tensor([image * rows])))
        found.append((draws.mean(0) - posterior.mean) / posterior.std)
        found.append(draws.std(0) / posterior.std - 1)
    return torch.stack(found).abs()


FEW: dict[str, Any] = {"schedule": EDM(steps=8, sigma_max=5.0, sigma_min=0.005), "inner_steps": 2}
MANY: dict[str, Any] = {"schedule": EDM(steps=40, sigma_max=5.0, sigma_min=0.005), "inner_steps": 7}


@pytest.mark.parametrize(
    ("prior", "y", "noise", "settings"),
    [
        (gaussian_pair(), 0.9, (0.1, 0.2), {"lam": 0.0}),
        (gaussian_pair(), 0.9, (0.1, 0.2), {"lam": 5.0}),
        (two_modes(), 0.45, (0.1,), {"lam": 0.0}),
        (two_modes(), 0.45, (0.1,), {"lam": 5.0, "friction": 15.0}),
    ],
    ids=["gaussian", "gaussian guided", "two modes", "two modes guided"],
)
def test_more_steps_end_in_the_posterior(prior: Any, y: float, noise: Any, settings: dict) -> None:
    """5 standard errors of 2000 draws are 0.11 of a mean and 0.08 of a deviation. Two noise levels are one batch.

    The mode of the unknown pixel is determined by the known one alone.
    """
    few = errors(prior, y, noise, **settings, **FEW)
    many = errors(prior, y, noise, **settings, **MANY)
    assert float(many.max()) < 0.11
    assert float(few.max()) > 2.5 * float(many.max())


def test_levels_of_a_row_pass_through_the_noise_of_y() -> None:
    y = normal(4, *SHAPE)
    noise = torch.tensor([0.15, 0.2, 1e-4, 0.9]).double()
    known = Known.of(masked_problem(y, noise), y, [1.0, 0.5, 0.1, 0.0])
    found = torch.cat([level.flatten(1) for level in known.levels([1.0, 0.5, 0.1, 0.0])], 1)
    wanted = [[1.0, 0.5, 0.15, 0.0], [1.0, 0.5, 0.2, 0.0], [1.0, 0.5, 0.1, 0.0], [1.0, 0.9, 0.1, 0.0]]
    assert torch.allclose(found, torch.tensor(wanted).double())


@pytest.mark.parametrize("known", ["noisy", "exact"])
def test_noise_below_the_last_level_counts_as_none(known: Any) -> None:
    prior = GaussianPrior(torch.full(SHAPE, 0.5), smooth(2, 2, std=0.3).float())
    y = torch.tensor([0.9, 0.0, 0.0, 0.3]).reshape(1, *SHAPE)
    sampler = LanPaint(schedule=EDM(steps=4, sigma_max=5.0, sigma_min=0.01), known=known)
    x = sampler.sample(masked_problem(y, 0.001), prior, compute=QUIET).samples[:, 0]
    assert torch.equal(x[..., MASK.bool()], y[..., MASK.bool()])


def test_a_measurement_noisier_than_the_first_level_is_refused() -> None:
    problem = masked_problem(torch.zeros(1, *SHAPE), 2.0)
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.25**2 * torch.eye(4))
    with pytest.raises(ValueError, match=r"noise of y, 2, is not below the first noise level, 1: raise schedule"):
        LanPaint(schedule=EDM(steps=4, sigma_max=1.0)).sample(problem, prior, compute=QUIET)
