"""PiGDM: the authors' step, exactness for white images, and the known bias for others."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Scripted, affine_law, gaussian, normal, smooth
from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, SuperResolution
from invdiff.priors import GaussianMixturePrior
from invdiff.samplers import PiGDM
from invdiff.schedules import EDM, VP

SHAPE = (1, 3, 3)
QUIET = Compute(device="cpu", precision="float32", progress=False)


# -- the authors' step -------------------------------------------------------------------------------------------------


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + (2 * sigma) ** 2)  # levels are halved for images in [0, 1]


def authors_step(
    z: Tensor,
    a: float,
    a_next: float,
    eta: float,
    noise: Tensor,
    clean: Callable[[Tensor, float], Tensor],
    back: Tensor,
    matrix: Tensor,
    y: Tensor,
) -> Tensor:
    """Algorithm 1 in z = sqrt(a) x + sqrt(1 - a) n, x in [-1, 1], with the adaptive weight of the authors' code.

    back  what takes the residual to an image: the pseudo-inverse, or A^T (A A^T + (sigma_y / r)^2 I)^-1
    """
    z = z.clone().requires_grad_(True)
    with torch.enable_grad():
        x0 = clean(z, a)
        product = ((back @ (y - matrix @ x0)).detach() * x0).sum()
        (gradient,) = torch.autograd.grad(product, z)
    x0 = x0.detach()
    c1 = eta * sqrt((1 - a / a_next) * (1 - a_next) / (1 - a))
    c2 = sqrt(1 - a_next - c1**2)
    eps = (z.detach() - sqrt(a) * x0) / sqrt(1 - a)
    return sqrt(a_next) * x0 + c1 * noise + c2 * eps + sqrt(a_next * a) * gradient


@pytest.mark.parametrize("spread", [1e-5, 0.3])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_published_run_equals_the_authors(spread: float, eta: float) -> None:
    """Step by step to 1e-5 in [-1, 1]; without noise (almost) against the pseudo-inverse itself."""
    sigmas = (3.0, 1.2, 0.4, 0.0)
    matrix, mean, covariance = normal(4, 9, seed=1), 0.3 * normal(9, seed=2), smooth(3, 3, std=0.6)
    y = normal(4, seed=3)

    def clean(z: Tensor, a: float) -> Tensor:
        marginal = a * covariance + (1 - a) * torch.eye(9, dtype=torch.float64)
        return mean + sqrt(a) * covariance @ torch.linalg.solve(marginal, z - sqrt(a) * mean)

    # y of images u = (x + 1) / 2 in [0, 1]
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(spread / 2), ((y + matrix.sum(1)) / 2)[None])
    prior = gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4)
    prior.unit = 0.5  # of the authors, in units of u
    z, noises = normal(9, seed=10), [normal(1, *SHAPE, seed=11 + k) for k in range(3)]
    start = (z / sqrt(alpha_bar(sigmas[0])) + 1) / 2  # in units of u
    numbers = [(start.reshape(1, *SHAPE) - prior.mean) / sigmas[0], *noises]
    sampler = PiGDM(schedule=Levels(values=sigmas), prior_std=0.5, weight="published", eta=eta)
    with torch.no_grad():
        steps = list(sampler.iterate(problem, prior, Scripted(numbers)))

    for k, step in enumerate(steps):
        a, a_next = alpha_bar(sigmas[k]), alpha_bar(sigmas[k + 1])
        back = torch.linalg.pinv(matrix)
        if spread > 1e-3:
            r2 = (1 - a) / a / (1 + (1 - a) / a)  # sigma^2 / (sigma^2 + 1) for data of unit variance
            back = matrix.T @ torch.linalg.inv(matrix @ matrix.T + spread**2 / r2 * torch.eye(4).double())
        z = authors_step(z, a, a_next, eta, noises[k].flatten(), clean, back, matrix, y)
        assert (sqrt(a_next) * (2 * step.x.flatten() - 1) - z).abs().max() < 1e-5


def test_posterior_weight_is_bayes_rule() -> None:
    """D + s^2 J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A D), at the level at which a run begins and ends."""
    sigma, prior_std = 0.7, 0.4
    matrix, y, noise = normal(4, 9, seed=1), normal(1, 4, seed=2), normal(1, *SHAPE, seed=3)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.3), y)
    prior = gaussian(0.5 + 0.1 * normal(*SHAPE, seed=3), smooth(3, 3, std=0.4))
    prior.unit = 0.5
    sampler = PiGDM(schedule=Levels(values=(sigma, 0.0)), prior_std=prior_std)
    with torch.no_grad():
        (step,) = sampler.iterate(problem, prior, Scripted([noise, noise]))
    x = prior.mean + sigma * noise
    d = prior.denoise(x, sigma).flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: prior.denoise(v, sigma), x).reshape(9, 9)
    r2 = sigma**2 * prior_std**2 / (sigma**2 + prior_std**2)
    noisy = r2 * matrix @ matrix.T + 0.3**2 * torch.eye(4).double()
    wanted = d + sigma**2 * jacobian.T @ matrix.T @ torch.linalg.solve(noisy, y[0] - matrix @ d)
    assert (step.x.flatten() - wanted).abs().max() < 1e-5


# -- the law -----------------------------------------------------------------------------------------------------------


def test_exact_for_white_images() -> None:
    """Independent pixels, any matrix, with and without noise: the error goes to 0. By default prior_std is theirs."""
    matrix = normal(4, 9, seed=1)
    prior = gaussian(0.5 + 0.2 * normal(*SHAPE, seed=3), 0.3**2 * torch.eye(9))
    y = matrix @ prior.sample(1, torch.Generator().manual_seed(5)).flatten()
    for spread in (0.2, 1e-3):
        exact = prior.condition(matrix, y, spread)
        problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(spread), y[None])
        errors = []
        for steps in (10, 40, 160):
            sampler = PiGDM(schedule=EDM(steps=steps, sigma_max=20.0, sigma_min=0.001))
            mean, covariance = affine_law(sampler, problem, prior)
            errors.append(float((covariance - exact.covariance).norm() / exact.covariance.norm()))
            assert (mean - exact.mean.flatten()).norm() < 1e-3
        assert errors[0] > 2.5 * errors[1] > 7.5 * errors[2]
        assert errors[2] < 0.07


@pytest.mark.parametrize(
    ("weight", "noise", "steps", "mean", "variance"),
    [
        ("posterior", 0.3, 100, (0.882, 0.691), (0.0977, 0.420)),
        ("posterior", 0.3, 1000, (0.883, 0.691), (0.103, 0.440)),
        ("posterior", 1e-4, 100, (1.0, 0.754), (0.0, 0.369)),
        ("published", 0.3, 100, (1.01, 0.914), (0.0003, 0.263)),
        ("published", 0.3, 1000, (1.00, 1.05), (0.0, 0.277)),
    ],
)
def test_the_known_bias_for_two_pixels_that_are_alike(
    weight: str, noise: float, steps: int, mean: tuple[float, float], variance: tuple[float, float]
) -> None:
    """N(0, [[1, .8], [.8, 1]]), the first measured as 1, without fresh noise; the exact law of the second is 0.734 and
    0.413 (noise 0.3), 0.8 and 0.36 (none). The numbers are those of a propagation of moments in NumPy."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    operator = Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    problem = InverseProblem(operator, GaussianNoise(noise), torch.ones(1, 1).double())
    schedule = EDM(steps=steps, sigma_max=80.0, sigma_min=0.002)
    sampler = PiGDM(schedule=schedule, prior_std=1.0, eta=0.0, weight=weight)  # type: ignore[arg-type]
    found_mean, covariance = affine_law(sampler, problem, prior)
    assert found_mean.tolist() == pytest.approx(mean, abs=6e-3)
    assert covariance.diagonal().tolist() == pytest.approx(variance, abs=1e-3)


def test_biased_for_a_mixture_at_any_number_of_steps() -> None:
    """Two modes and a measurement that favours one of them: a round Gaussian about D does not weigh them right."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    prior = GaussianMixturePrior.isotropic(torch.tensor([0.5, 0.5], dtype=torch.float64), means, torch.tensor(0.2))
    rows, matrix = 1500, torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.3]], dtype=torch.float64)
    one = InverseProblem(Dense(matrix, (1, 1, 2)), GaussianNoise(0.5), y)
    wanted = float(prior.posterior(one).mean[0, 0, 0])
    problem = one.select(torch.zeros(rows, dtype=torch.long))
    found = []
    for steps in (40, 120):
        sampler = PiGDM(schedule=EDM(steps=steps, sigma_max=20.0, sigma_min=0.01), prior_std=0.7)
        with torch.no_grad():
            *_, last = sampler.iterate(problem, prior, Normals(rows, (1, 1, 2)))
        found.append(float(last.x[:, 0, 0, 0].mean()))
    assert all(abs(mean - wanted) > 0.05 for mean in found), (found, wanted)
    assert abs(found[0] - found[1]) < 0.5 * abs(found[1] - wanted), (found, wanted)


# -- images and rules --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["posterior", "published"])
@pytest.mark.parametrize(
    "operator", [Inpainting(keep=0.3), GaussianBlur(std=1.5, kernel_size=9), SuperResolution(factor=4)]
)
def test_it_beats_the_pseudo_inverse_on_digits(
    operator: Inpainting | GaussianBlur | SuperResolution, weight: str
) -> None:
    """In 20 steps, 60 with the published weight: a one and a zero, as far as strokes go."""
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, ..., 7:25, 14:18] = 1
    rows = torch.arange(32.0) - 15.5
    radius = ((rows[:, None] / 9) ** 2 + (rows / 6) ** 2).sqrt()
    truth[1, 0] = ((radius > 0.7) & (radius < 1.05)).float()
    clean = operator(truth)
    y = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    published = PiGDM(schedule=VP(steps=60), prior_std=0.5, weight="published")
    sampler = published if weight == "published" else PiGDM(schedule=EDM(steps=20, sigma_max=10.0, sigma_min=0.02))
    found = sampler.sample(problem, load_prior("digits"), compute=QUIET)
    assert not found.diverged.any()
    error, baseline = (
        (x.clamp(0, 1) - truth).square().flatten(1).mean(1) for x in (found.samples[:, 0], operator.pinv(y))
    )
    assert float((baseline / error).log10().mean()) > 0.1
