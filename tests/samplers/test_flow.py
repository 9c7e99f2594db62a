"""PnP-Flow, FLOWER, FlowDPS and FLAIR: whole runs beside transcriptions in a flow's own coordinates."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts.toys import COMPUTE, WhitePrior
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting
from invdiff.problem import simulate
from invdiff.samplers import DAPS, FLAIR, FlowDPS, Flower, PnPFlow, Sampler
from invdiff.schedules import Straight
from invdiff.streams import Streams, key

SHAPE, STEPS = (1, 8, 8), 5
TIMES = Straight(steps=STEPS, t_max=0.9)
MASK = Inpainting.random(SHAPE, keep=0.5, seed=0)
H, CENTRE = 0.5, 0.5  # a flow on [-1, 1] of pictures in [0, 1]


class Curved(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.02 * torch.sin(6 * x)


PRIOR = Curved()


def destination(z: Tensor, t: float) -> Tensor:
    """Where the flow leads from z = t x + (1 - t) noise, on [-1, 1], with the image at t = 1."""
    return (PRIOR.denoise(CENTRE + H * z / t, H * (1 - t) / t) - CENTRE) / H


def problem_of(noise: float) -> InverseProblem:
    truth = 0.4 + 0.25 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return InverseProblem(MASK, GaussianNoise(noise), simulate(truth, MASK, GaussianNoise(noise)))


def stream() -> Streams:
    return Streams([key(0, "sample", 0, 0)], SHAPE, "cpu", torch.float64)


def run(sampler: Sampler, problem: InverseProblem) -> Tensor:
    return sampler.sample(problem, PRIOR, compute=COMPUTE).samples[0]


def times() -> list[float]:
    return [1 - 0.9 * (STEPS - k) / STEPS for k in range(STEPS + 1)]


def seen(problem: InverseProblem, x: Tensor) -> Tensor:
    """y - A x on [-1, 1], of x on [-1, 1]; noise is twice as large there."""
    observed = problem.observed
    assert observed is not None
    return torch.where(observed, (problem.y - CENTRE) / H - x, 0)


def test_pnpflow_follows_the_published_algorithm() -> None:
    problem, rng = problem_of(0.3), stream()
    rng.normal()
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    for t, _ in pairwise(times()):
        moved = x + (1 - t) ** 0.5 * seen(problem, x)
        noised = [t * moved + (1 - t) * rng.normal() for _ in range(2)]
        x = torch.stack([destination(z, t) for z in noised]).mean(0)
    found = run(PnPFlow(schedule=TIMES, average=2), problem)
    assert torch.allclose(found, CENTRE + H * x, atol=1e-5)  # the noise is large: nothing is left to explain


def test_flower_follows_the_published_algorithm() -> None:
    """By a solve of (1 / nu^2 + A^T A / sigma_y^2), which is diagonal for a mask."""
    problem, rng, variance = problem_of(0.1), stream(), (0.1 / H) ** 2
    start = times()[0]
    z = (1 - start) * rng.normal()
    for t, later in pairwise(times()):
        nu2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        x1 = destination(z, t)
        weight = torch.where(problem.observed, 1 / variance, 0.0)
        data = torch.where(problem.observed, (problem.y - CENTRE) / H, 0) / variance
        x1 = (x1 / nu2 + data) / (1 / nu2 + weight)
        z = later * x1 + (1 - later) * (rng.normal() if later < 1 else 0)
    found = run(Flower(schedule=TIMES, refine="mean"), problem)
    assert torch.allclose(found, CENTRE + H * z, atol=1e-5)


def test_flower_is_daps_on_the_times_of_a_flow() -> None:
    problem = problem_of(0.1)
    daps = DAPS(schedule=TIMES, ode_steps=1, prior_std=H, inner="closed_form")
    assert torch.allclose(run(Flower(schedule=TIMES), problem), run(daps, problem), atol=1e-5)


def test_flowdps_follows_the_published_algorithm() -> None:
    """With the gradient of |y - A x0| of each image on [-1, 1]."""
    problem, rng, step = problem_of(0.1), stream(), 0.3
    s = 0.9
    z = s * rng.normal()
    for t, later in pairwise(times()):
        s, after = 1 - t, 1 - later
        clean = destination(z, t)
        noise = (z - (1 - s) * clean) / s
        descended = clean
        if after > 0:
            for _ in range(3):
                leaf = descended.clone().requires_grad_(True)
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(seen(problem, leaf).norm(), leaf)
                descended = descended - step * gradient
        blended = (1 - s) * clean + s * descended
        renewed = after**0.5 * noise + (1 - after) ** 0.5 * rng.normal()
        z = (1 - after) * blended + after * renewed
    sampler = FlowDPS(schedule=TIMES, step="published", rate=step)
    assert torch.allclose(run(sampler, problem), CENTRE + H * z, atol=1e-5)


def test_times_of_a_flow() -> None:
    assert torch.allclose(Straight(steps=2, t_max=0.8).sigmas(), torch.tensor([2.0, 1 / 3, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="t_max"):
        Straight(t_max=1.0)


@pytest.mark.parametrize("sampler", [Flower(), Flower(refine="mean"), PnPFlow()])
def test_precise_data_are_explained(sampler: Sampler) -> None:
    operator = GaussianBlur(std=0.8, kernel_size=5)
    truth = 0.4 + 0.25 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    problem = InverseProblem(operator, GaussianNoise(0.002), simulate(truth, operator, GaussianNoise(0.002)))
    assert sampler.sample(problem, PRIOR, num_samples=2, compute=COMPUTE).misfit.max() < 3


@pytest.mark.slow
def test_flair_follows_the_published_algorithm() -> None:
    """In a flow's own coordinates, with Adam of torch until the misfit is 1; times below 0.4 are left out.

    The noise is large: nothing is left to explain at the end.
    """
    problem, rng, until, share = problem_of(0.3), stream(), 0.4, 0.8
    noise = rng.normal()
    mean = torch.zeros_like(noise)
    kept = [s for s in (1 - t for t in times()[:-1]) if s >= until]
    for t in kept:
        x = (1 - t) * mean + t * noise
        clean = destination(x, 1 - t)
        velocity, wanted = (x - clean) / t, noise - mean
        mean = mean - share * t * (velocity - wanted)
        leaf = mean.clone().requires_grad_(True)
        adam, iterations = torch.optim.Adam([leaf], betas=(0.9, 0.99)), 10 if t > kept[-1] else 50
        for k in range(iterations):
            adam.param_groups[0]["lr"] = 0.02 / H * 0.05 ** (k / iterations)
            with torch.enable_grad():
                misfit = seen(problem, leaf).square().sum() / (0.3 / H) ** 2 / int(problem.observed.sum())
            if misfit <= 1:
                break
            adam.zero_grad()
            misfit.backward()
            adam.step()
        mean = leaf.detach()
        end = x + (1 - t) * velocity
        noise = (1 - t) * end + (1 - (1 - t) ** 2) ** 0.5 * rng.normal()
    assert len(kept) == FLAIR(schedule=TIMES, until=until).num_steps < STEPS
    found = run(FLAIR(schedule=TIMES, until=until, rate=share, iterations=10), problem)
    assert torch.allclose(found, CENTRE + H * mean, atol=1e-5)
