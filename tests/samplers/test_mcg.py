"""MCG: the authors' step, and replacement as an exact recursion."""

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
    LinearOperator,
    SuperResolution,
)
from invdiff.priors import GaussianPrior
from invdiff.samplers import DPS, MCG
from invdiff.samplers.moves import ancestral_step, operator_norm
from invdiff.schedules import VP

SHAPE = (1, 8, 8)
EXACT = 1e-9  # relative, float64 with sigma up to 157


def run(sampler: MCG | DPS, problem: InverseProblem, prior: GaussianPrior, rng: object) -> list[Step]:
    """All steps, with random numbers under the test's control and gradients off as in the driver."""
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


# -- the authors' step -------------------------------------------------------------------------------------------------


class AuthorsMCG:
    """The DDPM code of the paper, transcribed: images in [-1, 1], z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps.

    The noise network is that of a Gaussian prior N(mean, covariance), derived from Bayes' rule in z: nothing here is
    shared with the implementation. The replaced part has the level that the step leads to (`aligned`), or the one it
    comes from, as in their code.
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

    def guided(
        self,
        z: Tensor,
        t: int,
        y: Tensor,
        matrix: Tensor,
        weight: Tensor,
        scale: float | Tensor,
        noise: Tensor,
        clip: bool,
    ) -> tuple[Tensor, Tensor]:
        """The ancestral sample, and scale times the gradient of |W (y - A x0)| with one norm per image."""
        a, a_before, beta = self.alpha_bar[t], self.alpha_bar_before[t], self.beta[t]
        z = z.clone().requires_grad_(True)
        with torch.enable_grad():
            x0 = (1 / a).sqrt() * z - (1 / a - 1).sqrt() * self.noise_network(z, t)
            if clip:
                x0 = x0.clamp(-1, 1)
            norms = torch.stack([torch.linalg.norm(row) for row in (y - x0 @ matrix.T) @ weight.T])
            (gradient,) = torch.autograd.grad(norms.sum(), z)
        mean = beta * a_before.sqrt() / (1 - a) * x0 + (1 - a_before) * (1 - beta).sqrt() / (1 - a) * z
        variance = beta * (1 - a_before) / (1 - a)
        return (mean + (variance.sqrt() * noise if t > 0 else 0)).detach(), scale * gradient

    def inpaint(
        self,
        z: Tensor,
        t: int,
        y: Tensor,
        mask: Tensor,
        scale: float | Tensor,
        noises: tuple[Tensor, Tensor],
        *,
        clip: bool,
        aligned: bool = True,
    ) -> Tensor:
        """Their inpainting: unknown pixels are sampled and guided, known ones are y with the noise of the level."""
        matrix = torch.diag(mask.double())
        sample, g = self.guided(z, t, y, matrix, torch.eye(len(mask), dtype=torch.float64), scale, noises[0], clip)
        a = (self.alpha_bar_before if aligned else self.alpha_bar)[t]
        known = a.sqrt() * y + (1 - a).sqrt() * noises[1]
        return torch.where(mask, known, sample - g)

    def project(
        self,
        z: Tensor,
        t: int,
        y: Tensor,
        matrix: Tensor,
        weight: Tensor,
        scale: float | Tensor,
        noises: tuple[Tensor, Tensor],
        *,
        clip: bool,
    ) -> Tensor:
        """Equations 14 and 15 for any matrix, with its dense pseudo-inverse: b_i is y as noisy as images are."""
        pinv = torch.linalg.pinv(matrix)
        sample, g = self.guided(z, t, y, matrix, weight, scale, noises[0], clip)
        z = sample - (g - g @ (pinv @ matrix).T)
        a = self.alpha_bar_before[t]
        noised = a.sqrt() * y + (1 - a).sqrt() * noises[1] @ matrix.T
        return z - z @ (pinv @ matrix).T + noised @ pinv.T


# A mask, a square one that is not a projection, and a wide one.
OPERATORS: dict[str, LinearOperator] = {
    "blur": GaussianBlur(std=0.6, kernel_size=5),
    "inpainting": Inpainting(keep=0.4),
    "super_resolution": SuperResolution(factor=2),
}


class Setting:
    """One problem in both coordinates: the authors' images x in [-1, 1], ours u = (x + 1) / 2."""

    def __init__(self, name: str) -> None:
        self.operator = OPERATORS[name]
        self.matrix, self.covariance = dense(self.operator, SHAPE), smooth(8, 8, std=0.9)
        self.mean, self.truth = 0.3 * normal(64, seed=1), normal(3, 64, seed=2)
        self.prior = gaussian((self.mean.reshape(SHAPE) + 1) / 2, self.covariance / 4)
        self.prior.unit = 0.5  # of the authors, in units of u
        self.seen = self.matrix.abs().sum(1) > 0
        self.y = torch.where(self.seen, self.truth @ self.matrix.T + 0.05 * normal(3, len(self.matrix), seed=3), 0)
        measurement = self.operator(torch.zeros(1, *SHAPE)).shape[1:]
        self.y_unit = torch.where(self.seen, (self.y + 1) / 2, 0).reshape(3, *measurement)
        self.problem = InverseProblem(self.operator, GaussianNoise(0.025), self.y_unit)

    def authors_step(
        self, authors: AuthorsMCG, z: Tensor, t: int, sampler: MCG, noises: tuple[Tensor, Tensor]
    ) -> Tensor:
        scale: float | Tensor = 2 * sampler.zeta
        if sampler.weight == "identity":
            scale = scale / operator_norm(self.problem, self.prior)[:, None]
        if isinstance(self.operator, Inpainting):
            return authors.inpaint(z, t, self.y, self.seen, scale, noises, clip=sampler.clip)
        weight = torch.linalg.pinv(self.matrix) if sampler.weight == "pinv" else torch.eye(len(self.matrix)).double()
        return authors.project(z, t, self.y, self.matrix, weight, scale, noises, clip=sampler.clip)

    def start(self, z: Tensor, alpha: Tensor, sigma: float) -> Tensor:
        """The noise with which our run begins at the authors' z."""
        return (((z / alpha + 1) / 2).reshape(-1, *SHAPE) - self.prior.mean) / sigma


@pytest.fixture(params=list(OPERATORS))
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


@pytest.mark.parametrize(
    ("zeta", "clip", "weight"), [(0.5, True, "pinv"), (0.5, False, "identity"), (0.0, True, "pinv")]
)
def test_a_step_equals_the_authors_ddpm_step(setting: Setting, zeta: float, clip: bool, weight: str) -> None:
    """zeta halved for [0, 1], and over the norm of A where W is the identity; autograd through a dense pseudo-inverse
    stands against A^T W^T W = A+ in closed form."""
    authors = AuthorsMCG(setting.mean, setting.covariance)
    alpha, noises = authors.alpha_bar.sqrt(), (normal(3, 64, seed=5), normal(3, 64, seed=6))
    sigma = 0.5 * (1 / authors.alpha_bar - 1).sqrt()  # in units of u
    for t in (999, 300, 100, 10, 1, 0):
        z = alpha[t] * setting.truth + (1 - authors.alpha_bar[t]).sqrt() * normal(3, 64, seed=4)
        sigma_t, sigma_s = float(sigma[t]), float(sigma[t - 1]) if t > 0 else 0.0
        sampler = MCG(
            schedule=Levels(values=(sigma_t, sigma_s)),
            zeta=zeta,
            clip=clip,
            weight=weight,
            projection="exact",
            project_above=0.0,
        )  # type: ignore[arg-type]
        expected = setting.authors_step(authors, z, t, sampler, noises)

        numbers = [setting.start(z, alpha[t], sigma_t), *(n.reshape(-1, *SHAPE) for n in noises)]
        (step,) = run(sampler, setting.problem, setting.prior, Scripted(numbers))
        found = authors.alpha_bar_before[t].sqrt() * (2 * step.x.flatten(1) - 1)
        assert step.sigma == sigma_s
        assert (found - expected).abs().max() < EXACT * (1 + expected.abs().max())


@pytest.mark.parametrize("name", ["inpainting", "super_resolution"])
def test_guidance_and_clipping_were_put_to_the_test(name: str) -> None:
    """Without an effect of either, the comparisons above would be one and the same."""
    setting = Setting(name)
    authors = AuthorsMCG(setting.mean, setting.covariance)
    t, noises = 100, (normal(3, 64, seed=5), normal(3, 64, seed=6))
    z = authors.alpha_bar[t].sqrt() * setting.truth + (1 - authors.alpha_bar[t]).sqrt() * normal(3, 64, seed=4)
    plain, other, wide, bare = (
        setting.authors_step(authors, z, t, sampler, noises)
        for sampler in (
            MCG(zeta=0.5, weight="identity", clip=True),
            MCG(zeta=0.5, weight="pinv", clip=True),
            MCG(zeta=0.5, weight="identity", clip=False),
            MCG(zeta=0.0, clip=True),
        )
    )
    assert (plain - wide).abs().max() > 1e-4
    assert (plain - bare).abs().max() > 1e-4
    assert name == "inpainting" or (plain - other).abs().max() > 1e-4  # the pseudo-inverse of a mask is the mask


@pytest.mark.parametrize("zeta", [2.0, 0.0])
@pytest.mark.parametrize(
    ("name", "weight"), [("inpainting", "identity"), ("super_resolution", "pinv"), ("blur", "pinv")]
)
def test_a_whole_respaced_run_equals_the_authors(name: str, weight: str, zeta: float) -> None:
    """Twenty steps, kept evenly in t with both ends; the noise levels come from our own schedule."""
    steps, setting = 20, Setting(name)
    authors = AuthorsMCG(setting.mean, setting.covariance, steps)
    noises = [(normal(3, 64, seed=20 + k), normal(3, 64, seed=60 + k)) for k in range(steps)]
    sampler = MCG(schedule=VP(steps=steps), zeta=zeta, weight=weight, projection="exact", project_above=0.0)  # type: ignore[arg-type]
    z = normal(3, 64, seed=6)  # where the authors start
    start = setting.start(z, authors.alpha_bar[-1].sqrt(), float(sampler.schedule.sigmas()[0]))
    numbers = [start, *(n.reshape(-1, *SHAPE) for pair in noises for n in pair)]
    found = run(sampler, setting.problem, setting.prior, Scripted(numbers))
    assert len(found) == steps

    for step, t, pair in zip(found, reversed(range(steps)), noises, strict=True):
        z = setting.authors_step(authors, z, t, sampler, pair)
        ours = authors.alpha_bar_before[t].sqrt() * (2 * step.x.flatten(1) - 1)
        assert (ours - z).abs().max() < 1e-8 * (1 + z.abs().max())
    assert found[-1].sigma == 0


def test_the_authors_replaced_part_is_one_step_too_noisy() -> None:
    """The one departure in the step itself: theirs ends with noise of std 0.01 on measured pixels, ours with none."""
    setting, steps = Setting("inpainting"), 20
    authors = AuthorsMCG(setting.mean, setting.covariance, steps)
    z, zeros = setting.truth, torch.zeros(3, 64, dtype=torch.float64)
    noises = zeros, normal(3, 64, seed=7)
    theirs = authors.inpaint(z, 0, setting.y, setting.seen, 1.0, noises, clip=True, aligned=False)
    kept = (theirs - authors.alpha_bar[0].sqrt() * setting.y)[:, setting.seen]
    assert torch.allclose(kept, 0.01 * noises[1][:, setting.seen])
    sampler = MCG(schedule=VP(steps=1), projection="exact", project_above=0.0)
    (ours,) = run(sampler, setting.problem, setting.prior, Scripted([n.reshape(3, *SHAPE) for n in (z, *noises)]))
    assert (ours.x - setting.y_unit).flatten(1)[:, setting.seen].abs().max() < 1e-14


@pytest.mark.parametrize("weight", ["identity", "pinv"])
def test_range_equivariance(setting: Setting, weight: str) -> None:
    """In [-1, 1] and in [0, 1], with the same settings and the same noise, u = (x + 1) / 2."""
    numbers = [normal(3, *SHAPE, seed=k) for k in range(25)]
    wide_prior = gaussian(setting.mean.reshape(SHAPE), setting.covariance, (-1.0, 1.0))
    wide_prior.unit = 1.0
    wide_problem = InverseProblem(setting.operator, GaussianNoise(0.5), setting.y.reshape(setting.y_unit.shape))
    sampler = MCG(schedule=VP(steps=12), zeta=1.0, weight=weight, projection="exact", project_above=0.1)  # type: ignore[arg-type]
    assert sum(level >= 0.1 for level in sampler.schedule.sigmas()) < 12  # both sides of `project_above`
    x = run(sampler, wide_problem, wide_prior, Scripted(numbers))
    u = run(sampler, setting.problem, setting.prior, Scripted(numbers))
    for ours, theirs in zip(u, x, strict=True):
        assert (2 * ours.x - 1 - theirs.x).abs().max() < EXACT * (1 + theirs.x.abs().max())


# -- measured pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["identity", "pinv"])
def test_the_iterate_measures_y_with_the_noise_of_its_level(setting: Setting, weight: str) -> None:
    """A x = y + sigma_s A n at every step, to rounding, and A x = y in the end: guidance moves along the null space."""
    steps = 12
    numbers = [normal(3, *SHAPE, seed=k) for k in range(2 * steps + 1)]
    sampler = MCG(schedule=VP(steps=steps), zeta=3.0, weight=weight, projection="exact", project_above=0.0)  # type: ignore[arg-type]
    for k, step in enumerate(run(sampler, setting.problem, setting.prior, Scripted(numbers))):
        expected = setting.y_unit + step.sigma * setting.operator(numbers[2 * k + 2])
        assert (setting.operator(step.x) - expected).abs().max() < 1e-10 * (1 + expected.abs().max())


@pytest.mark.parametrize("name", ["inpainting", "super_resolution"])
def test_guidance_lies_in_the_null_space(name: str) -> None:
    """With and without it, a step measures the same."""
    setting = Setting(name)
    numbers = [normal(3, *SHAPE, seed=k) for k in range(3)]
    ends = [
        run(
            MCG(schedule=Levels(values=(0.5, 0.3)), zeta=zeta, projection="exact", project_above=0.0),
            setting.problem,
            setting.prior,
            Scripted(numbers),
        )[0].x
        for zeta in (1.0, 0.0)
    ]
    correction = ends[0] - ends[1]
    assert correction.abs().max() > 1e-2
    assert setting.operator(correction).abs().max() < 1e-12


def test_a_perfect_fit_moves_nothing() -> None:
    """|r| has no gradient at r = 0: that image takes the unguided step, the other one is guided all the same."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    prior.unit = 0.5
    operator = Inpainting(mask=torch.tensor([[1, 0]]))
    x = torch.tensor([[[[1.0, -2.0]]], [[[1.0, -2.0]]]], dtype=torch.float64)
    y = operator(prior.denoise(x, 1.0))
    y[1, ..., 0] += 0.5
    sampler = MCG(schedule=Levels(values=(1.0, 0.5)), zeta=0.5, clip=False, projection="exact", project_above=0.0)
    numbers = [x, torch.zeros_like(x), torch.zeros_like(x)]
    (step,) = run(sampler, InverseProblem(operator, GaussianNoise(0.05), y), prior, Scripted(numbers))
    unguided = ancestral_step(x, prior.denoise(x, 1.0), 1.0, 0.5, 0 * x)
    assert torch.allclose(step.x[..., 0], y[..., 0], rtol=0, atol=1e-14)
    assert torch.equal(step.x[0, ..., 1], unguided[0, ..., 1])
    # The gradient of |r| is that of -D_1: minus the gain of D_1 in x_2, C (C + I)^-1 = [[7, 2], [2, 7]] / 15.
    weight = 0.5 * ((1 + 1 / 0.25) * (1 + 0.25 / 0.25)) ** 0.5
    assert torch.allclose(step.x[1, ..., 1], unguided[1, ..., 1] + weight * 2 / 15)


def test_the_image_itself_measured_is_returned() -> None:
    y = normal(2, *SHAPE, seed=1)
    prior = gaussian(torch.full(SHAPE, 0.5), torch.eye(64))
    sampler = MCG(schedule=VP(steps=5), projection="exact", project_above=0.0)
    numbers = [normal(2, *SHAPE, seed=k) for k in range(11)]
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), y)
    assert torch.allclose(run(sampler, problem, prior, Scripted(numbers))[-1].x, y, rtol=0, atol=1e-12)


# -- laws --------------------------------------------------------------------------------------------------------------


GRID = VP(steps=1000).levels(2.0)  # of images with the unit 1


def propagate(
    sigmas: list[float], mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance after every step of replacement, zeta = 0, on a linear-Gaussian problem."""
    n = covariance.shape[0]
    eye = torch.eye(n, dtype=torch.float64)
    pinv = torch.linalg.pinv(matrix)
    row, null = pinv @ matrix, eye - pinv @ matrix
    m, c = mean, sigmas[0] ** 2 * eye
    laws = []
    for sigma, after in pairwise(sigmas):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * eye)  # D(x) = mean + gain (x - mean)
        shrink = (after / sigma) ** 2
        step = null @ ((1 - shrink) * gain + shrink * eye)
        m = step @ m + null @ ((1 - shrink) * (mean - gain @ mean)) + pinv @ y
        c = step @ c @ step.T + after**2 * (1 - shrink) * null + after**2 * row
        laws.append((m, c))
    return laws


def toy(rows: int) -> tuple[InverseProblem, GaussianPrior]:
    """Two pixels with correlation 0.9, the first measured as 1 without noise: the other one is N(0.9, 0.19) then."""
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]), (-1.0, 1.0))
    prior.unit = 1.0
    y = torch.tensor([[[[1.0, torch.nan]]]], dtype=torch.float64)
    problem = InverseProblem(Inpainting(mask=torch.tensor([[1, 0]])), GaussianNoise(1.0), y)
    return problem.select(torch.zeros(rows, dtype=torch.long)), prior


def test_recursion_has_the_published_numbers() -> None:
    """Replacement is biased even here: mean 0.626 and variance 0.308 where 0.900 and 0.190 were right."""
    _, prior = toy(1)
    m, c = propagate(GRID, prior.mean.flatten(), prior.covariance, *_first_pixel())[-1]
    assert float(m[1]) == pytest.approx(0.626, abs=6e-4)
    assert float(c[1, 1]) == pytest.approx(0.308, abs=6e-4)


def _first_pixel() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)


@pytest.fixture(scope="module")
def replacement() -> list[Step]:
    problem, prior = toy(3000)
    sampler = MCG(schedule=VP(steps=1000), zeta=0.0, clip=False, projection="exact", project_above=0.0)
    return run(sampler, problem, prior, Normals(3000, (1, 1, 2)))


def test_replacement_has_its_known_law_at_every_level(replacement: list[Step]) -> None:
    """The measured pixel is N(y, sigma_s^2) and the other one follows the recursion, with their covariance."""
    _, prior = toy(1)
    laws = propagate(GRID, prior.mean.flatten(), prior.covariance, *_first_pixel())
    rows = len(replacement[0].x)
    worst = 0.0
    for step, (m, c) in zip(replacement, laws, strict=True):
        x = step.x.flatten(1)
        assert torch.allclose(m[0], torch.ones(()).double())
        assert torch.allclose(c[0, 0], torch.tensor(step.sigma**2).double())
        if step.sigma == 0:
            assert (x[:, 0] - 1).abs().max() < 1e-14
            continue
        spread = (torch.outer(c.diagonal(), c.diagonal()) + c**2) / rows
        errors = torch.cat(
            [(x.mean(0) - m) / (c.diagonal() / rows).sqrt(), ((x.T.cov() - c) / spread.sqrt()).flatten()]
        )
        worst = max(worst, float(errors.abs().max()))
    assert worst < 5, f"{worst:.1f} standard errors"
    assert float(x[:, 1].mean()) == pytest.approx(0.626, abs=0.04)
    assert float(x[:, 1].var()) == pytest.approx(0.308, abs=0.04)


@pytest.mark.parametrize(("zeta", "mean", "variance"), [(0.005, 0.91, 0.188), (0.05, 1.11, 0.059)])
def test_guidance_on_the_toy_of_the_reference(zeta: float, mean: float, variance: float) -> None:
    """A recorded band: no zeta gives both the mean and the variance for good reasons."""
    problem, prior = toy(2000)
    sampler = MCG(schedule=VP(steps=1000), zeta=zeta, clip=False, projection="exact", project_above=0.0)
    x = run(sampler, problem, prior, Normals(2000, (1, 1, 2)))[-1].x.flatten(1)
    assert (x[:, 0] - 1).abs().max() < 1e-14
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=0.04)
    assert float(x[:, 1].var()) == pytest.approx(variance, abs=0.02)


@pytest.mark.parametrize("name", ["blur", "super_resolution"])
def test_law_on_a_correlated_problem(name: str) -> None:
    """Replacement with any operator: A n and not n is the noise of y, or the covariance would be another one."""
    shape, rows, operator = (1, 4, 4), 6000, OPERATORS[name]
    mean, covariance, matrix = 0.5 + 0.2 * normal(16, seed=1), smooth(4, 4, std=0.3), dense(operator, shape)
    y = 0.5 + 0.3 * normal(*operator(torch.zeros(1, *shape)).shape, seed=2)
    schedule = VP(steps=40)
    problem = InverseProblem(operator, GaussianNoise(0.25), y).select(torch.zeros(rows, dtype=torch.long))
    sampler = MCG(schedule=schedule, zeta=0.0, clip=False, projection="exact", project_above=0.0)
    prior = gaussian(mean.reshape(shape), covariance)
    found = run(sampler, problem, prior, Normals(rows, shape))
    laws = propagate(schedule.levels(prior.scale), mean, covariance, matrix, y.flatten())
    for k in (0, 20, 35, 38):
        assert_law(found[k].x, *laws[k])
    assert torch.allclose(operator(found[-1].x), y.expand(rows, *y.shape[1:]), atol=1e-9)


def test_independent_pixels_are_not_guided() -> None:
    """Measured pixels carry no information on the others, which stay a sample of the prior for any zeta."""
    mask = torch.arange(64).reshape(8, 8) % 3 == 0
    prior = gaussian(torch.full(SHAPE, 0.5), torch.diag(torch.linspace(0.01, 0.2, 64)))
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.1), 0.5 + 0.3 * normal(2, *SHAPE, seed=1))
    numbers = [normal(2, *SHAPE, seed=k) for k in range(25)]
    sampler = MCG(schedule=VP(steps=12), zeta=50.0, clip=False, projection="exact", project_above=0.0)
    x = run(sampler, problem, prior, Scripted(numbers))[-1].x
    sigmas = sampler.schedule.levels(prior.scale)
    free = 0.5 + sigmas[0] * numbers[0]
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        free = ancestral_step(free, prior.denoise(free, sigma), sigma, after, numbers[2 * k + 1])
    assert torch.allclose(x[..., ~mask], free[..., ~mask], rtol=0, atol=1e-9)
    assert torch.allclose(x[..., mask], problem.y[..., mask], rtol=0, atol=1e-14)


# -- the damped projection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [1e-5, 0.2])
def test_the_damped_projection_weighs_y_by_its_noise(setting: Setting, noise_std: float) -> None:
    """x + (A^T A + rho I)^-1 A^T (y + sigma A n - A x) with rho = (sigma_y / sigma)^2, by dense algebra."""
    sigma_t, sigma_s = 1.0, 0.5
    problem = InverseProblem(setting.operator, GaussianNoise(noise_std), setting.problem.y)
    start, fresh, image_noise = (normal(3, *SHAPE, seed=seed) for seed in (4, 5, 6))
    sampler = MCG(schedule=Levels(values=(sigma_t, sigma_s)), zeta=0.0, clip=False)
    (step,) = run(sampler, problem, setting.prior, Scripted([start, fresh, image_noise]))
    x = setting.prior.mean + sigma_t * start
    x = ancestral_step(x, setting.prior.denoise(x, sigma_t), sigma_t, sigma_s, fresh).flatten(1)
    a, n = setting.matrix, x.shape[1]
    residual = problem.y.flatten(1) - (x - sigma_s * image_noise.flatten(1)) @ a.T
    rho = (noise_std / sigma_s) ** 2
    wanted = x + torch.linalg.solve(a.T @ a + rho * torch.eye(n, dtype=x.dtype), a.T @ residual.T).T
    assert (step.x.flatten(1) - wanted).abs().max() < 1e-5


def test_the_damped_projection_does_not_amplify_noise() -> None:
    """Nearer to the truth than the exact one where the operator is badly conditioned and y noisy."""
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.25)).float()
    truth = prior.sample(6, torch.Generator().manual_seed(1))
    operator, noise = GaussianBlur(std=2.0, kernel_size=9), GaussianNoise(0.05)
    y = operator(truth) + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    problem = InverseProblem(operator, noise, y)
    errors = {}
    for projection in ("damped", "exact"):
        sampler = MCG(schedule=VP(steps=30), zeta=0.0, projection=projection)  # type: ignore[arg-type]
        found = sampler.sample(problem, prior, num_samples=4, compute=Compute(precision="float32")).samples
        errors[projection] = float((found - truth[:, None]).square().mean())
    assert errors["damped"] < 0.5 * errors["exact"]


# -- below `project_above` ---------------------------------------------------------------------------------------------


def test_without_projection_it_is_dps(setting: Setting) -> None:
    """Below the level the whole gradient counts, with the weight of DPS; above it nothing changes. The exact projection
    belongs to the published weight, the damped one to a step that keeps to the noise."""
    steps = 12
    numbers = [normal(3, *SHAPE, seed=k) for k in range(2 * steps + 1)]
    schedule = VP(steps=steps)
    norm = float(operator_norm(setting.problem, setting.prior)[0])
    published = DPS(schedule=schedule, zeta=1.5 / norm, guidance="published")
    for projection, other in (("exact", published), ("damped", DPS(schedule=schedule, zeta=1.5))):
        sampler = MCG(schedule=schedule, zeta=1.5, projection=projection, project_above=1e6)  # type: ignore[arg-type]
        found = run(sampler, setting.problem, setting.prior, Scripted(numbers))
        dps = run(other, setting.problem, setting.prior, Scripted([numbers[0], *numbers[1::2]]))
        for ours, theirs in zip(found, dps, strict=True):
            assert (ours.x - theirs.x).abs().max() < EXACT * (1 + theirs.x.abs().max())


def test_the_level_decides_step_by_step(setting: Setting) -> None:
    """The level that a step leads to is compared; at `project_above` itself it is still projected."""
    steps = 12
    numbers = [normal(3, *SHAPE, seed=k) for k in range(2 * steps + 1)]
    schedule = VP(steps=steps)
    limit = float(schedule.sigmas()[8])
    found, always = (
        run(
            MCG(schedule=schedule, zeta=1.5, projection="exact", project_above=p),
            setting.problem,
            setting.prior,
            Scripted(numbers),
        )
        for p in (limit, 0.0)
    )
    for k, (ours, other) in enumerate(zip(found, always, strict=True)):
        noised = setting.y_unit + ours.sigma * setting.operator(numbers[2 * k + 2])
        fits = bool((setting.operator(ours.x) - noised).abs().max() < 1e-8)
        assert fits == (ours.sigma >= limit)
        assert torch.equal(ours.x, other.x) == (k < 8)
    assert found[7].sigma == limit


def test_it_keeps_the_noise_of_y_out_of_the_image() -> None:
    """With the projection to the end the error of measured pixels is exactly their noise; without it, it is smaller."""
    rows, noise_std, shape = 300, 0.1, (1, 6, 6)
    prior = gaussian(torch.full(shape, 0.5), smooth(6, 6, std=0.2, length=3.0))
    operator = Inpainting(keep=0.7)
    truth = prior.sample(rows, torch.Generator().manual_seed(0))
    y = operator(truth + noise_std * normal(rows, *shape, seed=1))
    seen = operator.measured(shape).expand(rows, *shape)
    problem = InverseProblem(operator, GaussianNoise(noise_std), y)
    errors = []
    for level in (0.0, noise_std):
        sampler = MCG(schedule=VP(steps=100), zeta=0.1, projection="exact", project_above=level)
        x = run(sampler, problem, prior, Normals(rows, shape))[-1].x
        errors.append(float((x - truth)[seen].square().mean().sqrt()))
    assert errors[0] == pytest.approx(float((y - truth)[seen].square().mean().sqrt()), rel=1e-12)
    assert errors[1] < 0.8 * errors[0]


# -- rules -------------------------------------------------------------------------------------------------------------


def small_problem(images: int = 4, operator: LinearOperator | None = None) -> tuple[InverseProblem, GaussianPrior]:
    operator = operator or GaussianBlur(std=0.6, kernel_size=5)
    x = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(8.0)
    near = torch.exp(-(((rows[:, None] - rows) / 2) ** 2) / 2) + 0.05 * torch.eye(8)
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.kron(near, near))
    prior.value_range = (0.0, 1.0)
    return InverseProblem(operator, GaussianNoise(0.05), operator(x)), prior


def test_an_iterative_pseudo_inverse_gives_the_same_samples() -> None:
    """An operator without a decomposition is inverted by conjugate gradients: same numbers drawn, same images."""
    spectral = SuperResolution(factor=2)
    problem, prior = small_problem(2, spectral)
    plain = LinearCallableOperator(lambda x: spectral(x), image_shape=SHAPE)
    for weight in ("identity", "pinv"):
        sampler = MCG(schedule=VP(steps=10), weight=weight)  # type: ignore[arg-type]
        found = [
            sampler.sample(InverseProblem(operator, problem.noise, problem.y), prior, compute=Compute())
            for operator in (spectral, plain)
        ]
        assert (found[0].samples - found[1].samples).abs().max() < 1e-3


def test_complex_measurements() -> None:
    """One complex number is two measurements: as if both parts had been given as such."""
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.3))
    numbers = [normal(2, *SHAPE, seed=k) for k in range(21)]

    def fourier(x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")[..., :3]

    y = fourier(0.5 + 0.3 * normal(2, *SHAPE, seed=1))
    for weight in ("identity", "pinv"):
        sampler = MCG(schedule=VP(steps=10), weight=weight, projection="exact", project_above=0.0)  # type: ignore[arg-type]
        whole, split = (
            run(
                sampler,
                InverseProblem(LinearCallableOperator(function, image_shape=SHAPE), GaussianNoise(0.1), measured),
                prior,
                Scripted(numbers),
            )[-1].x
            for function, measured in ((fourier, y), (lambda x: torch.view_as_real(fourier(x)), torch.view_as_real(y)))
        )
        assert torch.allclose(whole, split, rtol=0, atol=1e-8)
        assert torch.allclose(fourier(whole), y, rtol=0, atol=1e-8)


def test_an_absurd_zeta_is_reported_and_harms_no_other() -> None:
    """Image 1 was measured everywhere: there is no null space to be thrown out of, and it stays as it is alone."""
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, :, ::2] = mask[2, ::2] = mask[1] = True
    problem, prior = small_problem(3, Inpainting(mask=mask))
    sampler = MCG(schedule=VP(steps=8), zeta=1e9, projection="exact", project_above=0.0)
    found = sampler.sample(problem, prior, num_samples=2)
    assert found.diverged.tolist() == [[True] * 2, [False] * 2, [True] * 2]
    alone = sampler.sample(problem.select(torch.tensor([1])), prior, num_samples=2, first_image=1)
    assert torch.equal(found.samples[1], alone.samples[0])


def test_it_restores_a_digit() -> None:
    """With a trained network: measured pixels are kept, the others are closer to the truth than mid-grey."""
    prior = load_prior("digits")
    operator = Inpainting(keep=0.5)
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 7:25, 14:18] = 1  # a one, as far as strokes go
    problem = InverseProblem(operator, GaussianNoise(0.05), operator(truth))
    sampler = MCG(schedule=VP(steps=20), zeta=5.0, projection="exact", project_above=0.0)
    found = sampler.sample(problem, prior, compute=Compute(precision="float32")).samples[:, 0]
    seen = operator.measured((1, 32, 32)).expand_as(truth)
    assert torch.allclose(found[seen], truth[seen], rtol=0, atol=1e-6)
    assert (found - truth)[~seen].square().mean() < 0.25 * (0.5 - truth)[~seen].square().mean()
