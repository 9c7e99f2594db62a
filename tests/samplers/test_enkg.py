"""EnKG: the authors' algorithm particle by particle, and the algebra of ensembles."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import Levels, Remembering, Scripted, dense, gaussian, normal, published, smooth
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
    Operator,
    PoissonNoise,
    SuperResolution,
)
from invdiff.priors import GaussianPrior, Prior
from invdiff.samplers import DPS, EnKG
from invdiff.samplers.ensemble.enkg import as_vectors
from invdiff.schedules import EDM

# 80 levels from 80 to 0.002 and 1024 particles, on [-1, 1].
PUBLISHED = EnKG(
    schedule=EDM(steps=80, sigma_max=80.0 / 2, sigma_min=0.002 / 2),
    ensemble=1024,
    guidance=2.0,
    guidance_end=1.0,
    updates=2,
    skip_start=0.05,
    skip_end=0.05,
    ode_steps=None,
    ode_sigma_min=0.002 / 2,
    normaliser="frobenius",
    stochastic=False,
)
SMALL = (1, 4, 4)
SHAPE = (1, 8, 8)
QUIET = Compute(device="cpu", progress=False)


def run(sampler: EnKG, problem: InverseProblem, prior: Prior, rng: object) -> list[Step]:
    """All steps, with random numbers under the test's control and gradients off as in the driver."""
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


def whole(sampler: EnKG, problem: InverseProblem, prior: Prior, start: Tensor) -> Tensor:
    """All particles at the end of a run from `start` (R, J, C, H, W)."""
    memory = Remembering(prior)
    sampler = replace(sampler, particles_at_once=start.shape[0] * start.shape[1])
    last = run(sampler, problem, memory, Scripted([start]))[-1].x
    ensemble = memory.estimate.unflatten(0, start.shape[:2])
    assert torch.allclose(last, ensemble[:, 0])
    return ensemble


# -- the authors' algorithm --------------------------------------------------------------------------------------------


def karras_levels(high: float, low: float, count: int) -> list[float]:
    """Karras et al. 2022, equation 5, entry by entry."""
    return [(high ** (1 / 7) + i / max(count - 1, 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(count)]


class AuthorsEnKG:
    """The published algorithm on images in [-1, 1], one ensemble, particle by particle; no line of the implementation
    is shared.
    """

    sigma_max, sigma_min, scale, updates, threshold = 80.0, 0.002, 2.0, 2, 0.05

    def __init__(
        self, mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, *, steps: int, ratio: float
    ) -> None:
        self.mean, self.covariance, self.matrix, self.y = mean, covariance, matrix, y
        self.steps, self.ratio = steps, ratio
        self.sigmas = [*karras_levels(self.sigma_max, self.sigma_min, steps), 0.0]

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        marginal = self.covariance + sigma**2 * torch.eye(len(self.covariance), dtype=torch.float64)
        return self.mean + (x - self.mean) @ torch.linalg.solve(marginal, self.covariance)

    def clean(self, x: Tensor, sigma: float, calls: int) -> Tensor:
        for t, after in pairwise([*karras_levels(sigma, self.sigma_min, calls), 0.0]):
            x = x + (after - t) * (x - self.denoise(x, t)) / t
        return x

    def correct(self, x: Tensor, sigma: float, i: int) -> Tensor:
        particles = len(x)
        predicted = self.clean(x, sigma, min(1 + (self.steps - i) // 4, 20)) @ self.matrix.T
        average, centre = predicted.mean(0), x.mean(0)
        mixing = torch.zeros(particles, particles, dtype=torch.float64)
        for j in range(particles):
            for other in range(particles):
                mixing[j, other] = (predicted[j] - self.y) @ (predicted[other] - average) / particles
        size = mixing.square().sum().sqrt()
        weight = self.scale * (self.ratio + (1 - self.ratio) * (self.steps - i) / self.steps)
        moved = x.clone()
        for j in range(particles):
            for other in range(particles):
                moved[j] -= weight / size * mixing[j, other] * (x[other] - centre)
        return moved

    def sample(self, x: Tensor) -> list[Tensor]:
        """The ensemble after every step."""
        path = []
        for i, (sigma, after) in enumerate(pairwise(self.sigmas)):
            if self.threshold * self.steps < i < self.steps - int(self.threshold * self.steps):
                for _ in range(self.updates):
                    x = self.correct(x, sigma, i)
            x = x + (after - sigma) * (x - self.denoise(x, sigma)) / sigma
            path.append(x)
        return path


OPERATORS = {
    "blur": GaussianBlur(std=1.0, kernel_size=5),
    "inpainting": Inpainting(keep=0.4),
    "super_resolution": SuperResolution(factor=2),
}


@pytest.mark.parametrize("ratio", [1.0, 0.25])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_a_whole_run_equals_the_authors(name: str, ratio: float) -> None:
    """Our [0, 1] with halved levels against their [-1, 1]: the same images after every step, two images at once."""
    operator, images, particles, steps = OPERATORS[name], 2, 6, 20
    matrix, covariance, mean = dense(operator, SHAPE), smooth(8, 8, std=0.5), 0.2 * normal(64, seed=1)
    seen = matrix.abs().sum(1) > 0
    y = (0.5 * normal(images, 64, seed=2)) @ matrix.T + 0.05 * seen * normal(images, len(matrix), seed=3)
    y_unit = torch.where(seen, (y + 1) / 2, torch.nan).reshape(images, *operator(torch.zeros(1, *SHAPE)).shape[1:])
    start = normal(images, particles, *SHAPE, seed=4)

    schedule = replace(PUBLISHED.schedule, steps=steps)  # type: ignore[call-arg]
    sampler = replace(PUBLISHED, schedule=schedule, ensemble=particles, guidance_end=ratio)
    prior = Remembering(gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4))  # as of a network: grey is its centre
    found = run(sampler, InverseProblem(operator, GaussianNoise(0.025), y_unit), prior, Scripted([start]))
    assert len(found) == steps
    assert found[-1].sigma == 0
    for image in range(images):
        authors = AuthorsEnKG(mean, covariance, matrix, y[image], steps=steps, ratio=ratio)
        path = authors.sample(authors.sigma_max * start[image].flatten(1))
        for step, x, sigma in zip(found, path, authors.sigmas[1:], strict=True):
            assert step.sigma == pytest.approx(sigma / 2, rel=1e-12)
            assert (2 * step.x[image].flatten() - 1 - x[0]).abs().max() < 1e-9 * (1 + x.abs().max())


def test_published_numbers() -> None:
    """In the experiment; 71 steps with two corrections each make 1588 network calls a particle."""
    assert published("enkg") == PUBLISHED
    assert PUBLISHED.expected_cost().forwards == 1588 * 1024


# -- the algebra of one correction -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting() -> tuple[InverseProblem, GaussianPrior, Tensor]:
    """Three images with five particles each, a blur, everything affine."""
    operator = GaussianBlur(std=0.8, kernel_size=5)
    problem = InverseProblem(operator, GaussianNoise(0.1), 0.5 + 0.3 * normal(3, *SMALL, seed=2))
    prior = gaussian(0.5 + 0.2 * normal(*SMALL, seed=1), smooth(4, 4, std=0.3))
    prior.unit = 0.5
    return problem, prior, 0.5 + normal(3, 5, *SMALL, seed=3)


def flow(prior: Prior, x: Tensor, levels: list[float]) -> Tensor:
    """Euler's steps along the flow."""
    for sigma, after in pairwise(levels):
        x = x + (after - sigma) / sigma * (x - prior.denoise(x, sigma))
    return x


def clean(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """Three steps of the flow from sigma to 0, (B, C, H, W)."""
    return flow(prior, x, [*karras_levels(sigma, EnKG().ode_sigma_min, 3), 0.0])


def correction(sampler: EnKG, problem: InverseProblem, prior: Prior, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """One correction (R, J, C, H, W) and the predicted measurements (R, J, M) that it comes from.

    Of two equal levels the first has no correction and leaves x as it is.
    """
    memory = Remembering(prior)
    schedule = Levels(values=(sigma, sigma, 0.0))
    sampler = replace(
        sampler, schedule=schedule, guidance=1.0, updates=1, skip_start=0.0, skip_end=0.0, ode_steps=3, stochastic=False
    )
    run(replace(sampler, particles_at_once=x.shape[0] * x.shape[1]), problem, memory, Scripted([(x - 0.5) / sigma]))
    with torch.no_grad():
        predicted = problem.operator(clean(prior, x.flatten(0, 1), sigma)).flatten(1)
    return x - memory.images.unflatten(0, x.shape[:2]), predicted.unflatten(0, x.shape[:2])


@pytest.mark.parametrize("normaliser", ["frobenius", "spread"])
def test_affine_problems_are_linearised_exactly(
    normaliser: str, setting: tuple[InverseProblem, GaussianPrior, Tensor]
) -> None:
    """The correction is C_xx B^T e: ensemble covariance and the true Jacobian B."""
    problem, prior, x = setting
    sampler = EnKG(ensemble=5, normaliser=normaliser)  # type: ignore[arg-type]
    found, predicted = correction(sampler, problem, prior, x, 0.7)

    basis = torch.cat([torch.zeros(1, 16), torch.eye(16)]).double().reshape(17, *SMALL)
    with torch.no_grad():
        affine = problem.operator(clean(prior, basis, 0.7)).flatten(1)
    jacobian = (affine[1:] - affine[0]).T
    for image in range(3):
        deviation = (x[image] - x[image].mean(0)).flatten(1)
        error = predicted[image] - problem.y[image].flatten()
        mixing = error @ (predicted[image] - predicted[image].mean(0)).T / 5
        scale = mixing.norm() * (1 if normaliser == "frobenius" else math.sqrt(1024 / 5))
        expected = error @ jacobian @ (deviation.T @ deviation / 5) / scale
        assert (found[image].flatten(1) - expected).abs().max() < 1e-12


def test_corrections_stay_in_the_span_of_the_ensemble(setting: tuple[InverseProblem, GaussianPrior, Tensor]) -> None:
    problem, prior, x = setting
    found, _ = correction(EnKG(ensemble=5), problem, prior, x, 0.7)
    for image in range(3):
        deviation = (x[image] - x[image].mean(0)).flatten(1).T  # (16, 5), of rank 4
        onto = deviation @ torch.linalg.pinv(deviation, rtol=1e-10)
        moved = found[image].flatten(1).T
        assert moved.abs().max() > 1e-3
        assert (moved - onto @ moved).abs().max() < 1e-12


@pytest.mark.parametrize("normaliser", ["frobenius", "spread"])
@pytest.mark.parametrize("kind", ["one particle", "identical particles"])
def test_identical_particles_are_not_corrected(
    normaliser: str, kind: str, setting: tuple[InverseProblem, GaussianPrior, Tensor]
) -> None:
    """0 / 0 is no correction, and no NaN."""
    problem, prior, x = setting
    start = x[:, :1] if kind == "one particle" else x[:, :1].expand(3, 4, *SMALL)
    sampler = EnKG(
        schedule=EDM(steps=8, sigma_max=20.0, sigma_min=0.01),
        ensemble=start.shape[1],
        stochastic=False,
        normaliser=normaliser,  # type: ignore[arg-type]
    )
    guided = run(sampler, problem, prior, Scripted([start]))
    free = run(replace(sampler, guidance=0.0), problem, prior, Scripted([start]))
    for ours, theirs in zip(guided, free, strict=True):
        assert (ours.x - theirs.x).abs().max() < 1e-12


def test_a_constant_operator_corrects_nothing() -> None:
    """All predictions are the same, their mean is off by rounding: rounding is no direction."""
    flat = CallableOperator(lambda x: 0 * x + 0.1, image_shape=SHAPE)
    problem = InverseProblem(flat, GaussianNoise(0.1), torch.full((1, *SHAPE), 0.7))
    sampler = EnKG(schedule=EDM(steps=8, sigma_max=10.0, sigma_min=0.02), ensemble=7, guidance=2.0, stochastic=False)
    start = normal(1, 7, *SHAPE, seed=1).float()
    guided = run(sampler, problem, WhitePrior(), Scripted([start]))[-1].x
    free = run(replace(sampler, guidance=0.0), problem, WhitePrior(), Scripted([start]))[-1].x
    assert (guided - free).abs().max() < 1e-4


def test_the_step_with_more_particles() -> None:
    """Fewer particles than pixels: the published step shrinks like 1 / sqrt(J); ours is guidance / 32 of the spread."""
    shape = (1, 48, 48)
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.rand(1, *shape).double())
    for sigma in (20.0, 0.3):
        steps: dict[str, list[float]] = {"spread": [], "frobenius": []}
        for particles in (8, 32, 128):
            x = sigma * normal(1, particles, *shape, seed=particles)
            spread = (x - x.mean(1, keepdim=True)).square().mean().sqrt()
            for name, sizes in steps.items():
                sampler = EnKG(ensemble=particles, normaliser=name)  # type: ignore[arg-type]
                moved, _ = correction(sampler, problem, WhitePrior(), x, sigma)
                sizes.append(float(moved.square().mean().sqrt() / spread))
        for few, many in pairwise(steps["frobenius"]):
            assert few / many == pytest.approx(2.0, rel=0.12)
        assert steps["spread"] == pytest.approx([1 / 32] * 3, rel=0.12)


def test_with_the_published_number_of_particles_both_normalisers_agree(
    setting: tuple[InverseProblem, GaussianPrior, Tensor],
) -> None:
    problem, prior, _ = setting
    problem, x = problem.select(torch.tensor([0])), 0.5 + normal(1, 1024, *SMALL, seed=5)
    ours, theirs = (
        correction(EnKG(ensemble=1024, normaliser=name), problem, prior, x, 0.7)[0]  # type: ignore[arg-type]
        for name in ("spread", "frobenius")
    )
    assert torch.equal(ours, theirs)


# -- whole runs --------------------------------------------------------------------------------------------------------

SHORT = EnKG(
    schedule=EDM(steps=8, sigma_max=10.0, sigma_min=0.02), ensemble=6, guidance=2.0, updates=2, stochastic=False
)


@pytest.mark.parametrize("steps", [1, 5])
def test_without_guidance_every_particle_follows_the_flow(
    steps: int, setting: tuple[InverseProblem, GaussianPrior, Tensor]
) -> None:
    problem, prior, start = setting
    schedule = EDM(steps=steps, sigma_max=20.0, sigma_min=0.01)
    found = whole(EnKG(schedule=schedule, ensemble=5, guidance=0.0, stochastic=False), problem, prior, start)
    flowed = flow(prior, 0.5 + 20.0 * start.flatten(0, 1), schedule.sigmas().tolist())
    assert (found.flatten(0, 1) - flowed).abs().max() < 1e-12


def test_an_ancestral_step_without_guidance_is_ancestral_sampling(
    setting: tuple[InverseProblem, GaussianPrior, Tensor],
) -> None:
    problem, prior, start = setting
    schedule = EDM(steps=4, sigma_max=10.0, sigma_min=0.1)
    noises = [normal(3, 5, *SMALL, seed=10 + k) for k in range(4)]
    sampler = EnKG(schedule=schedule, ensemble=5, guidance=0.0, stochastic=True)
    found = run(sampler, problem, prior, Scripted([start, *noises]))
    x = prior.mean + 10.0 * start[:, 0]
    for (sigma, after), noise, step in zip(pairwise(schedule.sigmas().tolist()), noises, found, strict=True):
        x0 = prior.denoise(x, sigma)
        spread = after * math.sqrt(1 - (after / sigma) ** 2)
        x = x0 + (after / sigma) ** 2 * (x - x0) + spread * noise[:, 0]
        assert (step.x - x).abs().max() < 1e-12


@pytest.mark.parametrize("normaliser", ["frobenius", "spread"])
@pytest.mark.parametrize("power", [-40, 40])
def test_the_unit_of_the_measurement_does_not_matter(normaliser: str, power: int) -> None:
    """In float32 too, where the square of a square would be 0 or infinite, and guidance without effect."""
    blur, unit = GaussianBlur(std=1.0, kernel_size=5), 2.0**power
    y = blur(0.4 + 0.25 * normal(2, *SHAPE, seed=1).float())
    sampler = replace(SHORT, normaliser=normaliser)  # type: ignore[arg-type]
    plain, scaled = (
        sampler.sample(
            InverseProblem(CallableOperator(lambda x, c=c: c * blur(x)), GaussianNoise(c), c * y, image_shape=SHAPE),
            WhitePrior(),
            compute=QUIET,
        ).samples
        for c in (1.0, unit)
    )
    free = replace(sampler, guidance=0.0).sample(InverseProblem(blur, GaussianNoise(1.0), y), WhitePrior())
    assert (plain - free.samples).abs().max() > 0.02
    assert (scaled - plain).abs().max() < 1e-4


def test_particles_have_no_order(setting: tuple[InverseProblem, GaussianPrior, Tensor]) -> None:
    problem, prior, start = setting
    sampler, order = replace(SHORT, ensemble=5), torch.tensor([3, 0, 4, 1, 2])
    plain = whole(sampler, problem, prior, start)
    permuted = whole(sampler, problem, prior, start[:, order])
    assert (permuted - plain[:, order]).abs().max() < 1e-10


def test_a_translated_problem_has_translated_samples(setting: tuple[InverseProblem, GaussianPrior, Tensor]) -> None:
    problem, prior, start = setting
    shift = normal(*SMALL, seed=7)
    moved = InverseProblem(problem.operator, problem.noise, problem.y + problem.operator(shift[None]))
    sampler = replace(SHORT, ensemble=5)
    plain = whole(sampler, problem, prior, start)
    there = whole(sampler, moved, gaussian(prior.mean + shift, prior.covariance), start + shift / 10.0)
    assert (there - plain - shift).abs().max() < 1e-9


def test_on_a_gaussian_it_fits_the_data_and_keeps_the_prior_elsewhere() -> None:
    """Published settings, 10 pixels, 5 of their combinations measured: no uncertainty is left where there is data."""
    matrix = torch.linalg.qr(normal(10, 10, seed=1))[0][:5]  # orthonormal rows
    operator = LinearCallableOperator(lambda x: x.flatten(1) @ matrix.to(x).T, image_shape=(1, 1, 10))
    truth, sigma_y = normal(10, seed=2), 0.1
    y = matrix @ truth + sigma_y * normal(5, seed=3)
    prior = gaussian(torch.zeros(1, 1, 10), torch.eye(10))
    schedule = EDM(steps=80, sigma_max=80.0, sigma_min=0.002)
    sampler = replace(PUBLISHED, schedule=schedule, ensemble=512, ode_sigma_min=0.002)
    problem = InverseProblem(operator, GaussianNoise(sigma_y), y[None])
    x = whole(sampler, problem, prior, normal(1, 512, 1, 1, 10, seed=4))[0].flatten(1)

    residual = x @ matrix.T - y
    assert float(residual.square().mean().sqrt()) < sigma_y  # of the prior's own images: about 1.4
    assert float((x @ matrix.T).std(0).max()) < 0.1 * sigma_y  # of the posterior: about sigma_y
    unseen = torch.linalg.qr(torch.cat([matrix.T, torch.eye(10).double()], 1))[0][:, 5:10]
    assert (matrix @ unseen).abs().max() < 1e-12
    assert (x @ unseen).std(0).mean() == pytest.approx(1.0, abs=0.1)
    assert (x @ unseen).mean(0).abs().max() < 0.35


def test_guidance_pulls_towards_the_data() -> None:
    blur = GaussianBlur(std=1.0, kernel_size=5)
    problem = InverseProblem(blur, GaussianNoise(0.1), blur(0.4 + 0.25 * normal(2, *SHAPE, seed=1).float()))
    sampler = replace(SHORT, schedule=EDM(steps=20, sigma_max=10.0, sigma_min=0.01), ensemble=48)
    misfits = [
        problem.misfit(replace(sampler, guidance=w).sample(problem, WhitePrior(), compute=QUIET).samples[:, 0])
        for w in (0.0, 2.0)
    ]
    assert (misfits[1] < 0.5 * misfits[0]).all()


# -- measurements ------------------------------------------------------------------------------------------------------


def test_complex_measurements_are_pairs_of_real_ones() -> None:
    def fourier(x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")[..., :3]

    prior = gaussian(torch.full(SMALL, 0.5), 0.04 * torch.eye(16))
    y = fourier(0.5 + 0.2 * normal(2, *SMALL, seed=1))
    start = normal(2, 6, *SMALL, seed=2)
    pair = CallableOperator(lambda x: torch.view_as_real(fourier(x)))
    results = [
        run(SHORT, InverseProblem(operator, GaussianNoise(0.1), data, image_shape=SMALL), prior, Scripted([start]))
        for operator, data in ((CallableOperator(fourier), y), (pair, torch.view_as_real(y)))
    ]
    assert torch.allclose(results[0][-1].x, results[1][-1].x, rtol=0, atol=1e-12)


def test_parameters_and_masks_of_each_image() -> None:
    """A mask for every image and NaN where it is 0: as if each were alone with its own mask."""
    operator = Inpainting.random(SHAPE, keep=0.5, seed=1, images=3)
    y = operator(0.4 + 0.25 * normal(3, *SHAPE, seed=1).float())
    seen = operator.measured(SHAPE)
    together, zeros = (
        SHORT.sample(
            InverseProblem(operator, GaussianNoise(0.1), torch.where(seen, y, value)),
            WhitePrior(),
            num_samples=2,
            compute=QUIET,
        )
        for value in (torch.nan, 0.0)
    )
    assert not together.diverged.any()
    assert torch.equal(together.samples, zeros.samples)
    for i in range(3):
        alone = Inpainting(mask=operator.mask_of(SHAPE)[i, 0])
        found = SHORT.sample(
            InverseProblem(alone, GaussianNoise(0.1), y[i : i + 1]),
            WhitePrior(),
            num_samples=2,
            first_image=i,
            compute=QUIET,
        )
        assert (found.samples[0] - together.samples[i]).abs().max() < 1e-5


def test_vectors_leave_out_what_was_not_measured() -> None:
    """One mask per image against one measurement, and against four predictions, per image."""
    operator = Inpainting.random(SMALL, keep=0.5, seed=1, images=3)
    y, predicted = normal(3, *SMALL, seed=1), normal(12, *SMALL, seed=2)
    seen = operator.measured(SMALL)
    problem = InverseProblem(operator, GaussianNoise(0.1), torch.where(seen, y, torch.nan))
    assert torch.equal(as_vectors(problem, problem.y), (y * seen).flatten(1))
    found = as_vectors(problem, predicted).reshape(3, 4, 16)
    assert torch.equal(found, (predicted.reshape(3, 4, *SMALL) * seen[:, None]).flatten(2))


def black_box(operator: Operator) -> CallableOperator:
    return CallableOperator(lambda x: torch.from_numpy(operator(x).numpy()), differentiable=False, image_shape=SHAPE)


def test_a_black_box_is_enough() -> None:
    """NumPy inside: the same samples as with an operator that could be differentiated, with any noise."""
    blur = GaussianBlur(std=1.0, kernel_size=5)
    y = blur(0.4 + 0.25 * normal(2, *SHAPE, seed=1).float()).clamp(min=0)
    problem = InverseProblem(black_box(blur), GaussianNoise(0.1), y)
    prior = WhitePrior()
    prior.differentiable = False
    found = SHORT.sample(problem, prior, compute=QUIET)
    assert torch.equal(found.samples, SHORT.sample(InverseProblem(blur, GaussianNoise(0.1), y), WhitePrior()).samples)
    assert not SHORT.sample(InverseProblem(black_box(blur), PoissonNoise(0.05), y), prior).diverged.any()
    with pytest.raises(Unsupported, match="enkg"):
        DPS().sample(problem, WhitePrior())


# -- rules -------------------------------------------------------------------------------------------------------------


def small_problem(images: int = 3) -> InverseProblem:
    blur = GaussianBlur(std=1.0, kernel_size=5)
    x = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(0))
    return InverseProblem(blur, GaussianNoise(0.1), blur(x))


@pytest.mark.parametrize("at_once", [1, 5, 17, 1000])
def test_particles_at_once_changes_nothing(at_once: int) -> None:
    """Chunks that cut through ensembles, and operators that have parameters for each image."""
    operator = Inpainting.random(SHAPE, keep=0.5, seed=1, images=3)
    problem = InverseProblem(operator, GaussianNoise(0.1), operator(small_problem().y))
    found, reference = (
        replace(SHORT, particles_at_once=n).sample(problem, WhitePrior(), num_samples=2, compute=QUIET)
        for n in (at_once, 6)
    )
    assert (found.samples - reference.samples).abs().max() < 1e-5
    assert found.cost.forwards == reference.cost.forwards


def test_no_more_than_particles_at_once_go_through_network_and_operator() -> None:
    calls: list[int] = []

    class Counting(WhitePrior):
        def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            calls.append(len(x))
            return super().denoise(x, sigma)

    def measure(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    problem = InverseProblem(CallableOperator(measure), GaussianNoise(0.1), small_problem().y, image_shape=SHAPE)
    replace(SHORT, particles_at_once=5).sample(problem, Counting(), num_samples=2, compute=QUIET)
    assert max(calls) == 5


def test_one_particle_that_fails_is_reported() -> None:
    """A black box that breaks on a single particle: its ensemble is reported as diverged."""

    def breaks(x: Tensor) -> Tensor:
        y = x.clone()
        y[3:4] = torch.nan  # a particle of the first image, if it is there
        return y

    problem = InverseProblem(CallableOperator(breaks), GaussianNoise(0.1), small_problem().y, image_shape=SHAPE)
    found = replace(SHORT, particles_at_once=1000).sample(problem, WhitePrior(), compute=QUIET)
    assert found.diverged[:, 0].tolist() == [True, False, False]


def test_the_ensemble_as_samples(caplog: pytest.LogCaptureFixture) -> None:
    """Its first particle is the sample; one ensemble is paid for, however many samples, chunks and images."""
    sampler, prior = EnKG.example(), WhitePrior()
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.rand(3, *SMALL))
    one = sampler.sample(problem, prior, seed=4, compute=QUIET)
    found = sampler.sample_of_cloud(problem, prior, num_samples=4, seed=4, compute=replace(QUIET, max_rows=2))
    assert found.samples.shape == (3, 4, *SMALL)
    torch.testing.assert_close(found.samples[:, :1], one.samples)
    assert len(found.samples[0].unique(dim=0)) == 4
    assert found.cost.forwards == one.cost.forwards
    assert "its spread of" in caplog.text
    with pytest.raises(ValueError, match="num_samples must be 1 to the ensemble of 5, got 6"):
        sampler.sample_of_cloud(problem, prior, num_samples=6, compute=QUIET)
