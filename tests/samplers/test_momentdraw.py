"""Moment draws: the law of Gaussian images at default settings, a run in dense algebra, roots and preconditioners."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Scripted, assert_law, dense, flat, gaussian, normal, smooth
from invdiff import Compute, InverseProblem, Unsupported, load_prior, simulate
from invdiff.contracts.toys import WhitePrior
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import (
    CT,
    HDR,
    MRI,
    CallableOperator,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    MotionBlur,
    MulticoilMRI,
    NonlinearBlur,
    Operator,
    RadialMRI,
    SuperResolution,
    as_operator,
)
from invdiff.operators.combine.composition import compose
from invdiff.operators.core.base import LinearOperator
from invdiff.priors.base import Prior
from invdiff.samplers import Auto, MomentDraw, settings_for
from invdiff.samplers.base import Step
from invdiff.samplers.guidance.momentdraw import CENTRE, EXCESS, WIDTH
from invdiff.samplers.linearisation import linearised
from invdiff.samplers.solvers import square_root
from invdiff.schedules import EDM
from invdiff.scores.metrics import psnr

SHAPE, PIXELS = (1, 4, 4), 16
QUIET = Compute(device="cpu", precision="float32", progress=False)


class Bent(Prior):
    """A denoiser whose Jacobian is not symmetric and changes with x, as that of a network does."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = 0.1 * normal(PIXELS, PIXELS, seed=5)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return ((x.flatten(1) @ self.matrix.T).sin() / (1 + sigma) + 0.5 * x.flatten(1)).reshape(x.shape)


def fourier(x: Tensor) -> Tensor:
    return torch.fft.fft2(x, norm="ortho")[..., :2]


def last_step(sampler: MomentDraw, problem: InverseProblem, prior: Prior, rng: object) -> Step:
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, rng)  # type: ignore[arg-type]
    return last


def run(sampler: MomentDraw, problem: InverseProblem, prior: Prior, rng: object) -> Tensor:
    return last_step(sampler, problem, prior, rng).x


# -- the law -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", ["real", "complex"])
def test_gaussian_images_have_the_exact_law_at_default_settings(measured: str) -> None:
    """16 pixels, 8 real numbers or 8 complex ones: bias, and variance of every direction, within the Monte Carlo."""
    rows, sigma = 2000, 0.05
    prior = gaussian(0.5 + 0.1 * normal(*SHAPE, seed=3), smooth(4, 4, std=0.2))
    if measured == "real":
        operator: LinearOperator | LinearCallableOperator = Dense(normal(8, PIXELS, seed=1) / 4, SHAPE)
        matrix, part = dense(operator, SHAPE), sigma
    else:
        operator = LinearCallableOperator(fourier, image_shape=SHAPE)
        matrix, part = dense(operator, SHAPE), sigma / 2**0.5
    truth = prior.sample(1, torch.Generator().manual_seed(5))
    y = operator(truth)
    exact = prior.condition(matrix, flat(y)[0], part)
    problem = InverseProblem(operator, GaussianNoise(sigma), y).select(torch.zeros(rows, dtype=torch.long))
    last = last_step(MomentDraw(), problem, prior, Normals(rows, SHAPE))
    assert last.mean is not None
    x, means = last.x.flatten(1), last.mean.flatten(1)
    white = torch.linalg.inv(torch.linalg.cholesky(exact.covariance)).T
    for found in (x, means):  # both have the mean of the posterior, and the means vary less
        away = (found.mean(0) - exact.mean.flatten()) @ white
        assert float(away.square().mean().sqrt()) < 3 * rows**-0.5
    assert float(means.var(0).sum()) < 0.7 * float(x.var(0).sum())
    ratio = torch.linalg.eigvals(torch.linalg.solve(exact.covariance, x.T.cov())).real
    assert 0.97 < float(ratio.mean()) < 1.03
    assert 0.75 < float(ratio.min()) < float(ratio.max()) < 1.25  # Monte Carlo alone: 0.83 to 1.19


@pytest.mark.parametrize("steps", [1, 3])
def test_with_the_whole_space_few_steps_are_exact(steps: int) -> None:
    """Where root and solver have as many iterations as there are pixels, one step is enough; the mean alone is not."""
    rows = 4000
    prior = gaussian(0.5 + 0.1 * normal(*SHAPE, seed=3), smooth(4, 4, std=0.2))
    matrix = normal(8, PIXELS, seed=1) / 4
    y = matrix @ prior.sample(1, torch.Generator().manual_seed(5)).flatten()
    exact = prior.condition(matrix, y, 0.1)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.1), y[None])
    problem = problem.select(torch.zeros(rows, dtype=torch.long))
    levels = Levels(values=(*(1e3, 0.5, 0.1)[:steps], 0.0))
    sampler = MomentDraw(schedule=levels, root=PIXELS, iterations=PIXELS)
    law = exact.mean.flatten(), exact.covariance
    assert_law(run(sampler, problem, prior, Normals(rows, SHAPE)), *law)
    shrunk = last_step(replace(sampler, spread=0.0), problem, prior, Normals(rows, SHAPE))
    assert shrunk.mean is not None
    assert torch.allclose(shrunk.mean, shrunk.x), "a draw that is its mean is the best one itself"
    with pytest.raises(AssertionError, match="is off by"):
        assert_law(shrunk.x, *law)


# -- the algorithm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_a_run_equals_its_formula_in_dense_algebra(spread: float) -> None:
    """Krylov spaces by QR, the solver by least squares, the Jacobian by autograd, for one that is not symmetric."""
    sigmas, sigma_y, matrix, prior = (2.0, 0.5, 0.1, 0.0), 0.25, normal(6, PIXELS, seed=1), Bent()
    y = normal(1, 6, seed=2)
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(sigma_y), y)
    numbers = [normal(1, *SHAPE, seed=k) for k in range(1 + 3 * 3)]
    numbers[2::3] = [normal(1, 6, seed=20 + k) for k in range(3)]
    sampler = MomentDraw(schedule=Levels(values=sigmas), root=3, iterations=2, spread=spread)
    found = last_step(sampler, problem, prior, Scripted(numbers))

    means, draws = [], []
    x, script = 0.5 + sigmas[0] * numbers[0].flatten(), iter(numbers[1:])  # the middle of the value range
    for sigma, after in pairwise(sigmas):
        v, n, z = (next(script).flatten() for _ in range(3))
        d = prior.denoise(x.reshape(1, *SHAPE), sigma).flatten()
        j = torch.autograd.functional.jacobian(
            lambda u, level=sigma: prior.denoise(u.reshape(1, *SHAPE), level).flatten(), x
        ).T
        q, _ = torch.linalg.qr(torch.stack([v, j @ v, j @ j @ v], 1))
        small = (q.T @ j @ q + (q.T @ j @ q).T) / 2
        values, vectors = torch.linalg.eigh(small)
        e = spread * sigma * q @ vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T @ q.T @ v
        r = y[0] + spread * sigma_y * n - matrix @ (d + e)
        rho = sigma_y**2 / (sigma**2 * (v @ j @ v) / (v @ v))
        inverse = torch.linalg.inv(matrix.T @ matrix + rho * torch.eye(PIXELS))
        system = inverse @ (sigma_y**2 * torch.eye(PIXELS) + sigma**2 * matrix.T @ matrix @ j)
        start = inverse @ matrix.T @ r
        space = torch.stack([start, system @ start], 1)
        u = space @ torch.linalg.lstsq(system @ space, start[:, None]).solution
        x0 = d + e + sigma**2 * j @ u[:, 0]
        known = e + sigma_y**2 / rho * inverse @ matrix.T @ (spread * sigma_y * n - matrix @ e)
        means.append(x0 - known)
        draws.append(known)
        keep = (after / sigma) ** 2
        x = x0 + keep * (x - x0) + after * (1 - keep) ** 0.5 * z
    assert (found.x.flatten() - x).abs().max() < 1e-9
    assert found.mean is not None
    excess = [((x - m).square().sum() / g.square().sum() - 1).clamp(min=0) for m, g in zip(means, draws, strict=True)]
    trust = [math.prod(1 / (1 + (r / (EXCESS + 0.5)) ** 2) for r in excess[k:]) for k in range(3)]
    weights = [
        t * math.exp(-0.5 * (math.log(s / CENTRE) / WIDTH) ** 2)  # the scale of the prior is 1
        for t, s in zip(trust, sigmas, strict=False)
    ]
    average = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert (found.mean.flatten() - average).abs().max() < 1e-9


def test_conjugate_gradients_stand_in_for_singular_values() -> None:
    """In the preconditioner: the same draws where they are run to their end, others after one iteration."""
    operator, prior = GaussianBlur(std=0.8, kernel_size=3), gaussian(torch.full(SHAPE, 0.5), smooth(4, 4, std=0.2))
    hidden = LinearCallableOperator(operator, image_shape=SHAPE)
    assert operator.spectral
    assert not hidden.spectral
    y = operator(0.5 + 0.2 * normal(2, *SHAPE, seed=1))
    sampler = MomentDraw(schedule=EDM(steps=5, sigma_max=5.0, sigma_min=0.05))
    spectral, iterative, short = (
        run(s, InverseProblem(o, GaussianNoise(0.1), y), prior, Normals(2, SHAPE))
        for s, o in ((sampler, operator), (replace(sampler, inner=40), hidden), (replace(sampler, inner=1), hidden))
    )
    assert (spectral - iterative).abs().max() < 1e-6
    assert (spectral - short).abs().max() > 1e-4


def test_a_nonlinear_operator_is_linearised() -> None:
    """A linear map that does not say so gives the same draws, also of complex numbers."""
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(4, 4, std=0.2))
    y = fourier(0.5 + 0.2 * normal(2, *SHAPE, seed=1))
    sampler = MomentDraw(schedule=EDM(steps=5, sigma_max=5.0, sigma_min=0.05), pairs=0)
    linear, nonlinear = (
        run(sampler, InverseProblem(o, GaussianNoise(0.1), y, image_shape=SHAPE), prior, Normals(2, SHAPE))
        for o in (LinearCallableOperator(fourier, image_shape=SHAPE), CallableOperator(fourier, image_shape=SHAPE))
    )
    assert (linear - nonlinear).abs().max() < 1e-6


def test_products_with_the_jacobian_of_a_nonlinear_operator() -> None:
    """Of A x = exp(i x^2), and of HDR, which has no slope where it clips."""
    x, v = normal(1, *SHAPE, seed=1), normal(1, *SHAPE, seed=2)
    w = normal(1, *SHAPE, seed=3, dtype=torch.complex128)
    value, forward, adjoint = linearised(CallableOperator(lambda x: torch.exp(1j * x**2), image_shape=SHAPE), x)
    assert torch.allclose(forward(v), 2j * x * value * v)
    assert torch.allclose(adjoint(w), ((2j * x * value).conj() * w).real)
    hdr = HDR(factor=2.0)
    _, forward, adjoint = linearised(hdr, x)
    slope = torch.where((x > 0.25) & (x < 0.75), 2.0, 0.0).double()
    assert torch.equal(forward(v), slope * v)
    assert torch.equal(adjoint(v), slope * v)


def test_a_nonlinear_operator_is_averaged_about_the_estimate() -> None:
    """Where HDR clips there is a slope on average: without it, an estimate on the wrong side of the clip stays."""
    hdr, x, width = HDR(factor=2.0), torch.full((1, 1, 1, 1), 0.2).double(), 0.1
    shifts = [width * normal(1, 1, 1, 1, seed=k) for k in range(2000)]
    value, forward, adjoint = linearised(hdr, x, [*shifts, *(-s for s in shifts)])
    beyond = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(-0.5))  # 0.25 is half a standard deviation away
    assert float(forward(torch.ones_like(x))) == pytest.approx(2 * float(beyond), rel=0.1)
    assert torch.allclose(forward(x), adjoint(x))
    assert 0.01 < float(value) < 0.1
    assert float(linearised(hdr, x)[1](x)) == 0


def test_averaging_lowers_the_misfit_of_hdr() -> None:
    """By a third at least, where many values are clipped; on images of independent draws some misfit is left."""
    rows, operator = 100, HDR(factor=2.0)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(4, 4, std=0.3))
    y = operator(prior.sample(rows, torch.Generator().manual_seed(5)).reshape(rows, *SHAPE))
    problem = InverseProblem(operator, GaussianNoise(0.025), y + 0.025 * normal(rows, *SHAPE, seed=2))
    recommended = settings_for(MomentDraw, operator, problem.noise, prior).sampler
    assert isinstance(recommended, MomentDraw)
    averaged, pointwise = (
        float(problem.misfit(run(replace(recommended, pairs=pairs), problem, prior, Normals(rows, SHAPE))).mean())
        for pairs in (4, 0)
    )
    assert averaged < 2 / 3 * pointwise, (averaged, pointwise)


# -- the root ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_of_the_whole_space_is_exact(dtype: torch.dtype) -> None:
    """In float32 too, where directions that are only rounding would be blown up; and for a multiple of the identity."""
    covariance = smooth(4, 4, std=1.0)
    j = (covariance / torch.linalg.eigvalsh(covariance).max()).to(dtype)
    v = normal(50, *SHAPE, seed=1, dtype=dtype)
    for matrix, steps in ((j, PIXELS), (0.25 * torch.eye(PIXELS, dtype=dtype), 5)):
        values, vectors = torch.linalg.eigh(matrix.double())
        root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
        found, quotient = square_root(lambda x, m=matrix: (x.flatten(1) @ m).reshape(x.shape), v, steps)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        assert (found.flatten(1).double() - v.flatten(1).double() @ root).abs().max() < tolerance
        wanted = ((v.flatten(1) @ matrix) * v.flatten(1)).sum(1) / v.flatten(1).square().sum(1)
        assert torch.allclose(quotient, wanted, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_variance_of_a_root_is_exact_at_any_number_of_steps(steps: int) -> None:
    j = smooth(4, 4, std=0.5)
    v = normal(3, *SHAPE, seed=1)
    found, _ = square_root(lambda x: (x.flatten(1) @ j).reshape(x.shape), v, steps)
    assert torch.allclose(found.square().flatten(1).sum(1), ((v.flatten(1) @ j) * v.flatten(1)).sum(1))


def test_a_row_that_diverged_is_reported_and_leaves_the_others() -> None:
    v = normal(3, *SHAPE, seed=1)
    v[1, 0, 0, 0] = torch.nan
    found, _ = square_root(lambda x: 0.5 * x, v, 2)
    assert found[1].isnan().all()
    assert torch.allclose(found[::2], 0.5**0.5 * v[::2])


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Inpainting(keep=0.3), GaussianBlur(std=1.5, kernel_size=9)])
def test_it_beats_the_pseudo_inverse_on_digits(operator: Inpainting | GaussianBlur) -> None:
    """By 4 dB at least: a one and a zero, as far as strokes go; a misfit of 1 is right."""
    truth = torch.zeros(2, 1, 32, 32)
    truth[0, ..., 7:25, 14:18] = 1
    rows = torch.arange(32.0) - 15.5
    radius = ((rows[:, None] / 9) ** 2 + (rows / 6) ** 2).sqrt()
    truth[1, 0] = ((radius > 0.7) & (radius < 1.05)).float()
    y = operator(truth) + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    found = MomentDraw().sample(problem, load_prior("digits"), compute=QUIET)
    assert not found.diverged.any()
    assert ((found.misfit - 1).abs() < 0.5).all()
    error, baseline = (
        (x.clamp(0, 1) - truth).square().flatten(1).mean(1) for x in (found.samples[:, 0], operator.pinv(y))
    )
    assert float((baseline / error).log10().mean()) > 0.4


OPERATORS: dict[str, tuple[Operator, float]] = {  # with the standard deviation of the noise
    "inpainting": (Inpainting(keep=0.3), 0.05),
    "denoising": (Denoising(), 0.05),
    "super_resolution": (SuperResolution(factor=4), 0.05),
    "gaussian_blur": (GaussianBlur(), 0.05),
    "motion_blur": (MotionBlur(kernel_size=9), 0.05),
    "ct": (CT(views=20), 0.3),
    "mri": (MRI(), 0.05),
    "multicoil_mri": (MulticoilMRI(coils=4), 0.05),
    "radial_mri": (RadialMRI(spokes=12), 0.05),
    "hdr": (HDR(), 0.05),
    "nonlinear_blur": (NonlinearBlur(kernel_size=9), 0.05),
    "composition": (compose([GaussianBlur(std=1.0, kernel_size=7), HDR()]), 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_every_kind_of_operator_on_digits(name: str) -> None:
    """As `sampler=momentdraw` runs: the mean of 4 samples is 0.5 dB above the first guess, and every image fits y."""
    operator, sigma = OPERATORS[name]
    prior = load_prior("digits")
    truth = torch.cat([torch.from_numpy(image).permute(2, 0, 1)[None] for image in drawn_from_prior(2, prior=prior)[1]])
    problem = InverseProblem(operator, sigma, simulate(truth, operator, sigma), image_shape=tuple(truth.shape[1:]))
    sampler = settings_for("momentdraw", operator, problem.noise, prior).sampler
    found = sampler.sample(problem, prior, num_samples=4, compute=QUIET)
    assert not found.diverged.any()
    assert (found.misfit.mean(1) < 2.1).all()
    if problem.first_guess is not None:
        gain = [psnr(a, t) - psnr(b, t) for a, b, t in zip(found.mean, problem.first_guess, truth, strict=True)]
        assert sum(gain) / len(gain) > 0.5


class Outside(torch.autograd.Function):
    """tanh(2 x), whose VJP is computed by numpy, as a user's may be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (2 * x).tanh()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]  # one argument
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * v.detach().numpy() / np.cosh(2 * x.detach().numpy()) ** 2)


@pytest.mark.parametrize(
    ("function", "able"),
    [
        (lambda x: (2 * x).tanh(), True),
        (Outside.apply, False),
        (lambda x: torch.cat([(2 * x).tanh(), Outside.apply(x)], 1), False),  # half of its products would be lost
    ],
    ids=["torch", "numpy", "half numpy"],
)
def test_a_vjp_outside_autograd_is_refused_and_auto_takes_another(function: Any, able: bool) -> None:
    operator = as_operator(function, image_shape=SHAPE)
    problem = InverseProblem(operator, 0.05, operator(torch.full((1, *SHAPE), 0.3)), image_shape=SHAPE)
    chosen, _ = Auto().resolve(problem, WhitePrior())
    assert isinstance(chosen, MomentDraw) == able
    chosen.check(problem, WhitePrior())
    if not able:
        with pytest.raises(Unsupported, match="whose VJP autograd differentiates"):
            MomentDraw().sample(problem, WhitePrior(), compute=QUIET)


def test_auto_states_that_the_picture_has_a_spread_too_small() -> None:
    operator = Inpainting()
    problem = InverseProblem(operator, 0.05, operator(torch.full((1, *SHAPE), 0.3)))
    assert "spread is too small" in str(Auto(goal="picture").resolve(problem, WhitePrior())[1])
    assert "spread" not in str(Auto().resolve(problem, WhitePrior())[1])
