"""MMPS: the authors' posterior mean, exactness for Gaussian images, and the bias that is left for others."""

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Scripted, affine_law, gaussian, normal, smooth
from invdiff import Compute, InverseProblem, load_prior
from invdiff.integrators import DDIM
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, LinearCallableOperator
from invdiff.priors import GaussianMixturePrior
from invdiff.priors.base import Prior
from invdiff.samplers import MMPS
from invdiff.schedules import EDM

SHAPE = (1, 3, 3)
QUIET = Compute(device="cpu", precision="float32", progress=False)


class Bent(Prior):
    """A denoiser whose Jacobian is not symmetric and changes with x, as that of a network does."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat @ self.matrix.T).sin() / (1 + sigma) + 0.5 * flat).reshape(x.shape)


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["gmres", "cg"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_posterior_mean_is_the_papers_formula(solver: str, sigma: float) -> None:
    """D + s^2 J^T A^T (R + s^2 A J^T A^T)^-1 (y - A D) by dense algebra, J by autograd column by column."""
    matrix, y = normal(4, 9, seed=1), normal(3, 4, seed=2)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    prior = gaussian(0.5 + 0.1 * normal(*SHAPE, seed=3), smooth(3, 3, std=0.4))
    x = 0.5 + sigma * normal(3, *SHAPE, seed=4)
    found = MMPS(solver=solver, iterations=4).posterior_mean(problem, prior, x, sigma)  # type: ignore[arg-type]
    for row in range(3):
        d = prior.denoise(x[row : row + 1], sigma).flatten()
        jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v, sigma), x[row : row + 1]).reshape(9, 9)
        noisy = 0.3**2 * torch.eye(4).double() + sigma**2 * matrix @ jacobian.T @ matrix.T
        wanted = d + sigma**2 * jacobian.T @ matrix.T @ torch.linalg.solve(noisy, y[row] - matrix @ d)
        assert (found[row].flatten() - wanted).abs().max() < 1e-5 * (1 + wanted.abs().max())


def test_gmres_solves_what_is_not_symmetric() -> None:
    """For the Jacobian of a network conjugate gradients end elsewhere; J^T is applied, not J."""
    matrix, y, sigma = normal(4, 9, seed=1), normal(1, 4, seed=2), 0.7
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.5), y)
    prior, x = Bent(0.25 * normal(9, 9, seed=5)), normal(1, *SHAPE, seed=4)
    d = prior.denoise(x, sigma).flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v, sigma), x).reshape(9, 9)
    errors = {}
    for solver in ("gmres", "cg"):
        found = MMPS(solver=solver, iterations=4).posterior_mean(problem, prior, x, sigma)  # type: ignore[arg-type]
        noisy = 0.5**2 * torch.eye(4).double() + sigma**2 * matrix @ jacobian.T @ matrix.T
        wanted = d + sigma**2 * jacobian.T @ matrix.T @ torch.linalg.solve(noisy, y[0] - matrix @ d)
        errors[solver] = float((found.flatten() - wanted).abs().max())
    assert errors["gmres"] < 1e-9
    assert errors["cg"] > 1e-3


def test_an_iteration_of_cg_is_the_steepest_descent_of_the_authors() -> None:
    """Published with one iteration from v = 0: v = (r.r / r.M r) r."""
    matrix, y, sigma = normal(4, 9, seed=1), normal(1, 4, seed=2), 0.8
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    prior, x = gaussian(0.5 + 0.1 * normal(*SHAPE, seed=3), smooth(3, 3, std=0.4)), normal(1, *SHAPE, seed=4)
    d = prior.denoise(x, sigma).flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v, sigma), x).reshape(9, 9)
    noisy = 0.3**2 * torch.eye(4).double() + sigma**2 * matrix @ jacobian.T @ matrix.T
    r = y[0] - matrix @ d
    wanted = d + sigma**2 * jacobian.T @ matrix.T @ r * (r @ r) / (r @ noisy @ r)
    found = MMPS(solver="cg", iterations=1).posterior_mean(problem, prior, x, sigma)
    assert (found.flatten() - wanted).abs().max() < 1e-7  # the noise level is float32


@pytest.mark.parametrize("solver", ["gmres", "cg"])
def test_more_iterations_than_there_are_measurements_change_nothing(solver: str) -> None:
    """Rounding is not blown up to directions, in float32 either, and a row that fits already stays."""
    matrix = normal(2, 9, seed=1).float()
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4)).float()
    x = normal(2, *SHAPE, seed=4).float()
    y = normal(2, 2, seed=2).float()
    y[1] = (prior.denoise(x, 1.0).flatten(1) @ matrix.T)[1]
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.1), y)
    exact, more = (
        MMPS(solver=solver, iterations=k).posterior_mean(problem, prior, x, 1.0)  # type: ignore[arg-type]
        for k in (2, 9)
    )
    assert (exact - more).abs().max() < 1e-3
    assert (more[1] - prior.denoise(x, 1.0)[1]).abs().max() < 1e-4


def test_a_run_is_the_ancestral_sampler_of_the_authors() -> None:
    """x_s = x - tau (x - D_y) + sigma_s sqrt(tau) z with tau = 1 - (sigma_s / sigma_t)^2."""
    matrix, y = normal(4, 9, seed=1), normal(2, 4, seed=2)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    sigmas = [2 * prior.unit * level for level in (5.0, 1.0, 0.2, 0.0)]
    numbers = [normal(2, *SHAPE, seed=k) for k in range(4)]
    sampler = MMPS(schedule=Levels(values=(5.0, 1.0, 0.2, 0.0)), iterations=4)
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted(numbers)))
    x = 0.5 + sigmas[0] * numbers[0]
    for step, sigma_t, sigma_s, z in zip(found, sigmas, sigmas[1:], numbers[1:], strict=False):
        tau = 1 - (sigma_s / sigma_t) ** 2
        x = x - tau * (x - sampler.posterior_mean(problem, prior, x, sigma_t)) + sigma_s * tau**0.5 * z
        assert (step.x - x).abs().max() < 1e-12


def test_complex_measurements_are_two_real_ones() -> None:
    prior = gaussian(torch.full((1, 4, 4), 0.5), smooth(4, 4, std=0.3))

    def fourier(x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")[..., :2]

    y = fourier(0.5 + 0.3 * normal(2, 1, 4, 4, seed=1))
    x = normal(2, 1, 4, 4, seed=2)
    for solver in ("gmres", "cg"):
        whole, split = (
            MMPS(solver=solver, iterations=5).posterior_mean(  # type: ignore[arg-type]
                InverseProblem(LinearCallableOperator(f, image_shape=(1, 4, 4)), GaussianNoise(s), measured),
                prior,
                x,
                1.0,
            )
            for f, measured, s in (
                (fourier, y, 0.1),
                (lambda x: torch.view_as_real(fourier(x)), torch.view_as_real(y), 0.1 / 2**0.5),
            )
        )
        assert (whole - split).abs().max() < 1e-6


# -- the law -----------------------------------------------------------------------------------------------------------


def test_exact_for_gaussian_images() -> None:
    """Mean and covariance without Monte Carlo: the error falls to 0 with the number of steps."""
    matrix = normal(4, 9, seed=1)
    prior = gaussian(0.5 + 0.2 * normal(*SHAPE, seed=3), smooth(3, 3, std=0.3))
    y = matrix @ prior.sample(1, torch.Generator().manual_seed(5)).flatten()
    exact = prior.condition(matrix, y, 0.2)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.2), y[None])
    errors = []
    for steps in (10, 40, 160):
        sampler = MMPS(schedule=EDM(steps=steps, sigma_max=20.0, sigma_min=0.001), iterations=4)
        mean, covariance = affine_law(sampler, problem, prior)
        errors.append(float((covariance - exact.covariance).norm() / exact.covariance.norm()))
        away = mean - exact.mean.flatten()
        assert away @ torch.linalg.solve(exact.covariance, away) < 1e-4
    assert errors[0] > 2.5 * errors[1] > 7.5 * errors[2]
    assert errors[2] < 0.07


@pytest.mark.parametrize(
    ("eta", "noise", "mean", "variance"),
    [
        (1.0, 0.3, (0.917, 0.734), (0.0727, 0.368)),
        (0.0, 0.3, (0.914, 0.727), (0.0776, 0.391)),
        (1.0, 1e-4, (1.0, 0.800), (0.0, 0.320)),
        (0.0, 1e-4, (1.0, 0.794), (0.0, 0.340)),
    ],
)
def test_the_law_of_two_pixels_is_that_of_an_independent_computation(
    eta: float, noise: float, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """N(0, [[1, .8], [.8, 1]]), the first of them measured as 1; 100 EDM steps from 80. The numbers are those of a
    propagation of moments in NumPy, of Tweedie moment projection, which is this method with the system solved."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    operator = Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    problem = InverseProblem(operator, GaussianNoise(noise), torch.ones(1, 1).double())
    sampler = MMPS(schedule=EDM(steps=100, sigma_max=80.0, sigma_min=0.002), iterations=1, integrator=DDIM(eta=eta))
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=1e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=1e-3)


def test_few_iterations_leave_an_error() -> None:
    """With one of four the linear system is not solved, and no number of steps makes up for it."""
    matrix, y = normal(4, 9, seed=1), normal(1, 4, seed=2)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.2), y)
    prior, x = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.3)), normal(1, *SHAPE, seed=4)
    exact = MMPS(iterations=4).posterior_mean(problem, prior, x, 0.5)
    errors = [float((MMPS(iterations=k).posterior_mean(problem, prior, x, 0.5) - exact).abs().max()) for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2] > 1e-4


def test_biased_for_a_mixture_at_any_number_of_steps() -> None:
    """Two modes with a measurement that favours one of them, 10 to 1: moment matching does not weigh them right."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    prior = GaussianMixturePrior.isotropic(torch.tensor([0.5, 0.5], dtype=torch.float64), means, torch.tensor(0.2))
    rows, matrix = 1500, torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.3]], dtype=torch.float64)
    one = InverseProblem(Dense(matrix, (1, 1, 2)), GaussianNoise(0.5), y)
    wanted = float(prior.posterior(one).mean[0, 0, 0])
    problem = one.select(torch.zeros(rows, dtype=torch.long))
    found = []
    for steps in (40, 120):
        sampler = MMPS(schedule=EDM(steps=steps, sigma_max=20.0, sigma_min=0.01), iterations=1)
        with torch.no_grad():
            *_, last = sampler.iterate(problem, prior, Normals(rows, (1, 1, 2)))
        found.append(float(last.x[:, 0, 0, 0].mean()))
    assert all(abs(mean - wanted) > 0.05 for mean in found), (found, wanted)
    assert abs(found[0] - found[1]) < 0.5 * abs(found[1] - wanted), (found, wanted)


# -- images and rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Inpainting(keep=0.3), GaussianBlur(std=1.5, kernel_size=9)])
def test_it_beats_the_pseudo_inverse_on_digits(operator: Inpainting | GaussianBlur) -> None:
    """By 4 dB at least, in 20 steps: a one and a zero, as far as strokes go."""
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, ..., 7:25, 14:18] = 1
    rows = torch.arange(32.0) - 15.5
    radius = ((rows[:, None] / 9) ** 2 + (rows / 6) ** 2).sqrt()
    truth[1, 0] = ((radius > 0.7) & (radius < 1.05)).float()
    y = operator(truth) + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    sampler = MMPS(schedule=EDM(steps=20, sigma_max=5.0, sigma_min=0.02))
    found = sampler.sample(problem, load_prior("digits"), compute=QUIET)
    assert not found.diverged.any()
    error, baseline = (
        (x.clamp(0, 1) - truth).square().flatten(1).mean(1) for x in (found.samples[:, 0], operator.pinv(y))
    )
    assert float((baseline / error).log10().mean()) > 0.4
