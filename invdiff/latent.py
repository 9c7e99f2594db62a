"""Inverse problems in the space of a latent prior: samplers work on codes, results are images.

    problem = latent_problem(operator, noise, y, prior)            y = A(decode(z)) + noise
    posterior = decoded(DPS().sample(problem, prior), prior)       samples of images

The composed operator is nonlinear and differentiable for every differentiable A, so it needs a sampler for such
operators (DPS, DAPS, ...). Settings in image units (step along the gradient, noise levels) are in units of codes here.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invdiff.operators import Noise, as_operator
from invdiff.operators.combine.composition import Composition, compose
from invdiff.posterior import Posterior
from invdiff.priors.codecs.latent import LatentPrior
from invdiff.problem import InverseProblem


def latent_problem(operator: Any, noise: Noise, y: Tensor, prior: LatentPrior) -> InverseProblem:
    """The problem whose unknowns are codes; arguments and errors as of `InverseProblem`."""
    if prior.shape is None:
        raise ValueError("latent prior: codes must have a fixed size; give its UNet a sample_size")
    decoder = as_operator(prior.decode, image_shape=prior.shape)
    return InverseProblem(compose([decoder, as_operator(operator)]), noise, y, image_shape=prior.shape)


@torch.no_grad()
def decoded(posterior: Posterior, prior: LatentPrior) -> Posterior:
    """The samples of a `latent_problem` as images, decoded one at a time, and the problem as one of images.

    Divergence and cost are those of the codes; the calls of the decoder here are not counted.
    """
    device = next(prior.parameters()).device
    codes = posterior.samples.flatten(0, 1)
    images = torch.cat([prior.decode(code[None].to(device)).cpu() for code in codes])
    problem = posterior.problem
    assert isinstance(problem.operator, Composition)
    _, operator = problem.operator.operators
    of_images = InverseProblem(operator, problem.noise, problem.y, image_shape=tuple(images.shape[1:]))
    return replace(posterior, samples=images.unflatten(0, posterior.samples.shape[:2]), problem=of_images)
