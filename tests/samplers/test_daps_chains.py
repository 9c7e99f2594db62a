"""The inner chains of DAPS: their laws, the authors' chains digit by digit, and measured step sizes."""

import math
from dataclasses import replace
from itertools import chain as chain_lists
from itertools import repeat

import pytest
import torch
from torch import Tensor

from helpers import Answers, Levels, Normals, Scripted, assert_law, dense, normal
from invdiff import Compute, InverseProblem, Unsupported
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import (
    CallableOperator,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    LinearOperator,
    Noise,
    PoissonNoise,
)
from invdiff.samplers import DAPS
from invdiff.schedules import EDM

SMALL = (1, 4, 4)
SHAPE = (1, 8, 8)
QUIET = Compute(device="cpu", progress=False)


def chains(
    sampler: DAPS, problem: InverseProblem, estimates: list[Tensor], width: float, rng: object, levels: int = 1
) -> list[Tensor]:
    """x0 at each of `levels` equal levels, drawn about the given estimates x0_hat with this width."""
    schedule = Levels(values=(*[width] * levels, 0.0))
    sampler = replace(sampler, schedule=schedule, ode_steps=1, prior_std=None)
    with torch.no_grad():
        return [step.x0 for step in sampler.iterate(problem, Answers(*estimates), rng)]  # type: ignore[arg-type]


def chain(sampler: DAPS, problem: InverseProblem, x0_hat: Tensor, width: float, rng: object) -> Tensor:
    (x0,) = chains(sampler, problem, [x0_hat], width, rng)
    return x0


# -- the inner chain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, None])
def test_langevin_chain_has_the_law_of_unadjusted_langevin(tau: float | None) -> None:
    """Precision h = 1/r^2 + a^2/tau^2, stationary variance 1 / (h (1 - eta h / 2)): a factor 2 anywhere would show.

    tau=None believes the noise itself; its level here is that tau.
    """
    rows, width, eta, steps = 8000, 0.1, 2e-3, 150
    mask = torch.tensor([[1, 0, 1, 0]])
    y, start = normal(1, 1, 1, 4, seed=1), normal(1, 1, 1, 4, seed=2)
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.1 if tau is None else 7.0), y).select(
        torch.zeros(rows, dtype=torch.long)
    )
    sampler = DAPS(inner="langevin", chain_steps=steps, step_size=eta, tau=tau)
    x = chain(sampler, problem, start, width, Normals(rows, (1, 1, 4)))
    h = 1 / width**2 + mask.flatten() / 0.1**2
    target = (start.flatten() / width**2 + torch.where(mask != 0, y, 0).flatten() / 0.1**2) / h
    variance = 1 / (h * (1 - eta * h / 2))
    values = x.flatten(1)
    assert ((values.mean(0) - target).abs() < 5 * (variance / rows).sqrt()).all()
    assert ((values.var(0) / variance - 1).abs() < 5 * (2 / rows) ** 0.5).all()


def test_langevin_with_a_complex_measurement() -> None:
    """|r|^2 sums both parts: tau is the level of each real part, and `tau=None` the likelihood of complex noise."""
    operator = LinearCallableOperator(lambda x: torch.complex(x, 2 * x), image_shape=(1, 1, 2))
    y = operator(torch.tensor([[[[1.0, -0.5]]]], dtype=torch.float64))
    problem = InverseProblem(operator, GaussianNoise(0.5), y)
    x0, eta = torch.zeros(1, 1, 1, 2, dtype=torch.float64), 1e-3

    truth = torch.tensor([1.0, -0.5], dtype=torch.float64)
    for tau, variance_of_a_part in ((0.2, 0.2**2), (None, 0.5**2 / 2)):
        sampler = DAPS(inner="langevin", chain_steps=1, step_size=eta, tau=tau)
        moved = chain(sampler, problem, x0, 1.0, Scripted(repeat(x0)))
        assert torch.allclose(moved.flatten(), eta * 5 * truth / variance_of_a_part)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_hamiltonian_chain_has_the_law_of_damped_dynamics(momentum: float) -> None:
    """Two steps of it are an autoregression, whose variance is 1 / (h (1 - eta h / (2 + 2 momentum))).

    At momentum 0 that is Langevin's; a wrong size of the kicks would show as another temperature.
    """
    rows, width, eta, steps = 8000, 0.1, 2e-3, 200
    mask = torch.tensor([[1, 0, 1, 0]])
    y, start = normal(1, 1, 1, 4, seed=1), normal(1, 1, 1, 4, seed=2)
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.1), y).select(torch.zeros(rows, dtype=torch.long))
    sampler = DAPS(inner="hamiltonian", momentum=momentum, chain_steps=steps, step_size=eta)
    x = chain(sampler, problem, start, width, Normals(rows, (1, 1, 4)))
    h = 1 / width**2 + mask.flatten() / 0.1**2
    target = (start.flatten() / width**2 + torch.where(mask != 0, y, 0).flatten() / 0.1**2) / h
    variance = 1 / (h * (1 - eta * h / (2 + 2 * momentum)))
    values = x.flatten(1)
    assert ((values.mean(0) - target).abs() < 5 * (variance / rows).sqrt()).all()
    assert ((values.var(0) / variance - 1).abs() < 5 * (2 / rows) ** 0.5).all()


def test_without_momentum_the_hamiltonian_chain_is_langevin() -> None:
    """Digit by digit, given the same numbers: the initial velocity has no effect."""
    shape, steps = (3, *SMALL), 12
    problem = InverseProblem(CallableOperator(lambda x: x**2), GaussianNoise(0.2), normal(*shape), image_shape=SMALL)
    x0_hat, numbers = 0.5 + 0.3 * normal(*shape, seed=1), [normal(*shape, seed=2 + k) for k in range(steps)]
    start, velocity = normal(*shape, seed=98), normal(*shape, seed=99)
    plain, damped, with_momentum = (
        chain(
            DAPS(inner=inner, momentum=momentum, chain_steps=steps, step_size=1e-3),  # type: ignore[arg-type]
            problem,
            x0_hat,
            0.3,
            Scripted([start, *first, *numbers]),
        )
        for inner, momentum, first in (
            ("langevin", 0.0, []),
            ("hamiltonian", 0.0, [velocity]),
            ("hamiltonian", 0.5, [velocity]),
        )
    )
    assert (damped - plain).abs().max() < 1e-13
    assert (with_momentum - plain).abs().max() > 1e-3


@pytest.mark.parametrize("tau", [0.2, None])
def test_a_metropolis_chain_ends_in_the_conditional(tau: float | None) -> None:
    """From any start, at any step size, and whatever the noise level where tau replaces it."""
    operator, width, rows = GaussianBlur(std=0.8, kernel_size=5), 0.4, 6000
    y, centre = normal(1, *SMALL, seed=1), normal(1, *SMALL, seed=2)
    noise = GaussianNoise(0.2 if tau is None else 7.0)
    problem = InverseProblem(operator, noise, y).select(torch.zeros(rows, dtype=torch.long))
    matrix = dense(operator, SMALL)
    covariance = torch.linalg.inv(torch.eye(16) / width**2 + matrix.T @ matrix / 0.2**2)
    mean = covariance @ (centre.flatten() / width**2 + matrix.T @ y.flatten() / 0.2**2)
    sampler = DAPS(inner="metropolis", chain_steps=150, step_size=0.03, tau=tau)
    x = chain(sampler, problem, centre, width, Normals(rows, SMALL))
    assert (mean - centre.flatten()).abs().max() > 0.3, "the start must be far from the law"
    assert_law(x, mean, covariance)


def authors_energy(x: Tensor, x0_hat: Tensor, sigma: float, matrix: Tensor, y: Tensor, tau: float) -> Tensor:
    """Of one image on [-1, 1]: minus the logarithm of the chains' target."""
    return ((x - x0_hat) ** 2).sum() / (2 * sigma**2) + ((matrix @ x - y) ** 2).sum() / (2 * tau**2)


@pytest.mark.parametrize("inner", ["hamiltonian", "metropolis"])
def test_a_chain_equals_the_authors(inner: str) -> None:
    """Their other two chains on [-1, 1], image by image, with eta and tau rescaled as for Langevin."""
    operator, images, steps = GaussianBlur(std=0.8, kernel_size=5), 3, 15
    matrix = dense(operator, SMALL)
    sigma, tau, momentum, eta = 0.4, 0.1, 0.73, 2e-3
    x0_hat = 0.5 * normal(images, 16, seed=1)
    y = x0_hat @ matrix.T + tau * normal(images, 16, seed=2)
    first = normal(images, 16, seed=3)
    noises = [normal(images, 16, seed=10 + k) for k in range(steps)]
    chances = [normal(images, 2, seed=100 + k) for k in range(steps)]

    expected, accepted = x0_hat.clone(), 0
    for i in range(images):
        x, v = x0_hat[i].clone(), first[i]
        for n, chance in zip(noises, chances, strict=True):
            if inner == "hamiltonian":
                score = -(x - x0_hat[i]) / sigma**2 - matrix.T @ (matrix @ x - y[i]) / tau**2
                v = momentum * v + math.sqrt(eta) * score + math.sqrt(2 * (1 - momentum)) * n[i]
                x = x + math.sqrt(eta) * v
            else:
                proposed = x + math.sqrt(eta) * n[i]
                before, after = (authors_energy(z, x0_hat[i], sigma, matrix, y[i], tau) for z in (x, proposed))
                # The squared length of two standard normal numbers is -2 log u, with u uniform.
                if torch.exp(-chance[i].square().sum() / 2) < torch.exp(before - after):
                    x, accepted = proposed, accepted + 1
        expected[i] = x

    numbers = [n.reshape(images, *SMALL) for n in noises]
    if inner == "hamiltonian":
        script = [first.reshape(images, *SMALL), *numbers]
    else:
        script = [draw for pair in zip(numbers, chances, strict=True) for draw in pair]
        assert 5 < accepted < images * steps - 5
    problem = InverseProblem(operator, GaussianNoise(1.0), ((y + 1) / 2).reshape(images, *SMALL))
    sampler = DAPS(inner=inner, momentum=momentum, chain_steps=steps, step_size=eta / 4, tau=tau / 2)  # type: ignore[arg-type]
    start = ((x0_hat + 1) / 2).reshape(images, *SMALL)
    found = chain(sampler, problem, start, sigma / 2, Scripted([start, *script]))
    assert (2 * found.flatten(1) - 1 - expected).abs().max() < 1e-11


def test_metropolis_needs_nothing_but_values() -> None:
    """A black box with photon counts: without any gradient, the images fit y."""
    box = CallableOperator(
        lambda x: torch.from_numpy((255 * x.numpy()).round() / 255), differentiable=False, image_shape=SMALL
    )
    truth = (0.5 + 0.2 * normal(2, *SMALL, seed=1).float()).clamp(0, 1)
    sampler = DAPS(schedule=EDM(steps=15, sigma_max=5.0, sigma_min=0.02), inner="metropolis", chain_steps=60)
    for noise in (GaussianNoise(0.05), PoissonNoise(0.01)):
        problem = InverseProblem(box, noise, truth)
        found = sampler.sample(problem, WhitePrior(), compute=QUIET)
        assert not found.diverged.any()
        assert (found.samples[:, 0] - truth).square().mean().sqrt() < 0.12  # of the prior's own images: 0.3
        with pytest.raises(Unsupported, match="DAPS needs a differentiable operator"):
            replace(sampler, inner="langevin").sample(problem, WhitePrior())


# -- the measured step size --------------------------------------------------------------------------------------------


def with_singular_values(values: Tensor, seed: int = 0) -> LinearCallableOperator:
    """A linear operator on 1x4x4 with these singular values along directions that are no pixels."""
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    matrix = turn * values @ turn.T
    return LinearCallableOperator(lambda x: (x.flatten(1) @ matrix.to(x.dtype).T).reshape(x.shape), image_shape=SMALL)


def step_sizes(
    sampler: DAPS, problem: InverseProblem, x0_hat: Tensor, width: float, probe: Tensor, levels: int = 1
) -> list[Tensor]:
    """(R,) at each level: from the distance that a chain of one step with a noise of 1 moves an x0_hat that fits y."""
    one, accept = torch.ones_like(x0_hat), torch.full((len(x0_hat), 2), 1e3)
    between = [one, accept] if sampler.inner == "metropolis" else [one, one]  # of the others the velocity, a noise
    script = chain_lists([one, probe], *[[*between, one]] * levels)
    found = chains(replace(sampler, chain_steps=1, momentum=0.0), problem, [x0_hat], width, Scripted(script), levels)
    moved = [(x0 - x0_hat).square().flatten(1).mean(1) for x0 in found]
    return [m / 2 for m in moved] if sampler.inner == "langevin" else moved


def fitted(operator: LinearOperator | CallableOperator, noise: Noise, x0_hat: Tensor) -> InverseProblem:
    """A problem that x0_hat solves exactly: the likelihood does not move it."""
    return InverseProblem(operator, noise, operator(x0_hat), image_shape=tuple(x0_hat.shape[1:]))


@pytest.mark.parametrize("inner", ["langevin", "hamiltonian"])
@pytest.mark.parametrize("tau", [0.2, None])
def test_the_step_size_is_measured_in_the_stiffest_direction(inner: str, tau: float | None) -> None:
    """One for each image; within 10 % after the first level, and better from level to level."""
    values = torch.cat([torch.tensor([5.0]), torch.linspace(1.0, 0.1, 15)]).double()
    operator, sigma, width = with_singular_values(values), torch.tensor([0.1, 0.3, 2.0]), 0.2
    x0_hat, probe = normal(3, *SMALL, seed=2), normal(3, *SMALL, seed=3)
    problem = fitted(operator, GaussianNoise(sigma), x0_hat)
    sampler = DAPS(inner=inner, step_size=None, tau=tau)  # type: ignore[arg-type]
    stiffest = 5.0**2 / (sigma.double() ** 2 if tau is None else torch.full((3,), tau).double() ** 2)
    expected = 0.5 / (stiffest + 1 / width**2)
    for eta, tolerance in zip(
        step_sizes(sampler, problem, x0_hat, width, probe, levels=3), (0.1, 1e-4, 1e-4), strict=True
    ):
        assert torch.allclose(eta, expected, rtol=tolerance, atol=0)
        assert (eta >= expected * (1 - 1e-6)).all()  # power iterations come from below


def test_metropolis_measures_the_trace() -> None:
    """2.4^2 over the summed precision of all directions: exact where they are pixels, otherwise an estimate of it."""
    sigma, width = torch.tensor([0.05, 0.5]), 0.2
    mask = torch.arange(16).reshape(4, 4) % 4 == 0
    x0_hat = normal(2, *SMALL, seed=2)
    problem = fitted(Inpainting(mask=mask), GaussianNoise(sigma), x0_hat)
    (eta,) = step_sizes(DAPS(inner="metropolis", step_size=None), problem, x0_hat, width, normal(2, *SMALL, seed=3))
    assert torch.allclose(eta, 2.4**2 / (4 / sigma.double() ** 2 + 16 / width**2), rtol=1e-6)


def test_metropolis_moves_where_the_data_are_sharp() -> None:
    """In equilibrium about a quarter of the proposals is accepted, however sharp the likelihood."""
    rows = 200
    problem = InverseProblem(Denoising(), GaussianNoise(0.01), normal(1, *SHAPE, seed=1)).select(
        torch.zeros(rows, dtype=torch.long)
    )
    sampler = DAPS(inner="metropolis", step_size=None, chain_steps=1)
    x, rng, moved = problem.y + 0.01 * normal(rows, *SHAPE, seed=2), Normals(rows, SHAPE), []
    for _ in range(20):
        before, x = x, chain(sampler, problem, x, 0.25, rng)
        moved.append(float(((x - before).abs() > 1e-9).flatten(1).any(1).double().mean()))
    assert 0.1 < sum(moved) / 20 < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["langevin", "hamiltonian"])
def test_an_operator_of_large_norm_does_not_diverge(inner: str) -> None:
    """A x = 4 x: sixteen times as stiff; and with noise so small that no fixed step size would do for both."""
    truth = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    operator = CallableOperator(lambda x: 4 * x, image_shape=SHAPE)
    problem = InverseProblem(operator, GaussianNoise(torch.tensor([0.01, 0.3])), 4 * truth)
    found = DAPS(inner=inner, step_size=None).sample(problem, WhitePrior(), compute=QUIET)  # type: ignore[arg-type]
    assert not found.diverged.any()
    errors = (found.samples[:, 0] - truth).square().flatten(1).mean(1).sqrt()
    assert errors[0] < 0.05
    assert errors[1] < 0.15


def test_the_stiffness_of_a_saturated_image_is_found_at_the_next_level() -> None:
    """A probe that changes nothing, in an image that is clipped everywhere, is kept for the next level."""
    clipped, grey = torch.full((2, *SMALL), 2.0).double(), torch.full((2, *SMALL), 0.5).double()
    clipped[1] = 0.5
    operator, zeros = CallableOperator(lambda x: x.clamp(0, 1)), torch.zeros(2, *SMALL).double()
    problem = InverseProblem(operator, GaussianNoise(0.1), grey, image_shape=SMALL)
    ones, probe = zeros + 1, normal(2, *SMALL, seed=1)
    script = [zeros, probe, ones, ones, zeros, ones, ones, zeros]
    sampler = DAPS(inner="langevin", step_size=None, chain_steps=1)
    # Neither the clipped image, where A has no slope, nor one that fits y is moved by the likelihood.
    found = chains(sampler, problem, [clipped, grey], 0.2, Scripted(script), levels=2)
    for x0, start, stiffness in zip(found, (clipped, grey), ([25.0, 125.0], [125.0, 125.0]), strict=True):
        eta = (x0 - start).square().flatten(1).mean(1) / 2
        assert torch.allclose(eta, 0.5 / torch.tensor(stiffness).double())


def test_stiffness_of_a_single_pixel() -> None:
    """It is measured within the range of images, also where the stiffest direction is one pixel of many."""
    shape = (1, 64, 64)
    weights = torch.full(shape, 0.1).double()
    weights[0, 5, 7] = 4.0
    operator = CallableOperator(lambda x: weights * x.clamp(0, 1), image_shape=shape)
    x0_hat = torch.full((1, *shape), 0.5).double()
    problem = fitted(operator, GaussianNoise(0.1), x0_hat)
    sampler = DAPS(inner="langevin", step_size=None)
    *_, eta = step_sizes(sampler, problem, x0_hat, 0.25, normal(1, *shape, seed=1), levels=3)
    assert float(eta) == pytest.approx(0.5 / (1600 + 16), rel=0.01)


def test_a_measured_step_size_cuts_slopes_off_and_a_given_one_does_not() -> None:
    """Far from where it was measured, a slope may exceed the limit of the step; a given step size has none."""
    y, x0_hat = torch.zeros(1, *SMALL).double(), torch.zeros(1, *SMALL).double()
    y[0, 0, 0, 0], y[0, 0, 0, 1] = 3.0, -0.01
    problem, slope = InverseProblem(Denoising(), GaussianNoise(0.01), y), -1e4 * y
    sampler, probe = DAPS(inner="langevin", step_size=1e-4, chain_steps=1), normal(1, *SMALL, seed=1)
    given = chain(sampler, problem, x0_hat, 1.0, Scripted(repeat(x0_hat)))
    assert torch.allclose(given, -1e-4 * slope, rtol=1e-5)
    measured = chain(replace(sampler, step_size=None), problem, x0_hat, 1.0, Scripted([x0_hat, probe, x0_hat, x0_hat]))
    eta = 0.5 / (1e4 + 1)
    assert torch.allclose(measured, -eta * slope.clamp(-10 / eta**0.5, 10 / eta**0.5), rtol=1e-5)
    assert measured[0, 0, 0, 0] < given[0, 0, 0, 0]


@pytest.mark.parametrize("inner", ["langevin", "hamiltonian", "metropolis"])
def test_a_measured_chain_is_as_wide_as_the_exact_draw(inner: str) -> None:
    """One stiff direction and a slow one, 26 to 1, by the class's own 100 steps: both within 5 %; a given step is not.

    Five standard errors are 4 %. The paper's steps of the same size are 17 % too wide along the stiff direction.
    """
    rows, width, shape = 8000, 0.25, (1, 1, 2)
    problem = InverseProblem(Inpainting(mask=torch.tensor([[1, 0]])), GaussianNoise(0.05), torch.full((1, *shape), 0.6))
    problem = problem.select(torch.zeros(rows, dtype=torch.long))
    h = torch.tensor([1 / width**2 + 1 / 0.05**2, 1 / width**2], dtype=torch.float64)
    start = torch.full((1, *shape), 0.5).double()
    sampler = DAPS(inner=inner, step_size=None)  # type: ignore[arg-type]
    ratio = chain(sampler, problem, start, width, Normals(rows, shape)).flatten(1).std(0) * h.sqrt()
    assert ((ratio - 1).abs() < 0.05).all(), ratio
    if inner == "langevin":
        given = chain(replace(sampler, step_size=0.5 / float(h[0])), problem, start, width, Normals(rows, shape))
        assert float(given.flatten(1).std(0)[0] * h[0].sqrt()) > 1.1


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["langevin", "hamiltonian"])
@pytest.mark.parametrize("gain", [1e-3, 1e-1])
def test_photon_counts_down_to_zero(inner: str, gain: float) -> None:
    """Their likelihood has a wall at zero, a thousand times steeper than the rest: no chain diverges."""
    truth = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = PoissonNoise(gain)
    y = noise.sample(truth, [torch.Generator().manual_seed(i) for i in range(2)])
    sampler = DAPS(schedule=EDM(steps=25, sigma_max=5.0, sigma_min=0.02), inner=inner, step_size=None, chain_steps=50)  # type: ignore[arg-type]
    found = sampler.sample(InverseProblem(Denoising(), noise, y), WhitePrior(0.5, 0.3), compute=QUIET)
    assert not found.diverged.any()
    assert (found.samples[:, 0] - truth).square().mean().sqrt() < (0.08 if gain < 1e-2 else 0.3)
