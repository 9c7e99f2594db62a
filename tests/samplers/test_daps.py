"""DAPS: exact draws against the posterior, and the paper's algorithm step by step."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Normals, Remembering, Scripted, assert_law, dense, flat, gaussian, normal, published, smooth
from invdiff import Compute, InverseProblem
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
    PoissonNoise,
    SuperResolution,
    as_operator,
)
from invdiff.priors import GaussianPrior, Prior
from invdiff.samplers import DAPS
from invdiff.samplers.chains import ClosedForm, Conditional
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
    x = ClosedForm().draw(Conditional(problem, mean.expand(rows, *SMALL), width), Normals(rows, SMALL))
    matrix = dense(operator, SMALL)
    covariance = torch.linalg.inv(torch.eye(16) / width**2 + matrix.T @ matrix / sigma**2)
    assert_law(x, covariance @ (mean.flatten() / width**2 + matrix.T @ y.flatten() / sigma**2), covariance)


def test_a_draw_with_less_spread_keeps_its_mean() -> None:
    """`draw_std`: the perturbation of the prior alone is smaller; the solve still weighs by the true width."""
    operator, sigma, width, spread, rows = GaussianBlur(std=0.8, kernel_size=5), 0.2, 0.4, 0.1, 6000
    y, mean = normal(1, *SMALL, seed=1), normal(1, *SMALL, seed=2)
    problem = InverseProblem(operator, GaussianNoise(sigma), y).select(torch.zeros(rows, dtype=torch.long))
    target = Conditional(problem, mean.expand(rows, *SMALL), width, spread=spread)
    x = ClosedForm().draw(target, Normals(rows, SMALL))
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
    prior = Remembering(gaussian((mean.reshape(shape) + 1) / 2, covariance / 4))  # as of a network: grey is its centre
    found = run(sampler, problem, prior, Scripted([n.reshape(images, *shape) for n in script]))

    authors = AuthorsDAPS(mean, covariance, matrix, y, levels=levels, ode=5)
    x = authors.sigmas[0] * start
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
