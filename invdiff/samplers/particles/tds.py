"""Twisted diffusion sampler (TDS): ancestral steps pulled by the gradient of a guess at the likelihood, the "twist";
weights make up for whatever is wrong with the guess.

Paper       Wu et al., Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, NeurIPS 2023,
            arXiv:2306.17775, Algorithm 1.
Target      p(x | y) under the discrete chain of ancestral steps, exactly as the ensemble grows, for any twist and any
            number of steps; more steps bring that chain's own law to the prior's.
Needs       a differentiable operator and a differentiable prior; nonlinear operators and other noise allowed.
Cost        per step and particle: 1 forward, and but for the last step 1 VJP; 1 call of the operator and 1 product with
            its Jacobian.
Form        the twist at level s is exp(-nll(D(x, s)) / (1 + v L)): the likelihood of the clean estimate, softened by
            how far that may be from the image, v = (s prior_std)^2 / (s^2 + prior_std^2). L is the largest curvature of
            the negative log-likelihood; for y = A x + noise of variance w, the soft likelihood has noise w + v |A|^2.
Departures  the authors' twists are this with the noise of y left out and prior_std 1 for images in [-1, 1]. The clean
            estimate is not clamped. Systematic resampling as theirs, but where `resample_below` says. The last factor,
            p(y | x) over the last twist, is there, without which the limit is another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.ranges import Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Streams
from invdiff.samplers.moves import clean_estimate, largest_curvature
from invdiff.samplers.particles.base import ParticleSampler, dot, each_particle, parts_of
from invdiff.samplers.particles.weights import Weights, take
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row, row_vjp

Estimator = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class TDS(ParticleSampler):
    """Twisted diffusion sampler: guided ancestral steps with weights, exact as the ensemble grows.

    schedule   noise levels, image units
    prior_std  how far the images scatter, image units; it softens the twist at high noise. Any value leaves the limit
               the same

    ensemble, resample_below, particles_at_once  as in `ParticleSampler`
    """

    requires = Needs(differentiable=True, differentiable_prior=True)
    small: ClassVar = {
        "schedule": EDM(steps=10, sigma_max=5.0, sigma_min=0.02),
        "ensemble": 6,
        "particles_at_once": 1000,
    }

    schedule: Schedule = EDM(steps=100, sigma_max=20.0, sigma_min=0.003)
    prior_std: Positive = 0.25

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.ensemble * self.num_steps, vjps=self.ensemble * (self.num_steps - 1))

    def evolve(
        self, problem: InverseProblem, prior: Prior, rng: Streams, weights: Weights
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        sigmas = self.schedule.levels(prior.scale)
        prior_std = self.prior_std * prior.scale
        curvature = largest_curvature(problem, prior)[:, None]
        estimate = self.estimator(problem, prior, rng)
        x = prior.start(sigmas[0], rng.normal((self.ensemble, *problem.image_shape)))
        for sigma, after in pairwise(sigmas):
            softness = 1 / (1 + (sigma * prior_std) ** 2 / (sigma**2 + prior_std**2) * curvature)
            if after == 0:
                x = self.denoise(prior, x, sigma)
                nll = each_particle(lambda i, part: problem.select(i).nll(part), x, self.particles_at_once)
                weights.multiply(-nll)  # the twist of this level would come in and go out again
                yield x, x, after
                return
            x0, nll, pull = estimate(x, sigma, softness)
            weights.multiply(-softness * nll)
            ancestors = weights.resample(rng)
            x, x0, nll, pull = (take(values, ancestors) for values in (x, x0, nll, pull))

            shrink = (after / sigma) ** 2
            variance = after**2 * (1 - shrink)
            shift = (1 - shrink) * pull
            noise = rng.normal((self.ensemble, *problem.image_shape))
            x = x0 + shrink * (x - x0) + shift + variance**0.5 * noise
            # log N(x; mean, variance) - log N(x; mean + shift, variance), and the twist, which the next one replaces
            weights.multiply(-dot(shift, shift / 2 + variance**0.5 * noise) / variance + softness * nll)
            yield x, x0, after

    def estimator(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Estimator:
        """(x, sigma, softness (R, 1)) -> of all particles (R, N, ...) the clean estimates, their negative
        log-likelihoods, and how far the clean estimates move towards y in the next step.
        """

        def estimate(x: Tensor, sigma: float, softness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            parts = []
            for index, part in parts_of(x, self.particles_at_once):
                x0, pull = row_vjp(clean_estimate(prior, sigma, clip=False), part)
                nll, of_x0 = row_vjp(problem.select(index).nll, x0)
                parts.append((x0, nll.double(), pull(of_x0(torch.ones_like(nll)))))
            x0, nll, gradient = joined(parts, x)
            return x0, nll, -(sigma**2) * per_row(softness.flatten(), x) * gradient

        return estimate


def joined(parts: Sequence[tuple[Tensor, ...]], x: Tensor) -> Iterator[Tensor]:
    """What was found for parts of the particles x, (R, N, ...) each."""
    return (torch.cat(values).unflatten(0, x.shape[:2]) for values in zip(*parts, strict=True))
