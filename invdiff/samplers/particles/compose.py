"""Products of priors, sampled exactly: annealing, products of experts, geometric averages.

Paper  that of `fkc.py`, whose correctors these are.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from invdiff.priors import Prior
from invdiff.samplers.particles.base import dot
from invdiff.samplers.particles.cloud import Cloud
from invdiff.samplers.particles.fkc import log_integral
from invdiff.samplers.particles.weights import Weights, take
from invdiff.schedules import EDM, Schedule
from invdiff.streams import Streams, key

SCHEDULE = EDM(steps=100, sigma_max=40.0, sigma_min=0.002)


def compose(
    priors: Sequence[Prior],
    powers: Sequence[float],
    shape: tuple[int, ...],
    *,
    schedule: Schedule = SCHEDULE,
    ensemble: int = 64,
    resample_below: float = 0.5,
    seed: int = 0,
    chains: int = 1,
) -> Cloud:
    """The paper's other densities: p_1(x)^b_1 p_2(x)^b_2 ..., normalised, by the same correctors.

    One prior and b: annealed. Powers 1 and 1: a product of experts. Powers 1 - w and w: a geometric average, which is
    classifier-free guidance made exact.

    priors  each a `Prior` of images of this (C, H, W), on one device; the unit of the schedule is that of the first
    powers  b, of positive sum

    Returns `chains` clouds of `ensemble` particles; `log_evidence` is the log of the integral of the product. Raises
    ValueError where priors and powers do not match.
    """
    if len(priors) != len(powers) or not sum(powers) > 0:
        raise ValueError(f"compose: one power for each prior, of positive sum, got {len(priors)} and {list(powers)}")
    for prior in priors:
        reason = prior.mismatch(shape)
        if reason is not None:
            raise ValueError(f"compose: {reason}")
    rng = Streams([key(seed, "generate", chain) for chain in range(chains)], (ensemble, *shape))
    sigmas = schedule.levels(priors[0].scale)
    # At high noise the product is a Gaussian about the mean of the centres.
    centre = sum(power * prior.centre for prior, power in zip(priors, powers, strict=True)) / sum(powers)
    x = centre + sigmas[0] / sum(powers) ** 0.5 * rng.normal()
    weights = Weights(chains, ensemble, resample_below)
    weights.multiply(log_integral(sum(powers), sigmas[0], math.prod(shape)))
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            step = sigma**2 - after**2
            scores = [prior.score(x.flatten(0, 1), sigma).unflatten(0, x.shape[:2]) for prior in priors]
            score = sum(power * part for power, part in zip(powers, scores, strict=True))
            squares = sum(power * dot(part, part) for power, part in zip(powers, scores, strict=True))
            weights.multiply(step / 2 * (dot(score, score) - squares))
            x = x + step * score + step**0.5 * rng.normal()
            if after > 0:
                x = take(x, weights.resample(rng))
    return Cloud(x, weights.log_weights, weights.log_evidence, weights.ess, weights.resamplings)
