"""Samplers of codes: whole runs beside transcriptions in the papers' coordinates, and what must vanish."""

from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts.toys import COMPUTE, WhitePrior, Worded
from invdiff.operators import CallableOperator, GaussianNoise, Inpainting, SuperResolution
from invdiff.priors import GaussianPrior, LatentPrior, LinearCodec
from invdiff.problem import simulate
from invdiff.samplers import LATINO, P2L, PSLD, ReSample, Sampler
from invdiff.samplers.latent.psld import unglued
from invdiff.samplers.latent.stsl import trace_gradient
from invdiff.schedules import EDM
from invdiff.streams import Streams, key

SHAPE = (1, 8, 8)
LEVELS = EDM(steps=5, sigma_max=8.0, sigma_min=0.05)
MASK = Inpainting.random(SHAPE, keep=0.5, seed=0)
CODEC = LinearCodec(torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0], 2)


class Codes(WhitePrior):
    """Codes in other units, whose denoiser has a Jacobian that is not a multiple of one."""

    unit = 1.5

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.1 * torch.sin(x)


def problem_of(prior: LatentPrior, operator: Any = MASK, noise: float = 0.1) -> InverseProblem:
    truth = 0.4 + 0.25 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return InverseProblem(operator, GaussianNoise(noise), simulate(truth, operator, GaussianNoise(noise)))


def noises(count: int) -> list[Tensor]:
    """What a run of one sample of each of two images draws, (2, 4, 4, 4) each."""
    rng = Streams([key(0, "sample", image, 0) for image in range(2)], (4, 4, 4), "cpu", torch.float64)
    return [rng.normal() for _ in range(count)]


def test_a_prior_that_knows_the_mean_of_its_codes() -> None:
    """Its centre is shaped like codes, not like images."""
    prior = LatentPrior(GaussianPrior(torch.full((4, 4, 4), 0.4), 0.06 * torch.eye(64)), CODEC)
    assert run(PSLD.example(), problem_of(prior), prior).shape == (2, *SHAPE)


def run(sampler: Sampler, problem: InverseProblem, prior: LatentPrior) -> Tensor:
    return sampler.sample(problem, prior, compute=COMPUTE).samples[:, 0]


def test_psld_follows_the_published_algorithm() -> None:
    """In z = (x - centre) / (h sqrt(1 + (sigma / h)^2)) and images on [-1, 1], by autograd of the sum of norms."""
    prior = LatentPrior(Codes(), CODEC)
    problem, h = problem_of(prior), 1.5
    sampler = PSLD(schedule=LEVELS, omega=0.7, gamma=0.2, step="published", eta=0.0)
    draws = noises(6)
    sigmas = LEVELS.levels(prior.diffusion.scale)
    centre = prior.diffusion.centre.double()
    x = centre + sigmas[0] * draws[0]
    y, seen = 2 * problem.y, problem.observed
    for t, s in pairwise(sigmas):
        a_t, a_s = sqrt(1 + (t / h) ** 2), sqrt(1 + (s / h) ** 2)
        z = ((x - centre) / (h * a_t)).requires_grad_(True)
        with torch.enable_grad():
            clean = prior.diffusion.denoise(centre + h * a_t * z, t)
            image = 2 * CODEC.decode(clean)
            residual = torch.where(seen, y - image, 0)
            glued = CODEC.encode((image + residual) / 2) - clean
            loss = 0.7 * residual.flatten(1).norm(dim=1) + 0.2 * glued.flatten(1).norm(dim=1) / h
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        clean, z = clean.detach(), z.detach()
        z0, noise = (clean - centre) / h, (z * a_t - (clean - centre) / h) / (t / h)
        z = (z0 + s / h * noise) / a_s - gradient
        x = centre + h * a_s * z
    assert torch.allclose(run(sampler, problem, prior).double(), CODEC.decode(x), atol=1e-5)


def test_gluing_vanishes_where_codes_explain_the_data() -> None:
    z0, one = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5)), torch.ones(2)
    y = MASK(CODEC.decode(z0))
    assert unglued(InverseProblem(MASK, GaussianNoise(0.1), y), CODEC, z0, one).max() < 1e-5
    away = unglued(InverseProblem(MASK, GaussianNoise(0.1), y + 0.5), CODEC, z0, one)
    seen = MASK.measured(SHAPE).sum()  # type: ignore[union-attr]
    assert torch.allclose(away, 0.5 * seen.float().sqrt().expand(2), rtol=1e-4)  # of an orthonormal codec


def test_resample_follows_its_algorithm() -> None:
    """Beside Adam of torch, one image; constants of the paper's chain, abar = 1 / (1 + sigma^2) for codes of unit 1."""
    prior = LatentPrior(WhitePrior(), CODEC)
    problem = problem_of(prior).select(torch.tensor([0]))
    sampler = ReSample(schedule=LEVELS, every=2, from_sigma=100.0, iterations=7, gamma=3.0, eta=0.0)
    rng = Streams([key(0, "sample", 0, 0)], (4, 4, 4), "cpu", torch.float64)
    diffusion, sigmas = prior.diffusion, LEVELS.levels(prior.diffusion.scale)
    x = diffusion.centre + sigmas[0] * rng.normal()
    for k, (t, s) in enumerate(pairwise(sigmas), 1):
        abar_t, abar_s = 1 / (1 + t**2), 1 / (1 + s**2)
        clean = diffusion.denoise(x, t)
        x = clean + s / t * (x - clean)
        rng.normal()
        if k % 2 == 0 or s == 0:
            codes = clean.clone().requires_grad_(True)
            adam = torch.optim.Adam([codes], lr=0.02 * diffusion.scale, betas=(0.9, 0.99))
            for _ in range(7):
                with torch.enable_grad():
                    residual = torch.where(problem.observed, problem.y - CODEC.decode(codes), 0)
                    misfit = residual.square().sum() / 0.1**2 / int(problem.observed.sum())
                if misfit <= 1:
                    break
                adam.zero_grad()
                misfit.backward()
                adam.step()
            clean = codes.detach()
            variance = 3.0 * (1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s) / abar_s
            noise, total = rng.normal(), variance + s**2
            if s > 0:  # noqa: SIM108
                x = (variance * clean + s**2 * x) / total + sqrt(variance * s**2 / total) * noise
            else:
                x = clean
    assert torch.allclose(run(sampler, problem, prior).double(), CODEC.decode(x), atol=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_the_second_order_term_vanishes_for_gaussian_codes(sigma: float) -> None:
    root = torch.randn(64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 8
    gaussian = GaussianPrior(torch.zeros(4, 4, 4), root @ root.T + 0.01 * torch.eye(64))
    z, e = noises(2)
    assert trace_gradient(gaussian, z, sigma, 1.3, e).abs().max() < 1e-8
    assert trace_gradient(Codes(), z, sigma, 1.3, e).abs().max() > 1e-3


def test_resample_draws_from_the_product_of_two_gaussians() -> None:
    sampler, e = ReSample(gamma=2.0), torch.randn(1, 4, 100, 100, dtype=torch.float64)
    z, z0 = torch.full_like(e, 3.0), torch.full_like(e, 1.0)
    v = 2.0 * (0.5 / 0.8) ** 2 * (0.8**2 - 0.5**2)
    found = sampler.resampled(z, z0, 0.8, 0.5, e)
    mean, variance = (v * 1 + 0.25 * 3) / (v + 0.25), v * 0.25 / (v + 0.25)
    assert abs(float(found.mean()) - mean) < 0.01
    assert abs(float(found.var()) - variance) < 0.01 * 2
    assert torch.equal(sampler.resampled(z, z0, 0.8, 0.0, e), z0)


@pytest.mark.parametrize("operator", [MASK, SuperResolution(factor=2), CallableOperator(torch.tanh, image_shape=SHAPE)])
def test_hard_consistency_leaves_the_noise(operator: Any) -> None:
    """The misfit ends at 1: the data are explained to their noise, and no further."""
    prior = LatentPrior(WhitePrior(), CODEC)
    problem = problem_of(prior, operator)
    found = ReSample(iterations=300, learning_rate=0.01).sample(problem, prior, num_samples=2, compute=COMPUTE)
    assert ((found.misfit - 1).abs() < 0.2).all()


@pytest.mark.slow
def test_latino_follows_its_algorithm() -> None:
    """By a solve of (A^T A / sigma_y^2 + 1 / nu^2), diagonal for a mask; z = sqrt(abar) z0 + sqrt(1 - abar) n."""
    prior, width, h = LatentPrior(Codes(), CODEC), 0.7, 1.5
    problem = problem_of(prior)
    draws, sigmas = noises(6), LEVELS.levels(prior.diffusion.scale)
    centre = prior.diffusion.centre.double()
    seen, abars = problem.observed.double(), [1 / (1 + (s / h) ** 2) for s in sigmas]
    z = (centre / h + sigmas[0] / h * draws[0]) * sqrt(abars[0])
    for k, (abar, later) in enumerate(pairwise(abars)):
        x = CODEC.decode(prior.diffusion.denoise(h * z / sqrt(abar), sigmas[k]))
        nu2 = (width * 0.5) ** 2 * (1 - abar)  # half of the range [0, 1]
        x = (x / nu2 + torch.where(problem.observed, problem.y, 0) / 0.1**2) / (1 / nu2 + seen / 0.1**2)
        z = sqrt(later) * CODEC.encode(x) / h + sqrt(1 - later) * draws[k + 1]
    found = run(LATINO(schedule=LEVELS, width=width), problem, prior)
    assert torch.allclose(found.double(), CODEC.decode(h * z), atol=1e-5)


@pytest.mark.slow
def test_p2l_follows_its_algorithm() -> None:
    """Beside Adam of torch on the embedding; the steps of codes without their data term, which PSLD's tests have."""
    prior = LatentPrior(Worded(Codes()), CODEC)
    problem = problem_of(prior).select(torch.tensor([0]))
    sampler = P2L(schedule=LEVELS, tuned=2, learning_rate=0.1, rate=0.0, every=2, width=0.7, eta=0.0)
    rng = Streams([key(0, "sample", 0, 0)], (4, 4, 4), "cpu", torch.float64)
    diffusion, sigmas, h = prior.diffusion, LEVELS.levels(prior.diffusion.scale), 1.5
    z = diffusion.centre + sigmas[0] * rng.normal()
    words = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([words], lr=0.1, betas=(0.9, 0.999))
    for k, (t, s) in enumerate(pairwise(sigmas), 1):
        for _ in range(2):
            with torch.enable_grad():
                image = CODEC.decode(diffusion.denoise_with(z, t, words))
                loss = torch.where(problem.observed, problem.y - image, 0).norm()
            adam.zero_grad()
            loss.backward()
            adam.step()
        clean = diffusion.denoise_with(z, t, words.detach())
        if k % 2 == 0:
            nu2 = (0.7 * 0.5) ** 2 * t**2 / (h**2 + t**2)
            seen = problem.observed.double() / 0.1**2
            image = (CODEC.decode(clean) / nu2 + seen * problem.y.nan_to_num()) / (1 / nu2 + seen)
            clean = CODEC.encode(image)
        rng.normal()
        z = clean + s / t * (z - clean)
    assert words.abs().max() > 0.1
    assert torch.allclose(run(sampler, problem, prior).double(), CODEC.decode(z), atol=1e-4)


def test_p2l_needs_an_embedding() -> None:
    prior = LatentPrior(WhitePrior(), CODEC)
    with pytest.raises(ValueError, match="P2L needs a prior with an embedding of text"):
        P2L().sample(problem_of(prior), prior, compute=COMPUTE)
