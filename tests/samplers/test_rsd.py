"""RSD: the paper's loop particle by particle, and what the repulsion does."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from helpers import Remembering, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.contracts.toys import COMPUTE, WhitePrior
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting
from invdiff.samplers import RSD, REDDiff
from invdiff.schedules import VP

SHAPE = (1, 4, 4)
STEPS, PARTICLES = 15, 4


class Paper:
    """z = alpha mu + s eps on images in [-1, 1], torch's own Adam, the noise network of a Gaussian prior."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance
        kept = torch.linspace(0, 999, STEPS, dtype=torch.float64).round().long()
        self.alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[kept]

    def noise_network(self, z: Tensor, a: Tensor) -> Tensor:
        marginal = a * self.covariance + (1 - a) * torch.eye(len(self.covariance), dtype=torch.float64)
        x0 = self.mean + a.sqrt() * (z - a.sqrt() * self.mean) @ torch.linalg.solve(marginal, self.covariance)
        return (z - a.sqrt() * x0) / (1 - a).sqrt()

    def repulsion(self, mu: Tensor) -> Tensor:
        """Minus the gradient of the logarithm of the sum of kernels at each particle; mean squares over pixels."""
        distance = torch.tensor([[float((a - b).square().mean()) for b in mu] for a in mu])
        pairs = [float(distance[i, j]) for i in range(len(mu)) for j in range(len(mu)) if i != j]
        h = sorted(pairs)[(len(pairs) - 1) // 2] / math.log(len(mu))
        force = torch.zeros_like(mu)
        for i in range(len(mu)):
            kernels = [math.exp(-float(distance[i, j]) / h) for j in range(len(mu))]
            for j in range(len(mu)):
                force[i] += 2 / h * kernels[j] / sum(kernels) * (mu[i] - mu[j])
        return force

    def reconstruct(self, mu: Tensor, seen: Tensor, y: Tensor, noises: list[Tensor], gamma: float) -> Tensor:
        mu = mu.clone().requires_grad_(True)
        adam = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99), eps=1e-8 * 2 / mu.numel())
        for a, eps in zip(self.alpha_bar.flip(0), noises, strict=True):
            s = (1 - a).sqrt()
            apart = self.repulsion(mu.detach()) if len({tuple(m.tolist()) for m in mu}) > 1 else 0
            with torch.enable_grad():
                difference = (self.noise_network(a.sqrt() * mu + s * eps, a) - eps - gamma * s * apart).detach()
                loss = ((y - mu) * seen).square().mean() / 2 + 0.25 * s / a.sqrt() * (difference * mu).mean()
                adam.zero_grad()
                loss.backward()
            adam.step()
        return mu.detach()


def test_a_run_equals_the_paper() -> None:
    mean, covariance = 0.3 * normal(16, seed=1), smooth(4, 4, std=0.6)
    seen = torch.arange(16) % 3 == 0
    y = torch.where(seen, 0.6 * normal(16, seed=2), 0)
    noises = [normal(PARTICLES, 16, seed=20 + k) for k in range(STEPS)]
    prior = Remembering(gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4))
    y_unit = torch.where(seen, (y + 1) / 2, torch.nan).reshape(1, *SHAPE)
    problem = InverseProblem(Inpainting(mask=seen.reshape(1, *SHAPE)), GaussianNoise(0.05), y_unit)
    sampler = RSD(
        schedule=VP(steps=STEPS),
        learning_rate=0.05,
        lam=0.25,
        data_term="published",
        ensemble=PARTICLES,
        repulsion=0.7,
    )
    start = torch.where(seen, y, 0).expand(PARTICLES, 16)
    theirs = Paper(mean, covariance).reconstruct(start, seen.double(), y, noises, gamma=0.7)
    script = Scripted(n.reshape(1, PARTICLES, *SHAPE) for n in noises)
    with torch.no_grad():
        *_, last = sampler.iterate(problem, prior, script)  # type: ignore[arg-type]
    assert (2 * last.x.flatten() - 1 - theirs[0]).abs().max() < 1e-8
    apart = Paper(mean, covariance).reconstruct(start, seen.double(), y, noises, gamma=0.0)
    assert (apart - theirs).abs().max() > 1e-2, "the repulsion must matter for the comparison to mean anything"


def small_problem() -> InverseProblem:
    blur = GaussianBlur(std=1.0, kernel_size=5)
    return InverseProblem(blur, GaussianNoise(0.1), blur(torch.full((2, 1, 8, 8), 0.4)))


def test_one_particle_is_red_diff() -> None:
    problem, schedule = small_problem(), VP(steps=20)
    one = RSD(schedule=schedule, ensemble=1).sample(problem, WhitePrior(), compute=COMPUTE).samples
    assert torch.equal(one, REDDiff(schedule=schedule).sample(problem, WhitePrior(), compute=COMPUTE).samples)


def test_repulsion_widens_what_the_data_leave_open() -> None:
    """Pixels that were not measured scatter more with it; and with two particles as well."""
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[..., 0] = True
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(0.1), 0.4 * mask.float())
    spread = {}
    for particles, repulsion in ((2, 0.0), (2, 1.0), (4, 1.0)):
        sampler = replace(RSD(schedule=VP(steps=40)), ensemble=particles, repulsion=repulsion)
        samples = sampler.sample(problem, WhitePrior(), num_samples=40, compute=COMPUTE).samples[0]
        spread[particles, repulsion] = float(samples.var(0)[..., 1:].mean())
    assert spread[2, 1.0] > 1.2 * spread[2, 0.0]
    assert spread[4, 1.0] > 1.2 * spread[2, 0.0]
