"""DAPS: exact draws against the posterior, and the paper's chains digit by digit."""

import math
from dataclasses import replace
from itertools import chain as chain_lists
from itertools import pairwise, repeat

import pytest
import torch
from torch import Tensor

from helpers import Answers, Levels, Normals, Scripted, assert_law, dense, flat, gaussian, normal, published, smooth
from invdiff import Compute, InverseProblem, Unsupported
from invdiff.contracts.toys import WhitePrior
from invdiff.engine.step import Step
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
    SuperResolution,
    as_operator,
)
from invdiff.priors import GaussianPrior, Prior
from invdiff.samplers import DAPS
from invdiff.samplers.splitting.daps import gaussian_draw
from invdiff.schedules import EDM

PUBLISHED = DAPS(
    schedule=EDM(steps=200, sigma_max=100.0 / 2, sigma_min=0.1 / 2),
    ode_steps=5,
    ode_sigma_min=0.01 / 2,
    inner="langevin",
    prior_std=None,
    draw_std=None,
    chain_steps=100,
    step_size=1e-4 / 4,
    step_size_ratio=0.01,
    tau=0.01 / 2,
)
SMALL = (1, 4, 4)
SHAPE = (1, 8, 8)
QUIET = Compute(device="cpu", progress=False)


def run(sampler: DAPS, problem: InverseProblem, prior: Prior, rng: object) -> list[Step]:
    """All steps, with random numbers under the test's control and gradients off as in the driver."""
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


def chains(
    sampler: DAPS, problem: InverseProblem, estimates: list[Tensor], width: float, rng: object, levels: int = 1
) -> list[Tensor]:
    """x0 at each of `levels` equal levels, drawn about the given estimates x0_hat with this width."""
    schedule = Levels(values=(*[width] * levels, 0.0))
    sampler = replace(sampler, schedule=schedule, ode_steps=1, prior_std=None)
    return [step.x0 for step in run(sampler, problem, Answers(*estimates), rng)]


def chain(sampler: DAPS, problem: InverseProblem, x0_hat: Tensor, width: float, rng: object) -> Tensor:
    (x0,) = chains(sampler, problem, [x0_hat], width, rng)
    return x0


# -- exactness ---------------------------------------------------------------------------------------------------------

LINEAR = {
    "inpainting": Inpainting(keep=0.5),
    "super_resolution": SuperResolution(factor=2),
    "blur": GaussianBlur(std=0.8, kernel_size=5),
    # Complex measurements: sigma^2 is the variance of the complex number, half of it for each part.
    "fourier": LinearCallableOperator(lambda x: torch.fft.fft2(x, norm="ortho")[..., :3], image_shape=SMALL),
}


@pytest.mark.parametrize("name", list(LINEAR))
def test_exact_for_an_isotropic_gaussian(name: str) -> None:
    """Step 1 is the posterior mean, step 2 draws with its true width: the posterior itself, at any number of steps.

    Two images with their own noise levels at once; no other test compares laws at two levels in one batch.
    """
    operator, levels, s, rows = LINEAR[name], (0.1, 0.3), 0.25, 6000
    mean = 0.5 + 0.2 * normal(16, seed=1)
    clean = operator(0.5 + 0.3 * normal(2, *SMALL, seed=2))
    problem = InverseProblem(operator, GaussianNoise(torch.tensor(levels)), clean).select(
        torch.arange(2).repeat_interleave(rows)
    )
    sampler = DAPS(
        schedule=EDM(steps=10, sigma_max=20.0, sigma_min=0.02), prior_std=s, draw_std=None, inner="closed_form"
    )
    prior = gaussian(mean.reshape(SMALL), s**2 * torch.eye(16))
    x = run(sampler, problem, prior, Normals(2 * rows, SMALL))[-1].x.unflatten(0, (2, rows))

    matrix = dense(operator, SMALL)
    for image, sigma in enumerate(levels):
        variance = sigma**2 / (2 if clean.is_complex() else 1)
        covariance = torch.linalg.inv(torch.eye(16) / s**2 + matrix.T @ matrix / variance)
        target = covariance @ (mean / s**2 + matrix.T @ flat(clean)[image] / variance)
        assert_law(x[image], target, covariance)


def test_exact_draw_with_any_width() -> None:
    """The conditional alone: N(x; m, w^2 I) times the likelihood."""
    operator, sigma, width, rows = GaussianBlur(std=0.8, kernel_size=5), 0.2, 0.4, 6000
    y, mean = normal(1, *SMALL, seed=1), normal(1, *SMALL, seed=2)
    problem = InverseProblem(operator, GaussianNoise(sigma), y).select(torch.zeros(rows, dtype=torch.long))
    x = gaussian_draw(problem, mean.expand(rows, *SMALL), width, Normals(rows, SMALL))
    matrix = dense(operator, SMALL)
    covariance = torch.linalg.inv(torch.eye(16) / width**2 + matrix.T @ matrix / sigma**2)
    assert_law(x, covariance @ (mean.flatten() / width**2 + matrix.T @ y.flatten() / sigma**2), covariance)


def test_a_draw_with_less_spread_keeps_its_mean() -> None:
    """`draw_std`: the perturbation of the prior alone is smaller; the solve still weighs by the true width."""
    operator, sigma, width, spread, rows = GaussianBlur(std=0.8, kernel_size=5), 0.2, 0.4, 0.1, 6000
    y, mean = normal(1, *SMALL, seed=1), normal(1, *SMALL, seed=2)
    problem = InverseProblem(operator, GaussianNoise(sigma), y).select(torch.zeros(rows, dtype=torch.long))
    x = gaussian_draw(problem, mean.expand(rows, *SMALL), width, Normals(rows, SMALL), spread=spread)
    matrix = dense(operator, SMALL)
    exact = torch.linalg.inv(torch.eye(16) / width**2 + matrix.T @ matrix / sigma**2)
    target = exact @ (mean.flatten() / width**2 + matrix.T @ y.flatten() / sigma**2)
    data, rest = exact @ matrix.T / sigma**2, exact / width**2  # x = data y' + rest x'
    assert_law(x, target, sigma**2 * data @ data.T + spread**2 * rest @ rest.T)


def test_draw_std_narrows_the_draw_and_not_the_weight() -> None:
    """In a whole run, where nothing is measured, the last draw has the spread `draw_std`."""
    prior = gaussian(torch.full(SMALL, 0.5), 0.25**2 * torch.eye(16))
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.1), torch.zeros(1, *SMALL).double())
    problem = problem.select(torch.zeros(4000, dtype=torch.long))
    sampler = DAPS(schedule=EDM(steps=1, sigma_max=20.0), ode_steps=1, prior_std=0.25, draw_std=0.06)
    x = run(sampler, problem, prior, Normals(4000, SMALL))[-1].x.flatten(1)[:, 1:]
    assert float(x.std()) == pytest.approx(0.06, rel=0.02)
    exact = run(replace(sampler, draw_std=None), problem, prior, Normals(4000, SMALL))[-1].x.flatten(1)[:, 1:]
    assert float(exact.std()) == pytest.approx(0.25, rel=0.02)


def test_conjugate_gradients_and_the_spectrum_give_the_same_samples() -> None:
    """An operator without a decomposition is solved by iteration: same numbers drawn, same images."""
    shape = (1, 8, 8)
    spectral = GaussianBlur(std=1.0, kernel_size=7)
    plain = LinearCallableOperator(lambda x: spectral(x), image_shape=shape)
    assert not plain.spectral
    y = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(torch.full(shape, 0.5), smooth(8, 8, std=0.2).float())
    sampler = DAPS(schedule=EDM(steps=6, sigma_max=5.0, sigma_min=0.05), ode_steps=2, inner="closed_form")
    noise = GaussianNoise(torch.tensor([0.05, 0.1, 0.5]))
    found = [
        sampler.sample(InverseProblem(op, noise, y), prior, num_samples=2, compute=Compute(precision="float32"))
        for op in (spectral, plain)
    ]
    assert (found[0].samples - found[1].samples).abs().max() < 1e-4
    assert found[1].cost.operator_calls > found[0].cost.operator_calls


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
    sampler = replace(PUBLISHED, chain_steps=steps, step_size=eta, tau=tau)
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
        sampler = replace(PUBLISHED, chain_steps=1, step_size=eta, tau=tau)
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
    operator, images, steps = LINEAR["blur"], 3, 15
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
    between = [one, accept] if sampler.inner == "metropolis" else [one]
    between = [one, *between] if sampler.inner == "hamiltonian" else between
    script = chain_lists([one, probe], *[[*between, one]] * levels)
    found = chains(replace(sampler, chain_steps=1, momentum=0.0), problem, [x0_hat], width, Scripted(script), levels)
    moved = [(x0 - x0_hat).square().flatten(1).mean(1) for x0 in found]
    return moved if sampler.inner == "metropolis" else [m / 2 for m in moved]  # eta of a proposal, or 2 eta


def fitted(operator: LinearOperator | CallableOperator, noise: Noise, x0_hat: Tensor) -> InverseProblem:
    """A problem that x0_hat solves exactly: the likelihood does not move it."""
    return InverseProblem(operator, noise, operator(x0_hat), image_shape=tuple(x0_hat.shape[1:]))


@pytest.mark.parametrize("inner", ["langevin", "hamiltonian"])
@pytest.mark.parametrize("tau", [0.2, None])
def test_the_step_size_is_half_of_what_the_stiffest_direction_allows(inner: str, tau: float | None) -> None:
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


@pytest.mark.parametrize("inner", ["auto", "langevin", "hamiltonian"])
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
    script = [zeros, probe, ones, zeros, ones, zeros]
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
    measured = chain(replace(sampler, step_size=None), problem, x0_hat, 1.0, Scripted([x0_hat, probe, x0_hat]))
    eta = 0.5 / (1e4 + 1)
    assert torch.allclose(measured, -eta * slope.clamp(-10 / eta**0.5, 10 / eta**0.5), rtol=1e-5)
    assert measured[0, 0, 0, 0] < given[0, 0, 0, 0]


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


# -- the paper's algorithm ---------------------------------------------------------------------------------------------


def karras_levels(high: float, low: float, count: int) -> list[float]:
    """Karras et al. 2022, equation 5, entry by entry."""
    return [(high ** (1 / 7) + i / max(count - 1, 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(count)]


class AuthorsDAPS:
    """Algorithm 1 on images in [-1, 1] with the published numbers, transcribed (grids of the authors' first code)."""

    sigma_max, sigma_min, ode_sigma_min, tau, eta, ratio = 100.0, 0.1, 0.01, 0.01, 1e-4, 0.01

    def __init__(self, mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, *, levels: int, ode: int) -> None:
        self.mean, self.covariance, self.matrix, self.y = mean, covariance, matrix, y
        self.levels, self.ode = levels, ode
        self.sigmas = [*karras_levels(self.sigma_max, self.sigma_min, levels), 0.0]

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        marginal = self.covariance + sigma**2 * torch.eye(len(self.covariance), dtype=torch.float64)
        return self.mean + (x - self.mean) @ torch.linalg.solve(marginal, self.covariance)

    def estimate(self, x: Tensor, sigma: float) -> Tensor:
        for t, after in pairwise([*karras_levels(sigma, self.ode_sigma_min, self.ode), 0.0]):
            score = (self.denoise(x, t) - x) / t**2
            x = x + (after - t) * (-t * score)
        return x

    def step(self, x: Tensor, k: int, chain_noise: list[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigmas[k]
        x0_hat = self.estimate(x, sigma)
        x0 = x0_hat
        eta = self.eta * (1 - k / self.levels * (1 - self.ratio))
        for n in chain_noise:
            data = (x0 @ self.matrix.T - self.y) @ self.matrix / self.tau**2  # gradient of |A x0 - y|^2 / (2 tau^2)
            x0 = x0 - eta * ((x0 - x0_hat) / sigma**2 + data) + math.sqrt(2 * eta) * n
        return x0 + self.sigmas[k + 1] * noise, x0


@pytest.mark.parametrize("name", ["inpainting", "super_resolution", "blur"])
def test_every_step_equals_the_authors(name: str) -> None:
    """Our [0, 1] with sigma / 2, tau / 2, eta / 4 against their [-1, 1]: the same images, step by step."""
    shape, images, levels, chain = (1, 8, 8), 3, 8, 12
    operator = {**LINEAR, "inpainting": Inpainting(keep=0.4)}[name]
    matrix, covariance = dense(operator, shape), smooth(8, 8, std=0.5)
    mean = 0.2 * normal(64, seed=1)
    seen = matrix.abs().sum(1) > 0
    y = (normal(images, 64, seed=2) * 0.5) @ matrix.T + 0.05 * seen * normal(images, len(matrix), seed=3)
    y_unit = torch.where(seen, (y + 1) / 2, 0).reshape(images, *operator(torch.zeros(1, *shape)).shape[1:])
    problem = InverseProblem(operator, GaussianNoise(0.025), y_unit)

    numbers = iter(range(10**6))
    start = normal(images, 64, seed=next(numbers))
    chains = [[normal(images, 64, seed=next(numbers)) for _ in range(chain)] for _ in range(levels)]
    noises = [normal(images, 64, seed=next(numbers)) for _ in range(levels)]
    script = [start]
    for k in range(levels):
        script += [*chains[k], *([noises[k]] if k < levels - 1 else [])]
    sampler = replace(PUBLISHED, schedule=replace(PUBLISHED.schedule, steps=levels), chain_steps=chain)
    prior = gaussian((mean.reshape(shape) + 1) / 2, covariance / 4)
    found = run(sampler, problem, prior, Scripted([n.reshape(images, *shape) for n in script]))

    authors = AuthorsDAPS(mean, covariance, matrix, y, levels=levels, ode=5)
    x = 2 * (authors.sigmas[0] / 2) * start - 1  # u = sigma n is x = 2 u - 1
    for k, step in enumerate(found):
        x, x0 = authors.step(x, k, chains[k], noises[k])
        assert step.sigma == pytest.approx(authors.sigmas[k + 1] / 2, rel=1e-12)
        assert (2 * step.x.flatten(1) - 1 - x).abs().max() < 1e-9 * (1 + x.abs().max())
        assert (2 * step.x0.flatten(1) - 1 - x0).abs().max() < 1e-9 * (1 + x0.abs().max())
    assert len(found) == levels
    assert found[-1].sigma == 0


def propagate(sampler: DAPS, s: float, y: float | None) -> tuple[float, float]:
    """Mean and variance of one pixel with prior N(0, s^2), measured as y (None: not at all), through the algorithm."""
    sigmas = sampler.schedule.sigmas().tolist()
    m, v = 0.0, sigmas[0] ** 2
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        levels = [*karras_levels(sigma, min(sampler.ode_sigma_min, sigma), sampler.ode_steps), 0.0]
        factor = math.prod(1 + (b - a) * (1 - s**2 / (s**2 + a**2)) / a for a, b in pairwise(levels))
        m_hat, v_hat = factor * m, factor**2 * v
        # Given x0_hat the chain ends at g x0_hat + shift, with the variance w that its noise adds up to.
        eta = sampler.step_size * (1 - k / sampler.num_steps * (1 - sampler.step_size_ratio))
        width = sigma if sampler.prior_std is None else 1 / math.sqrt(1 / sigma**2 + 1 / sampler.prior_std**2)
        assert sampler.tau is not None
        data = 0.0 if y is None else 1 / sampler.tau**2
        g, shift, w = 1.0, 0.0, 0.0
        keep = 1 - eta * (1 / width**2 + data)
        for _ in range(sampler.chain_steps):
            g, shift, w = (
                keep * g + eta / width**2,
                keep * shift + eta * data * (y or 0.0),
                keep**2 * w + 2 * eta,
            )
        m, v = g * m_hat + shift, g**2 * v_hat + w + after**2
    return m, v


def test_published_numbers() -> None:
    """In the experiment; on [-1, 1] 200 levels from 100 to 0.1, 5 Euler steps down to 0.01, tau 0.01, eta 1e-4."""
    assert published("daps") == PUBLISHED


def test_the_recursion_has_the_reference_numbers() -> None:
    """s^2 = 0.25 on [-1, 1]: observed slope 0.9935 and variance 6.0e-4, variance 0.199 where nothing is measured."""
    mean, variance = propagate(PUBLISHED, 0.25, 1.0)
    assert mean == pytest.approx(0.9935, abs=1e-4)
    assert 4 * variance == pytest.approx(6.0e-4, abs=0.1e-4)
    _, null = propagate(PUBLISHED, 0.25, None)
    assert 4 * null == pytest.approx(0.199, abs=1e-3)


def compare_with_the_recursion(sampler: DAPS, rows: int) -> None:
    shape, s, y = (1, 4, 8), 0.25, 0.8
    mask = torch.arange(32).reshape(4, 8) % 2 == 0
    prior = GaussianPrior(torch.zeros(shape, dtype=torch.float64), s**2 * torch.eye(32, dtype=torch.float64))
    measured = torch.where(mask, y, 0.0).expand(rows, *shape).double()
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.025), measured)
    x = run(sampler, problem, prior, Normals(rows, shape))[-1].x
    for seen in (True, False):
        values = x[:, 0, mask == seen].flatten()
        mean, variance = propagate(sampler, s, y if seen else None)
        assert abs(float(values.mean()) - mean) < 4.5 * math.sqrt(variance / len(values))
        assert abs(float(values.var()) / variance - 1) < 4.5 * math.sqrt(2 / len(values))


@pytest.mark.parametrize("prior_std", [None, 0.25])
def test_the_algorithm_follows_the_recursion(prior_std: float | None) -> None:
    """The whole algorithm, shortened: every draw, grid and step size enters the variance."""
    sampler = replace(
        PUBLISHED, schedule=EDM(steps=12, sigma_max=50.0, sigma_min=0.05), chain_steps=25, prior_std=prior_std
    )
    compare_with_the_recursion(sampler, 400)


@pytest.mark.slow
def test_the_published_algorithm_follows_the_recursion() -> None:
    compare_with_the_recursion(PUBLISHED, 200)


# -- rules -------------------------------------------------------------------------------------------------------------


def small_problem(images: int = 4, sigma: Tensor | float = 0.1) -> tuple[InverseProblem, GaussianPrior]:
    shape = (1, 8, 8)
    operator = GaussianBlur(std=1.0, kernel_size=5)
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(torch.full(shape, 0.5), 0.04 * torch.eye(64))
    return InverseProblem(operator, GaussianNoise(sigma), operator(x)), prior


SHORT = EDM(steps=6, sigma_max=5.0, sigma_min=0.05)


def test_one_chain_that_diverges_leaves_the_others_alone_and_is_reported() -> None:
    """Its noise level makes the step size unstable for image 2 alone; nothing is replaced by zeros."""
    sampler = DAPS(schedule=SHORT, ode_steps=2, inner="langevin", chain_steps=60, step_size=2.5e-5)
    levels = torch.full((4,), 0.1)
    problem, prior = small_problem(sigma=levels)
    healthy = sampler.sample(problem, prior, num_samples=2)
    levels = levels.clone()
    levels[2] = 1e-3
    problem, _ = small_problem(sigma=levels)
    sick = sampler.sample(problem, prior, num_samples=2)
    assert not healthy.diverged.any()
    assert sick.diverged.tolist() == [[image == 2] * 2 for image in range(4)]
    assert (sick.diverged_at[2] == 0).all()
    others = [0, 1, 3]
    assert torch.equal(sick.samples[others], healthy.samples[others])
    assert sick.mean[2].isnan().all()
    assert sick.mean[others].isfinite().all()


@pytest.mark.parametrize("inner", ["langevin", "closed_form"])
def test_unmeasured_entries_behind_a_mask_of_deepinv(inner: str) -> None:
    """It multiplies, and NaN times zero is NaN."""
    from deepinv.physics import Inpainting as Physics

    mask = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    operator = as_operator(Physics(img_size=SHAPE, mask=mask.float()))
    y = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * mask
    sampler = DAPS(schedule=SHORT, inner=inner, chain_steps=5)  # type: ignore[arg-type]
    zero, other = (
        sampler.sample(InverseProblem(operator, GaussianNoise(0.1), torch.where(mask, y, value)), WhitePrior())
        for value in (0.0, torch.nan)
    )
    assert not zero.diverged.any()
    assert torch.equal(zero.samples, other.samples)


def test_auto_takes_the_closed_form_where_there_is_one() -> None:
    problem, prior = small_problem(images=1)
    auto, exact, chain = (
        DAPS(schedule=SHORT, ode_steps=1, inner=inner, chain_steps=3) for inner in ("auto", "closed_form", "langevin")
    )
    assert torch.equal(auto.sample(problem, prior).samples, exact.sample(problem, prior).samples)
    nonlinear = InverseProblem(CallableOperator(lambda x: x**2), GaussianNoise(0.1), problem.y, image_shape=(1, 8, 8))
    counting = InverseProblem(Denoising(), PoissonNoise(0.05), problem.y)
    for other in (nonlinear, counting):
        assert torch.equal(auto.sample(other, prior).samples, chain.sample(other, prior).samples)
        assert not auto.sample(other, prior).diverged.any()


def test_closed_form_with_a_linear_black_box() -> None:
    """It requires an adjoint and a solve, but no autograd: a linear operator without a graph is enough."""

    class Opaque(LinearOperator):
        differentiable = False

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.detach()

        def adjoint(self, y: Tensor) -> Tensor:
            return 2 * y.detach()

        def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
            return measurement_shape

    problem, prior = small_problem(images=1)
    opaque = InverseProblem(Opaque(), GaussianNoise(0.1), problem.y)
    sampler = DAPS(schedule=SHORT, ode_steps=1, inner="closed_form")
    assert not sampler.sample(opaque, prior).diverged.any()
