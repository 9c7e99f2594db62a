"""DPS: the authors' step, and the exact law of its linear-Gaussian recursion."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Levels, Normals, Scripted, assert_law, dense, gaussian, normal, smooth
from invdiff import Compute, InverseProblem, load_prior
from invdiff.engine.step import Step
from invdiff.operators import (
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    Operator,
    PoissonNoise,
    SuperResolution,
)
from invdiff.priors import ADMPrior, GaussianPrior
from invdiff.samplers import DPS
from invdiff.samplers.moves import ancestral_step
from invdiff.schedules import VP
from invdiff.streams import Streams, key

SHAPE = (1, 8, 8)
EXACT = 1e-9  # relative, float64 with sigma up to 157


def run(sampler: DPS, problem: InverseProblem, prior: GaussianPrior, rng: object) -> list[Step]:
    """All steps, with random numbers under the test's control and gradients off as in the driver."""
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


# -- the authors' step -------------------------------------------------------------------------------------------------


class AuthorsDPS:
    """The DDPM code of the paper, transcribed: images in [-1, 1], z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps.

    The noise network is that of a Gaussian prior N(mean, covariance), derived from Bayes' rule in z: nothing here is
    shared with the implementation. `fixed small` posterior variance; guidance `scale * grad_z |y - A x0|`, one norm per
    image.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, steps: int = 1000) -> None:
        self.mean, self.covariance = mean, covariance
        kept = torch.linspace(0, 999, steps, dtype=torch.float64).round().long()
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[kept]
        self.alpha_bar = alpha_bar
        self.alpha_bar_before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        self.beta = 1 - alpha_bar / self.alpha_bar_before  # of the kept steps, as respacing recomputes it

    def noise_network(self, z: Tensor, t: int) -> Tensor:
        a = self.alpha_bar[t]
        marginal = a * self.covariance + (1 - a) * torch.eye(len(self.covariance), dtype=torch.float64)
        x0 = self.mean + a.sqrt() * (z - a.sqrt() * self.mean) @ torch.linalg.solve(marginal, self.covariance)
        return (z - a.sqrt() * x0) / (1 - a).sqrt()

    def step(self, z: Tensor, t: int, y: Tensor, matrix: Tensor, scale: float, noise: Tensor, clip: bool) -> Tensor:
        a, a_before, beta = self.alpha_bar[t], self.alpha_bar_before[t], self.beta[t]
        z = z.clone().requires_grad_(True)
        with torch.enable_grad():
            x0 = (1 / a).sqrt() * z - (1 / a - 1).sqrt() * self.noise_network(z, t)
            if clip:
                x0 = x0.clamp(-1, 1)
            norms = torch.stack([torch.linalg.norm(row) for row in y - x0 @ matrix.T])
            (gradient,) = torch.autograd.grad(norms.sum(), z)
        mean = beta * a_before.sqrt() / (1 - a) * x0 + (1 - a_before) * (1 - beta).sqrt() / (1 - a) * z
        variance = beta * (1 - a_before) / (1 - a)
        sample = mean + (variance.sqrt() * noise if t > 0 else 0)
        return (sample - scale * gradient).detach()


class Setting:
    """One problem in both coordinates: the authors' images x in [-1, 1], ours u = (x + 1) / 2."""

    def __init__(self, operator: Operator, matrix: Tensor, covariance: Tensor, images: int = 3) -> None:
        n = covariance.shape[0]
        self.operator, self.matrix, self.covariance = operator, matrix, covariance
        self.mean = 0.3 * normal(n, seed=1)
        self.truth = normal(images, n, seed=2)
        self.prior = gaussian((self.mean.reshape(SHAPE) + 1) / 2, covariance / 4)
        self.prior.unit = 0.5  # of the authors, in units of u
        clean_x, clean_u = self.truth @ matrix.T, operator((self.truth.reshape(-1, *SHAPE) + 1) / 2)
        noise = 0.05 * normal(*clean_x.shape, seed=3)
        # What was not measured carries no noise: the rows of the matrix are zero there, and so is y.
        noise = torch.where(matrix.abs().sum(1) > 0, noise, 0)
        self.y_x = clean_x + noise
        self.problem = InverseProblem(operator, GaussianNoise(0.025), clean_u + noise.reshape(clean_u.shape) / 2)

    def start(self, z: Tensor, alpha: Tensor, sigma: float) -> Tensor:
        """The noise with which our run begins at the authors' z."""
        return (((z / alpha + 1) / 2).reshape(-1, *SHAPE) - self.prior.mean) / sigma


OPERATORS = {
    "blur": GaussianBlur(std=1.0, kernel_size=5),
    "inpainting": Inpainting(keep=0.4),
    "super_resolution": SuperResolution(factor=2),
}


@pytest.fixture(params=list(OPERATORS))
def setting(request: pytest.FixtureRequest) -> Setting:
    operator = OPERATORS[request.param]
    return Setting(operator, dense(operator, SHAPE), smooth(8, 8, std=0.9))


def test_photon_counts_weigh_the_residual_as_the_paper_does() -> None:
    """zeta' grad |y - A x0|_Lambda with Lambda = diag(1 / 2y), by finite differences; the unit of the norm is free."""
    operator, zeta, sigma = SuperResolution(factor=2), 0.3, 0.7
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.2))
    prior.unit = 0.5
    y = operator(0.6 + 0.1 * normal(1, *SHAPE, seed=1))  # no count is zero
    problem = InverseProblem(operator, PoissonNoise(0.01), y)
    noise = normal(1, *SHAPE, seed=2)
    x = 0.5 + sigma * noise
    sampler = DPS(schedule=Levels(values=(sigma, 0.0)), zeta=zeta, clip=False)
    numbers = [noise, torch.zeros_like(x)]
    (step,) = run(sampler, problem, prior, Scripted(numbers))
    found = (prior.denoise(x, sigma) - step.x).flatten()

    def papers(x: Tensor) -> Tensor:
        residual = y - operator(prior.denoise(x, sigma))
        return (residual**2 / (2 * y)).sum().sqrt()

    directions = torch.eye(64, dtype=torch.float64).reshape(64, 1, *SHAPE)
    wanted = torch.stack([(papers(x + 1e-5 * d) - papers(x - 1e-5 * d)) / 2e-5 for d in directions])
    cosine = (found @ wanted) / (found.norm() * wanted.norm())
    assert cosine > 1 - 1e-8
    plain = InverseProblem(operator, GaussianNoise(0.05), y)
    (other,) = run(sampler, plain, prior, Scripted(numbers))
    assert (other.x - step.x).abs().max() > 1e-4 * step.x.abs().max()


@pytest.mark.parametrize("clip", [True, False])
def test_a_step_equals_the_authors_ddpm_step(setting: Setting, clip: bool) -> None:
    authors = AuthorsDPS(setting.mean, setting.covariance)
    alpha, noise = authors.alpha_bar.sqrt(), normal(3, 64, seed=5)
    sigma = 0.5 * (1 / authors.alpha_bar - 1).sqrt()  # in units of u
    for t in (999, 700, 300, 100, 10, 1, 0):
        z = alpha[t] * setting.truth + (1 - authors.alpha_bar[t]).sqrt() * normal(3, 64, seed=4)
        expected = authors.step(z, t, setting.y_x, setting.matrix, 0.3, noise, clip)

        sigma_t, sigma_s = float(sigma[t]), float(sigma[t - 1]) if t > 0 else 0.0
        sampler = DPS(schedule=Levels(values=(sigma_t, sigma_s)), zeta=0.15, guidance="published", clip=clip)
        numbers = [setting.start(z, alpha[t], sigma_t), noise.reshape(-1, *SHAPE)]
        (step,) = run(sampler, setting.problem, setting.prior, Scripted(numbers))

        alpha_s = authors.alpha_bar_before[t].sqrt()
        found = alpha_s * (2 * step.x.flatten(1) - 1)
        assert step.sigma == sigma_s
        assert (found - expected).abs().max() < EXACT * (1 + expected.abs().max())
        unguided = authors.step(z, t, setting.y_x, setting.matrix, 0.0, noise, clip)
        assert (unguided - expected).abs().max() > 1e-4, "guidance must matter for the comparison to mean anything"


@pytest.mark.slow
def test_a_step_with_the_variance_of_the_network() -> None:
    """guided-diffusion's learned range: log variance between that of q(z_s | z_t, z_0) and beta, by a share v."""
    prior, operator = ADMPrior.example(), Denoising()
    authors = AuthorsDPS(torch.zeros(1), torch.eye(1), steps=20)
    noise = normal(3, *SHAPE, seed=2, dtype=torch.float32)
    y = operator(normal(3, *SHAPE, dtype=torch.float32).sigmoid())
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    for t, told in ((19, 999), (10, 526), (3, 158), (1, 53)):
        a, before, beta = (float(v[t]) for v in (authors.alpha_bar, authors.alpha_bar_before, authors.beta))
        sigma_t, sigma_s = (0.5 * (1 / v - 1) ** 0.5 for v in (a, before))
        x = 0.5 + sigma_t * normal(3, *SHAPE, seed=1, dtype=torch.float32)
        z = a**0.5 * (2 * x - 1)
        with torch.no_grad():
            eps, v = prior.network(z, torch.full((3,), float(told)), torch.full((3,), 1)).chunk(2, 1)
        z0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
        mean = beta * before**0.5 / (1 - a) * z0 + (1 - before) * (1 - beta) ** 0.5 / (1 - a) * z
        small = beta * (1 - before) / (1 - a)
        spread = (0.5 * ((v + 1) / 2 * torch.tensor(beta).log() + (1 - v) / 2 * torch.tensor(small).log())).exp()
        wanted = ((mean + spread * noise) / before**0.5 + 1) / 2
        sampler = DPS(schedule=Levels(values=(sigma_t, sigma_s)), zeta=0.0, clip=False, variance="learned")
        (step,) = run(sampler, problem, prior, Scripted([(x - 0.5) / sigma_t, noise]))  # type: ignore[arg-type]
        assert (step.x - wanted).abs().max() < 2e-5 * (1 + sigma_t)
        assert t == 19 or (spread / small**0.5 - 1).abs().max() > 0.01, "the variance must matter for the comparison"
    with pytest.raises(ValueError, match="a prior that predicts the variance of steps"):
        DPS(variance="learned").sample(problem, gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.2)))


def test_clipping_was_put_to_the_test(setting: Setting) -> None:
    """Without pixels beyond the range, `clip=True` and `clip=False` would be one and the same test."""
    sigma = 0.3
    noise = normal(3, *SHAPE, seed=9)
    (step,) = run(
        DPS(schedule=Levels(values=(sigma, 0.0)), clip=True),
        setting.problem,
        setting.prior,
        Scripted([noise / sigma, torch.zeros_like(noise)]),
    )
    clipped = ((step.x0 == 0) | (step.x0 == 1)).double().mean()
    assert 0.02 < clipped < 0.9


def test_a_whole_respaced_run_equals_the_authors(setting: Setting) -> None:
    """Twenty steps, kept evenly in t with both ends; the noise levels come from our own schedule."""
    steps = 20
    authors = AuthorsDPS(setting.mean, setting.covariance, steps)
    noises = [normal(3, 64, seed=20 + k) for k in range(steps)]
    schedule = VP(steps=steps)
    z = normal(3, 64, seed=6)  # where the authors start
    start = setting.start(z, authors.alpha_bar[-1].sqrt(), float(schedule.sigmas()[0]))
    for k, t in enumerate(reversed(range(steps))):
        z = authors.step(z, t, setting.y_x, setting.matrix, 6.0, noises[k], clip=True)
    found = run(
        DPS(schedule=schedule, zeta=3.0, guidance="published"),
        setting.problem,
        setting.prior,
        Scripted([start, *(n.reshape(-1, *SHAPE) for n in noises)]),
    )
    assert len(found) == steps
    assert found[-1].sigma == 0
    assert (2 * found[-1].x.flatten(1) - 1 - z).abs().max() < 1e-8 * (1 + z.abs().max())


@pytest.mark.parametrize("guidance", ["norm", "published", "likelihood"])
def test_range_equivariance(setting: Setting, guidance: str) -> None:
    """In [-1, 1] and in [0, 1], with the same settings and the same noise, u = (x + 1) / 2."""
    numbers = [normal(3, *SHAPE, seed=k) for k in range(13)]
    wide_prior = gaussian(setting.mean.reshape(SHAPE), setting.covariance, (-1.0, 1.0))
    wide_prior.unit = 1.0
    wide_problem = InverseProblem(setting.operator, GaussianNoise(0.5), setting.y_x.reshape(setting.problem.y.shape))
    narrow_problem = InverseProblem(setting.operator, GaussianNoise(0.25), setting.problem.y)
    sampler = DPS(schedule=VP(steps=12), zeta=1.0, guidance=guidance)  # type: ignore[arg-type]
    x = run(sampler, wide_problem, wide_prior, Scripted(numbers))
    u = run(sampler, narrow_problem, setting.prior, Scripted(numbers))
    for ours, theirs in zip(u, x, strict=True):
        assert (2 * ours.x - 1 - theirs.x).abs().max() < EXACT * (1 + theirs.x.abs().max())


def test_the_norm_of_the_operator_is_taken_out(setting: Setting) -> None:
    """The unit of y changes nothing, and a small zeta counts as published where the largest singular value is 1."""
    numbers = [normal(3, *SHAPE, seed=k) for k in range(13)]
    schedule = VP(steps=12)

    def last(factor: float, zeta: float, guidance: str) -> Tensor:
        operator = LinearCallableOperator(lambda u: factor * setting.operator(u), image_shape=SHAPE)
        problem = InverseProblem(operator, GaussianNoise(factor * 0.025), factor * setting.problem.y)
        sampler = DPS(schedule=schedule, zeta=zeta, guidance=guidance)  # type: ignore[arg-type]
        return run(sampler, problem, setting.prior, Scripted(numbers))[-1].x

    plain = last(1.0, 1.0, "norm")
    assert (last(7.0, 1.0, "norm") - plain).abs().max() < 1e-8
    norm = float(torch.linalg.matrix_norm(setting.matrix, 2))
    assert (last(7.0, 1 / norm, "published") - plain).abs().max() > 0.1
    small = last(1.0, 0.01, "norm")
    assert (last(1.0, 0.01 / norm, "published") - small).abs().max() < 0.002
    assert (last(1.0, 0.0, "published") - small).abs().max() > 0.005


# -- the law of the likelihood variant ---------------------------------------------------------------------------------

GRID = VP(steps=1000).levels(2.0)  # of images with the unit 1


def propagate(
    sigmas: list[float], mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, noise_std: float
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of `guidance="likelihood"` on a linear-Gaussian problem: every step is affine in x."""
    n = covariance.shape[0]
    eye = torch.eye(n, dtype=torch.float64)
    m, c = mean, sigmas[0] ** 2 * eye
    for sigma, after in pairwise(sigmas):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * eye)  # D(x) = mean + gain (x - mean)
        pull = (sigma**2 - after**2) / noise_std**2 * gain @ matrix.T  # times (A D(x) - y)
        shrink = (after / sigma) ** 2
        step = (1 - shrink) * gain + shrink * eye - pull @ matrix @ gain
        shift = (1 - shrink) * (mean - gain @ mean) - pull @ (matrix @ (mean - gain @ mean) - y)
        m = step @ m + shift
        c = step @ c @ step.T + after**2 * (1 - shrink) * eye
    return m, c


def test_recursion_has_the_published_numbers() -> None:
    """Slope and variance on the 1000-step grid for a unit prior and a unit gain: far from the posterior, and known."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for noise_std, slope, variance in [(1.0, 0.6325, 0.4266), (0.5, 0.9820, 0.1217), (0.2, 1.000, 0.0187)]:
        m, c = propagate(GRID, zero, one, one, torch.ones(1, dtype=torch.float64), noise_std)
        assert float(m) == pytest.approx(slope, abs=6e-4)
        assert float(c) == pytest.approx(variance, abs=6e-4)
    # Where nothing is measured the law is the prior's, up to the grid.
    m, c = propagate(GRID, zero, one, 0 * one, zero, 1.0)
    assert float(m) == 0
    assert float(c) == pytest.approx(1.0, abs=0.02)


@pytest.fixture(scope="module")
def thousand_steps() -> tuple[Tensor, Inpainting]:
    """256 samples of 16 independent pixels, half of them measured, at three noise levels: the published grid."""
    rows, shape = torch.arange(3).repeat_interleave(256), (1, 4, 4)
    operator = Inpainting(mask=torch.arange(16).reshape(4, 4) % 2 == 0)
    prior = gaussian(torch.zeros(shape), torch.eye(16))
    prior.unit = 1.0
    y = torch.full((3, *shape), 2.0, dtype=torch.float64)
    y[:, ~operator.mask[0]] = torch.nan  # never measured
    problem = InverseProblem(operator, GaussianNoise(torch.tensor([1.0, 0.5, 0.2])), y).select(rows)
    sampler = DPS(schedule=VP(steps=1000), guidance="likelihood", clip=False)
    last = run(sampler, problem, prior, Normals(len(rows), shape))[-1]
    return last.x.unflatten(0, (3, -1)), operator


@pytest.mark.parametrize(("level", "noise_std"), [(0, 1.0), (1, 0.5), (2, 0.2)])
def test_closed_form_of_the_likelihood_variant(
    thousand_steps: tuple[Tensor, Inpainting], level: int, noise_std: float
) -> None:
    samples, operator = thousand_steps
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for seen in (True, False):
        values = samples[level][:, operator.mask[0] if seen else ~operator.mask[0]].flatten()
        m, c = propagate(GRID, zero, one, one * seen, zero + 2.0, noise_std)
        assert abs(float(values.mean() - m)) < 4 * float((c / len(values)).sqrt())
        assert abs(float(values.var() / c) - 1) < 4 * (2 / len(values)) ** 0.5


def test_law_on_a_correlated_problem() -> None:
    """Mean and full covariance of the samples equal the propagated ones; nothing is diagonal here."""
    shape = (1, 4, 4)
    operator = GaussianBlur(std=0.8, kernel_size=5)
    mean, covariance = 0.5 + 0.2 * normal(16, seed=1), smooth(4, 4, std=0.3)
    y = 0.5 + 0.3 * normal(16, seed=2)
    schedule, noise_std = VP(steps=60), 0.25
    rows = 6000
    problem = InverseProblem(operator, GaussianNoise(noise_std), y.reshape(1, *shape)).select(
        torch.zeros(rows, dtype=torch.long)
    )
    sampler = DPS(schedule=schedule, guidance="likelihood", clip=False)
    prior = gaussian(mean.reshape(shape), covariance)
    last = run(sampler, problem, prior, Normals(rows, shape))[-1]
    assert_law(last.x, *propagate(schedule.levels(prior.scale), mean, covariance, dense(operator, shape), y, noise_std))


def test_norm_guidance_on_the_toy_of_the_reference() -> None:
    """Two correlated pixels, one measured without noise: a recorded band (exact: x2 ~ N(0.9, 0.19))."""
    rows = 3000
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]), (-1.0, 1.0))
    prior.unit = 1.0
    problem = InverseProblem(
        Inpainting(mask=torch.tensor([[1, 0]])), GaussianNoise(1.0), torch.tensor([[[[1.0, 0.0]]]]).double()
    ).select(torch.zeros(rows, dtype=torch.long))
    sampler = DPS(schedule=VP(steps=1000), zeta=0.05, guidance="published", clip=False)
    x = run(sampler, problem, prior, Normals(rows, (1, 1, 2)))[-1].x.flatten(1)
    assert float(x[:, 1].mean()) == pytest.approx(0.997, abs=0.03)
    assert float(x[:, 1].var()) == pytest.approx(0.156, abs=0.02)
    assert float(x[:, 0].var()) == pytest.approx(0.0034, abs=0.0008)


# -- rules -------------------------------------------------------------------------------------------------------------


def test_without_guidance_it_is_ancestral_sampling_bit_for_bit() -> None:
    digits, operator, schedule = load_prior("digits"), GaussianBlur(std=1.0, kernel_size=9), VP(steps=6)
    problem = InverseProblem(operator, GaussianNoise(0.5), operator(torch.full((2, 1, 32, 32), 0.5)))
    found = DPS(schedule=schedule, zeta=0.0).sample(problem, digits, seed=3, compute=Compute(precision="float32"))
    rng = Streams([key(3, "sample", i, 0) for i in range(2)], (1, 32, 32))
    sigmas = schedule.sigmas().tolist()
    x = digits.centre + sigmas[0] * rng.normal()
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            x = ancestral_step(x, digits.denoise(x, sigma).clamp(0, 1), sigma, after, rng.normal())
    assert torch.equal(found.samples[:, 0], x)


def test_a_perfect_fit_moves_nothing() -> None:
    """|r| has no gradient at r = 0: that image takes the unguided step, the other image is guided."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.eye(2))
    prior.unit = 0.5
    x = torch.tensor([[[[1.0, -2.0]]], [[[1.0, -2.0]]]], dtype=torch.float64)
    y = prior.denoise(x, 1.0)  # x / 2: exact in binary, so that the residual is 0.0 and not 1e-17
    y[1] += 0.5
    sampler = DPS(schedule=Levels(values=(1.0, 0.0)), zeta=0.5, clip=False)
    (step,) = run(
        sampler, InverseProblem(Denoising(), GaussianNoise(0.05), y), prior, Scripted([x, torch.zeros_like(x)])
    )
    assert torch.equal(step.x[0], y[0])
    # The residual of image 1 is (1/2, 1/2): the gradient of its norm with respect to x is -(1, 1) / sqrt(8).
    weight = 0.5 * (1 + 1 / 0.25) ** 0.5
    assert torch.allclose(step.x[1], prior.denoise(x, 1.0)[1] + weight / 8**0.5)
