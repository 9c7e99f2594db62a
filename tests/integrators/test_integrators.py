"""Integrators: order of convergence and law on a Gaussian, formulas of a step, calls, scale, and use in samplers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import atan, exp, log, log2, sqrt
from typing import Literal

import pytest
import torch
from torch import Tensor

from helpers import Dense, Normals, affine_law, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.integrators import (
    BDIA,
    DDIM,
    DEIS,
    ERSDE,
    IIA,
    NAMED,
    Conjugate,
    DPMSolver,
    DPMSolverV3,
    Heun,
    Integrator,
    centred,
    named,
)
from invdiff.integrators.deis import adams_bashforth
from invdiff.operators import GaussianNoise
from invdiff.samplers import DAPS, MMPS, PnPDM
from invdiff.schedules import EDM, karras

S, MEAN, HIGH, LOW = 0.25, 0.4, 5.0, 0.02
NOISY = {name: NAMED[name] for name in ("ancestral", "dpm_2m_sde", "er_sde")} | {"churn": Heun(churn=20.0)}
FLOWS = {"euler": 1, "heun": 2, "dpm_2m": 2, "dpm_3m": 3, "deis": 3, "bdia": 1}


class Gaussian:
    """The denoiser of N(MEAN, S^2), which writes down where it was called."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.levels.append(sigma)
        return (S**2 * x + sigma**2 * MEAN) / (S**2 + sigma**2)


def no_noise() -> Tensor:
    raise AssertionError("the flow takes no noise")


def error(integrator: Integrator, steps: int) -> float:
    """Largest distance to the solution, x - MEAN grows as sqrt(S^2 + sigma^2)."""
    x = MEAN + HIGH * torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    found = integrator.end(Gaussian(), x, karras(HIGH, LOW, steps + 1).tolist(), no_noise, 1.0)
    return float((found - MEAN - (x - MEAN) * sqrt((S**2 + LOW**2) / (S**2 + HIGH**2))).abs().max())


@pytest.mark.parametrize(("name", "order"), FLOWS.items())
def test_order_of_convergence(name: str, order: int) -> None:
    errors = [error(NAMED[name], steps) for steps in (64, 128, 256)]
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    assert all(order - 0.25 < slope < order + 0.25 for slope in slopes), slopes


def statistics(order: Literal[1, 2]) -> DPMSolverV3:
    """Of other Gaussian images: MEAN is off 0, so that there is a rest."""
    images = MEAN + 0.6 * S * normal(50, 1, 4, 4, seed=1)
    return DPMSolverV3.fitted(Gaussian(), images, normal(50, 1, 4, 4, seed=2), karras(6.0, 0.01, 40), order=order)


def fitted(steps: int) -> IIA:
    return IIA.fitted(Gaussian(), MEAN + HIGH * normal(9, 1, 2, 2, seed=1), karras(HIGH, LOW, steps + 1), order=2)


@pytest.mark.parametrize(
    ("made", "order"),
    [
        (lambda _: Conjugate(order=1, spread=0.4), 1),
        (lambda _: Conjugate(order=2, spread=0.4), 2),
        (lambda _: Conjugate(order=3, spread=0.4), 3),
        (lambda _: BDIA(gamma=1.0), 2),
        (lambda _: statistics(1), 1),
        (lambda _: statistics(2), 2),
        (fitted, 2),
    ],
    ids=["conjugate", "conjugate 2", "conjugate 3", "bdia", "dpm_v3", "dpm_v3 2", "iia"],
)
def test_order_of_convergence_with_settings(made: Callable[[int], Integrator], order: int) -> None:
    slope = log2(error(made(48), 48) / error(made(96), 96))
    assert order - 0.25 < slope < order + 0.75, slope


@pytest.mark.parametrize("name", NOISY)
def test_noise_leaves_the_law(name: str) -> None:
    """Of 40,000 draws with 120 steps: the standard error of the variance is 0.7 %, its bias falls as 1 / steps."""
    rows = Normals(40_000, (1, 1, 1), seed=1)
    x = MEAN + HIGH * rows.normal()
    found = NOISY[name].end(Gaussian(), x, [*karras(HIGH, LOW, 120).tolist(), 0.0], rows.normal, 1.0)
    assert abs(float(found.mean()) - MEAN) < 5 * S / 200
    assert abs(float(found.var()) / S**2 - 1) < 0.07


def test_steps_are_the_formulas() -> None:
    """One step, or two where a step looks back, against formulas of the papers written out for numbers."""
    x, d0, d1, (t, s, r) = 3.0, 0.7, 0.4, (2.0, 1.0, 0.5)
    estimates = iter([torch.tensor([[d0]]), torch.tensor([[d1]])] * 9)
    one = torch.ones(1, 1, dtype=torch.float64)

    def two_steps(integrator: Integrator) -> float:
        return float(integrator.end(lambda *_: next(estimates), x * one, [t, s, r], lambda: one, 1.0))

    first = d0 + sqrt(s**2 - s**2 * (1 - s**2 / t**2)) / t * (x - d0) + s * sqrt(1 - s**2 / t**2)
    assert two_steps(DDIM(eta=1.0)) == pytest.approx(
        d1 + sqrt(r**2 - r**2 * (1 - r**2 / s**2)) / s * (first - d1) + r * sqrt(1 - r**2 / s**2), abs=1e-6
    )
    # DPM-Solver++(2M), with the logarithms of its paper; equal steps of log 2.
    first = s / t * x + (1 - s / t) * d0
    h = log(s / r)
    c = 1 + 1 / (2 * log(t / s) / h)
    plain = (r / s) * first + (1 - r / s) * (c * d1 - (c - 1) * d0)
    exact = (r / s) * first - (exp(-h) - 1) * d1 + (h + exp(-h) - 1) * (d1 - d0) / log(t / s)
    assert two_steps(DPMSolver(order=2)) == pytest.approx(exact, abs=1e-6)
    assert abs(exact - plain) < 0.03  # the paper replaces the integral by (1 - exp(-h)) / 2: the same order
    # DEIS of order 2: the line through both noise estimates, integrated over sigma.
    first = x + (s - t) * (x - d0) / t
    n0, n1 = (x - d0) / t, (first - d1) / s
    assert two_steps(DEIS(order=2)) == pytest.approx(
        first + (r - s) * n1 + (r - s) ** 2 / 2 * (n0 - n1) / (t - s), abs=1e-6
    )
    # Conjugate: the angle moves on, v stays; in the coordinates of Karras et al. with sigma_data = c.
    c = 0.8
    v = (d0 - c**2 / (c**2 + t**2) * x) / (t * c / sqrt(c**2 + t**2))
    turned = x / sqrt(c**2 + t**2) - (atan(s / c) - atan(t / c)) * v
    next(estimates)
    conjugate = Conjugate(order=1, spread=c)
    assert float(conjugate.end(lambda *_: d0 * one, x * one, [t, s], no_noise, 1.0)) == pytest.approx(
        sqrt(c**2 + s**2) * turned, abs=1e-6
    )
    next(estimates)
    # BDIA: the step back from level s to t is subtracted, the step from t to s that was made is added.
    first = x + (s - t) * (x - d0) / t
    n1 = (first - d1) / s
    assert two_steps(BDIA(gamma=0.3)) == pytest.approx(
        first + (r - s) * n1 + 0.3 * (x - (first + (t - s) * n1)), abs=1e-6
    )
    # Heun's slope is the mean of two; the last estimate is taken at the end of the step.
    assert float(Heun().end(lambda *_: next(estimates), x * one, [t, s], lambda: one, 1.0)) == pytest.approx(
        x + (s - t) / 2 * ((x - d0) / t + (x + (s - t) * (x - d0) / t - d1) / s), abs=1e-6
    )


def test_weights_of_adams_bashforth_are_those_of_equal_steps() -> None:
    found = adams_bashforth([3.0, 4.0, 5.0, 6.0], 2.0)
    assert found == pytest.approx([-55 / 24, 59 / 24, -37 / 24, 9 / 24])


def test_a_flow_that_is_affine_is_solved_in_one_step() -> None:
    """Images about 0, of the deviation of the conjugate integrator, or that the statistics saw."""
    denoise = centred(Gaussian(), 1.0, MEAN)
    images = S * normal(2000, 1, 1, 1, seed=1)
    solver = DPMSolverV3.fitted(denoise, images, normal(2000, 1, 1, 1, seed=2), karras(6.0, 0.01, 50), order=1)
    solver = replace(solver, drift=(0.0,) * 50, offset=(0.0,) * 50)  # there is no rest but noise
    for integrator, tolerance in ((Conjugate(spread=S), 1e-9), (solver, 0.05)):
        found = integrator.end(Gaussian(), MEAN + torch.full((1, 1), HIGH).double(), [HIGH, 0.3], no_noise, 1.0, MEAN)
        assert float(found) - MEAN == pytest.approx(HIGH * sqrt((S**2 + 0.09) / (S**2 + HIGH**2)), rel=tolerance)


def test_statistics_of_zero_are_dpm_solver() -> None:
    x, levels, zeros = normal(2, 1, 2, 2, seed=1), karras(HIGH, LOW, 6).tolist(), (0.0, 0.0)
    solver = DPMSolverV3(levels=(9.0, 0.01), linear=zeros, drift=zeros, offset=zeros)
    found = solver.end(Gaussian(), x, levels, no_noise, 1.0)
    assert (found - DPMSolver(order=2).end(Gaussian(), x, levels, no_noise, 1.0)).abs().max() < 1e-3


def test_a_drift_of_the_rest_is_followed() -> None:
    """D = s-th power of time: r grows by s, from b / s at the start; order 1 follows it."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return torch.ones_like(x) * (3.0 * sigma**-0.7 - 2.0 / 0.7)

    solver = DPMSolverV3(levels=(9.0, 0.01), linear=(0.0, 0.0), drift=(0.7, 0.7), offset=(2.0, 2.0), order=1)
    x, sigmas = torch.full((1, 1), 4.0).double(), karras(2.0, 0.5, 300).tolist()
    assert float(solver.end(denoise, x, [2.0, 0.5], no_noise, 1.0)) == pytest.approx(
        float(DPMSolver(order=2).end(denoise, x, sigmas, no_noise, 1.0)), rel=1e-3
    )


def test_bdia_is_reversed_exactly() -> None:
    x, levels = normal(2, 1, 2, 2, seed=1), karras(HIGH, LOW, 8).tolist()
    for gamma in (0.5, 1.0):
        walked = [u for u, *_ in BDIA(gamma=gamma).walk(curved, x, levels, no_noise, 1.0)]
        assert (BDIA(gamma=gamma).back(curved, walked[-1], walked[-2], levels) - x).abs().max() < 1e-10


def curved(x: Tensor, sigma: float) -> Tensor:
    return Gaussian()(x, sigma) + 0.1 * (6 * x).sin()


def test_weights_of_iia_are_those_of_least_squares() -> None:
    """Of the second step, against a fine walk from where the first one ended; other levels are refused."""
    (t, s, r), x = (5.0, 2.0, 1.0), HIGH * normal(30, 1, 2, 2, seed=1)
    integrator = IIA.fitted(curved, x, [t, s, r], order=2, finer=50)
    first = (x - curved(x, t)) / t
    x = x + (s - t) * first
    second = (x - curved(x, s)) / s
    exact = Heun().end(curved, x, karras(s, r, 400).tolist(), no_noise, 1.0)
    wanted, change = exact - x - (r - s) * second, second - first
    assert integrator.weights == (
        (),
        (pytest.approx(float((wanted * change).sum() / change.square().sum()), rel=1e-3),),
    )
    ended = integrator.end(curved, HIGH * normal(30, 1, 2, 2, seed=1), [t, s, r], no_noise, 1.0)
    assert torch.allclose(ended, x + (r - s) * second + integrator.weights[1][0] * change)
    with pytest.raises(ValueError, match="iia: it was fitted at the levels"):
        integrator.end(curved, x, [s, r], no_noise, 1.0)


@pytest.mark.parametrize("name", NAMED)
def test_calls_and_end(name: str) -> None:
    """Calls are as declared; with one step to 0 x is the estimate."""
    denoise, x, levels = Gaussian(), torch.full((2, 1, 2, 2), 0.3, dtype=torch.float64), [3.0, 1.0, 0.2, 0.05, 0.0]
    integrator, rows = NAMED[name], Normals(2, (1, 2, 2))
    walked = list(integrator.walk(denoise, x, levels, rows.normal, 1.0))
    assert [sigma for *_, sigma in walked] == levels[1:]
    assert len(denoise.levels) == integrator.calls(4)
    assert len(list(integrator.walk(Gaussian(), x, levels[:-1], rows.normal, 1.0))) == 3
    integrator = DDIM(eta=0.0) if name == "churn" else integrator  # which first adds noise
    assert torch.allclose(integrator.end(denoise, x, [0.7, 0.0], rows.normal, 1.0), Gaussian()(x, 0.7))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("scale", [7.0, torch.tensor([7.0, 0.5, 1.0])])
def test_images_of_another_scale(name: str, scale: float | Tensor) -> None:
    factor = scale.reshape(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale
    levels, x = karras(HIGH, LOW, 9).tolist(), normal(3, 1, 2, 2, seed=1)

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        level = sigma.reshape(-1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma
        return 3 + factor * Gaussian()((x - 3) / factor, level / factor)  # type: ignore[operator,arg-type]

    plain = NAMED[name].end(Gaussian(), x, levels, Normals(3, (1, 2, 2)).normal, 1.0, 0.4)
    centre = 3 + 0.4 * factor
    scaled = NAMED[name].end(denoise, 3 + factor * x, levels, Normals(3, (1, 2, 2)).normal, scale, centre)
    assert torch.allclose(scaled, 3 + factor * plain, rtol=1e-6)


# -- in samplers -------------------------------------------------------------------------------------------------------


def test_a_name_stands_for_an_integrator() -> None:
    assert MMPS(integrator="heun") == MMPS(integrator=Heun())
    assert DAPS(integrator="dpm_2m").integrator == PnPDM(integrator="dpm_2m").integrator == DPMSolver(order=2)
    assert named(ERSDE(order=1)) == ERSDE(order=1)
    with pytest.raises(ValueError, match=r"mmps: integrator must be .*heun.*rk4"):
        MMPS(integrator="rk4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="integrator: order must be one of 1, 2, 3, got 5"):
        DPMSolver(order=5)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FLOWS, "ancestral", "er_sde", "conjugate"])
def test_mmps_draws_the_posterior_of_a_gaussian_with_any_integrator(name: str) -> None:
    """Levels that are fine enough, and a solver that converges: mean and covariance are the exact ones."""
    prior = gaussian(0.5 + 0.1 * normal(1, 2, 2, seed=3), smooth(2, 2, std=0.4))
    problem = InverseProblem(Dense(normal(2, 4, seed=1), (1, 2, 2)), GaussianNoise(0.3), normal(1, 2, seed=2))
    sampler = MMPS(schedule=EDM(steps=160, sigma_max=20.0, sigma_min=0.01), iterations=4, integrator=NAMED[name])
    mean, covariance = affine_law(sampler, problem, prior)
    exact = prior.posterior(problem)
    assert (mean - exact.mean.flatten()).abs().max() < 0.02
    assert (covariance - exact.covariance).abs().max() < 0.08 * covariance.diagonal().max()
