"""LGD: a run by autograd through the mean of likelihoods, and the limit of many draws."""

import torch
from torch import Tensor

from helpers import Dense, Levels, Normals, Scripted, gaussian, normal, smooth
from invdiff import InverseProblem
from invdiff.operators import GaussianNoise
from invdiff.samplers import LGD, PiGDM

SHAPE = (1, 3, 3)


def test_a_run_is_the_gradient_of_a_mean_of_likelihoods() -> None:
    """D_y = D + s^2 grad_x log(mean_i p(y | D + r e_i)), no longer than Bayes' rule along it asks for."""
    matrix, y = normal(4, 9, seed=1), normal(2, 4, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(3, 3, std=0.4))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.8), y)
    numbers = [normal(2, *SHAPE, seed=k) for k in range(13)]
    sampler = LGD(schedule=Levels(values=(5.0, 1.0, 0.2, 0.0)), draws=3, prior_std=0.4)
    with torch.no_grad():
        found = list(sampler.iterate(problem, prior, Scripted(numbers)))  # type: ignore[arg-type]
    sigmas = [2 * prior.unit * level for level in (5.0, 1.0, 0.2, 0.0)]
    x, script = 0.5 + sigmas[0] * numbers[0], iter(numbers[1:])
    lengths = []
    for step, t, s in zip(found, sigmas, sigmas[1:], strict=False):
        spread = 0.4 * 2 * prior.unit
        shifts = [t * spread / (t**2 + spread**2) ** 0.5 * next(script) for _ in range(3)]

        def mean_of(x: Tensor, t: float = t, shifts: list[Tensor] = shifts) -> tuple[Tensor, Tensor]:
            d = prior.denoise(x, t)
            squares = [(y - (d + e).flatten(1) @ matrix.T).square().sum(1) / (2 * 0.8**2) for e in shifts]
            return torch.stack([(-q).exp() for q in squares]).mean(0).log().sum(), d

        x = x.requires_grad_(True)
        value, d = mean_of(x)
        slope, gradient = torch.autograd.grad(value, (d, x))
        change, d, x = t**2 * gradient, d.detach(), x.detach()
        r, pushed = y - d.flatten(1) @ matrix.T, change.flatten(1) @ matrix.T
        prior_cost = 0.8**2 * (slope * change).flatten(1).sum(1)
        length = ((pushed * r).sum(1) / (pushed.square().sum(1) + prior_cost)).clamp(0, 1)
        lengths.append(length)
        tau = 1 - (s / t) ** 2
        guided = d + length.reshape(-1, 1, 1, 1) * change
        x = x - tau * (x - guided) + s * tau**0.5 * next(script)
        assert (step.x - x).abs().max() < 1e-6
    assert torch.cat(lengths).mean() > 0.1  # not compared at lengths of 0 alone


def test_many_draws_are_pigdm() -> None:
    """With a white Gaussian of width s, whose D and covariance are those that both assume."""
    matrix, y = 0.5 * normal(1, 9, seed=1), normal(1, 1, seed=2)
    prior = gaussian(torch.full(SHAPE, 0.5), 0.3**2 * torch.eye(9))
    problem = InverseProblem(Dense(matrix, SHAPE), GaussianNoise(0.5), y)
    x, s, wide = 0.5 + normal(1, *SHAPE, seed=4), 0.7, 0.3 / (2 * prior.unit)
    levels = Levels(values=(s / (2 * prior.unit), 0.0))
    wanted = next(PiGDM(schedule=levels, prior_std=wide).iterate(problem, prior, Scripted([(x - 0.5) / s, x])))  # type: ignore[arg-type]
    sampler = LGD(schedule=levels, prior_std=wide, draws=2000)
    with torch.no_grad():
        found = sampler.guided(problem, prior, Normals(1, SHAPE))(x, s)  # type: ignore[arg-type]
    change = wanted.x - prior.denoise(x, s)
    assert (found - wanted.x).abs().max() < 0.05 * change.abs().max()
