"""Levels fitted to a prior: bounds in closed form, exact minimisers, tables of levels, and fitted integrators."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from helpers import gaussian
from invdiff.integrators import DDIM, Integrator
from invdiff.io import BadInput
from invdiff.priors import GaussianPrior
from invdiff.schedules import EDM, Table
from invdiff.tuning.levels import cheapest, diffusion_cost, fit_dpm_v3, fit_iia, fit_levels

S = 0.3  # in units of `Prior.scale`
ENDS = {"sigma_max": 5.0, "sigma_min": 0.02}


@pytest.fixture(scope="module")
def prior() -> GaussianPrior:
    prior = gaussian(torch.full((1, 3, 3), 0.4), 0.2**2 * torch.eye(9))
    prior.unit = 0.1 / S
    return prior


def missed(integrator: Integrator, levels: list[float], prior: GaussianPrior) -> float:
    """Distance to the end of the flow, over `Prior.scale`."""
    x = 0.4 + prior.scale * (S**2 + levels[0] ** 2) ** 0.5 * torch.ones(1, 1, 3, 3, dtype=torch.float64)
    end = integrator.end(prior.denoise, x, levels, lambda: x, prior.scale, prior.centre)
    return abs(float((end - 0.4).mean()) / prior.scale - (S**2 + levels[-1] ** 2) ** 0.5)


def test_the_bound_is_that_of_a_gaussian(prior: GaussianPrior) -> None:
    """The integral of (m(s) - m(t)) / t^3 over t, m(t) = S^2 t^2 / (S^2 + t^2) the error of the denoiser."""
    levels = np.geomspace(2.0, 0.05, 60)
    cost = diffusion_cost(prior, levels, 300, 0)
    high, low = levels[10], levels[40]

    def integral(t: float) -> float:
        """Of m(t) / t^3 from t to infinity, by partial fractions."""
        return float(np.log((S**2 + t**2) / t**2) / 2)

    error = S**2 * high**2 / (S**2 + high**2)
    exact = error / 2 * (1 / low**2 - 1 / high**2) - (integral(low) - integral(high))
    assert cost[10, 40] == pytest.approx(exact, rel=0.1)
    assert np.isinf(cost[40, 10])


def test_the_path_is_the_cheapest() -> None:
    cost = np.where(np.triu(np.ones((8, 8)), 1) > 0, np.random.default_rng(0).uniform(size=(8, 8)), np.inf)
    paths = [(0, *inner, 7) for inner in combinations(range(1, 7), 2)]
    best = min(paths, key=lambda path: sum(cost[i, j] for i, j in pairwise(path)))
    assert tuple(cheapest(cost, 4)) == best


def test_levels_of_the_flow_are_even_in_the_angle(prior: GaussianPrior) -> None:
    """Euler's steps on a Gaussian are shortest in sum where arctan(sigma / S) moves evenly."""
    found = fit_levels(prior, 8, by="flow", draws=4, **ENDS)
    turns = -np.diff(np.arctan(np.array(found.values) / S))
    assert found.values[0] == pytest.approx(5.0)
    assert found.values[-1] == pytest.approx(0.02)
    assert np.abs(turns / turns.mean() - 1).max() < 0.35  # the grid of candidates is coarse


def test_fitted_levels_are_better_than_those_of_edm(prior: GaussianPrior) -> None:
    """For Euler's steps on the flow."""
    fitted, edm = fit_levels(prior, 8, by="flow", draws=4, **ENDS), EDM(steps=8, **ENDS)
    found, usual = (missed(DDIM(eta=0.0), schedule.sigmas().tolist()[:-1], prior) for schedule in (fitted, edm))
    assert found < 0.8 * usual


def test_a_table_is_a_schedule() -> None:
    table = Table(values=(4.0, 1.0, 0.01), steps=3)
    assert table.sigmas().tolist() == pytest.approx([4.0, 1.0, 0.01, 0.0])
    assert Table(values=(4.0, 1.0, 0.01), steps=5).sigmas().tolist() == pytest.approx([4, 2, 1, 0.1, 0.01, 0])
    with pytest.raises(ValueError, match=r"schedule: values must be 2 or more falling levels > 0, got \(1.0, 2.0\)"):
        Table(values=(1.0, 2.0), steps=2)
    with pytest.raises(ValueError, match=r"schedule: values .*got \(1.0, 0.0\)"):
        Table(values=(1.0, 0.0), steps=2)


def test_integrators_fitted_to_a_prior(prior: GaussianPrior) -> None:
    """Both learn that the flow is affine: nearer to its end than Euler's steps by far."""
    schedule = EDM(steps=6, **ENDS)
    levels = schedule.sigmas().tolist()[:-1]
    euler = missed(DDIM(eta=0.0), levels, prior)
    assert missed(fit_dpm_v3(prior, schedule, draws=2000), levels, prior) < 0.3 * euler
    assert missed(fit_iia(prior, schedule), levels, prior) < 0.3 * euler


def test_the_number_of_levels_is_checked(prior: GaussianPrior) -> None:
    with pytest.raises(BadInput, match=r"fit_levels: steps must be in \[2, 64\], got 1"):
        fit_levels(prior, 1)
