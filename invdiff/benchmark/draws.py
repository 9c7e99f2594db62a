"""As many posterior draws of an image as are wanted: of independent runs, or one cloud."""

from dataclasses import replace

import torch

from invdiff.engine.driver import Callback, Compute
from invdiff.posterior import Posterior
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import ParticleSampler, Sampler
from invdiff.samplers.particles.weights import systematic, take


def draws(
    sampler: Sampler,
    problem: InverseProblem,
    prior: Prior,
    count: int,
    *,
    clouds: bool,
    particles: int | None = None,
    seed: int = 0,
    first_image: int = 0,
    compute: Compute | None = None,
    callback: Callback | None = None,
) -> Posterior:
    """`count` draws of every image: of independent runs, or with `clouds`, of a particle filter, those of one cloud.

    A cloud has `count` particles, or `particles`, resampled to `count` of equal weights at the end (systematically:
    each comes as often as its weight says, rounded up or down). They have ancestors in common and are no independent
    draws. A cloud that is lost has diverged as a whole.
    """
    if not (clouds and isinstance(sampler, ParticleSampler)):
        return sampler.sample(
            problem,
            prior,
            num_samples=count,
            seed=seed,
            first_image=first_image,
            compute=compute,
            callback=callback,
        )
    found, cloud = replace(sampler, ensemble=particles or count).sample_and_cloud(
        problem, prior, seed=seed, first_image=first_image, compute=compute, callback=callback
    )
    middle = torch.full((len(cloud.weights),), 0.5, dtype=torch.float64)
    samples = take(cloud.particles, systematic(cloud.weights, middle, count))
    return Posterior(samples, found.diverged_at.expand(-1, count).contiguous(), found.cost, problem)
