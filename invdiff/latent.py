"""Inverse problems in the space of a latent prior: the samplers see codes, the user images.

    problem = latent_problem(operator, noise, y, prior)            y = A(decode(z)) + noise
    posterior = decoded(DPS().sample(problem, prior), prior)       samples of images

The composed operator is nonlinear and differentiable whatever A is, so samplers for such operators do (DPS, DAPS, ...).
Their settings in units of the range (a step along the gradient, noise levels) are in units of codes here.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invdiff.operators import Noise, as_operator
from invdiff.operators.combine.composition import compose
from invdiff.posterior import Posterior
from invdiff.priors.codecs.latent import LatentPrior
from invdiff.problem import InverseProblem


def latent_problem(operator: Any, noise: Noise, y: Tensor, prior: LatentPrior) -> InverseProblem:
    """The problem of finding codes; arguments as of `InverseProblem`, errors too."""
    if prior.shape is None:
        raise ValueError("this latent prior takes codes of any size: give its UNet a sample_size")
    decoder = as_operator(prior.decode, image_shape=prior.shape)
    return InverseProblem(compose([decoder, as_operator(operator)]), noise, y, image_shape=prior.shape)


@torch.no_grad()
def decoded(posterior: Posterior, prior: LatentPrior) -> Posterior:
    """Its samples as images, on the CPU, one decoded at a time; whether they diverged, and what they cost, stays.

    The decoder's calls within a sampler count as parts of operator calls; these do not count.
    """
    device = next(prior.parameters()).device
    codes = posterior.samples.flatten(0, 1)
    images = torch.cat([prior.decode(code[None].to(device)).cpu() for code in codes])
    return replace(posterior, samples=images.unflatten(0, posterior.samples.shape[:2]))
