"""Both steps of expectation-maximisation in closed form: exact draws, the evidence, and fits of mixtures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from invdiff.operators import Inpainting, LinearOperator
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.closed_form.low_rank_pixels import draws_given_pixels, evidence_of_pixels
from invdiff.priors.training.mixture_fit import Components, MixtureFit, MixtureRecipe
from invdiff.problem import InverseProblem
from invdiff.streams import generator

BATCH = 64  # measurements at a time


@torch.no_grad()
def first_guess(problem: InverseProblem) -> LowRankMixturePrior:
    """An isotropic Gaussian with the mean and the variance of the pseudo-inverses of all measurements."""
    assert isinstance(problem.operator, LinearOperator)  # `_check_problem`
    images = []
    for index in torch.arange(problem.images).split(256):
        part = problem.select(index)
        assert isinstance(part.operator, LinearOperator)
        y = part.y if part.observed is None else torch.where(part.observed, part.y, 0)
        images.append(part.operator.pinv(y))
    stack = torch.cat(images)
    mean = stack.mean(0)
    spread = (stack - mean).square().mean().sqrt().clamp(min=1e-6)
    return LowRankMixturePrior(torch.ones(1), mean[None], torch.zeros(1, mean.numel(), 1), spread[None])


@torch.no_grad()
def exact_draws(
    prior: ClosedFormPrior, problem: InverseProblem, seed: int, report: Callable[[float], None] | None = None
) -> Tensor:
    """One exact draw from p(x | y) for every measurement, (N, C, H, W); that of measurement i depends on (seed, i)."""
    streams = [generator(seed, "sample", i) for i in range(problem.images)]
    draws: list[Tensor] = []
    done = 0
    for index in torch.arange(problem.images).split(BATCH):
        part = problem.select(index)
        if _fast(prior, part):
            assert isinstance(prior, LowRankMixturePrior)
            sources = streams[done : done + len(index)]
            draws.append(draws_given_pixels(prior, part.y, *_pixels(part), sources))
        else:
            for i in range(len(index)):
                posterior = prior.posterior(part.select(torch.tensor([i])))
                draws.append(posterior.sample(1, streams[done + i]))
        done += len(index)
        if report is not None:
            report(done / problem.images)
    return torch.cat(draws)


@torch.no_grad()
def evidence(prior: ClosedFormPrior, problem: InverseProblem) -> Tensor:
    """log p(y) of every measurement, (N,)."""
    if _fast(prior, problem):
        assert isinstance(prior, LowRankMixturePrior)
        return evidence_of_pixels(prior, problem.y, *_pixels(problem))
    return torch.stack([prior.log_evidence(problem.select(torch.tensor([i]))) for i in range(problem.images)])


def _fast(prior: Prior, problem: InverseProblem) -> bool:
    """Whether there is an algorithm for batches, with the results of `posterior` for each image."""
    return isinstance(prior, LowRankMixturePrior) and isinstance(problem.operator, Inpainting)


def _pixels(problem: InverseProblem) -> tuple[Tensor, Tensor]:
    """Mask of the measured pixels (B, C, H, W), and the noise."""
    assert problem.observed is not None
    return problem.observed.expand(problem.y.shape), problem.noise_variance.sqrt()


def refit(
    recipe: MixtureRecipe,
    images: Tensor,
    prior: LowRankMixturePrior | None,
    number: int,
    iterations: int,
    folder: Path,
) -> LowRankMixturePrior:
    """The mixture after `iterations` of EM on these images, from `prior`, or from k-means.

    number  of the round, which seeds its random numbers
    """
    # `MixtureFit.validate`, the only user of held-out images, is not called: one image stands in for them.
    fit = MixtureFit(replace(recipe, seed=recipe.seed + 1009 * number), images, images[:1], folder)
    if prior is not None:
        fit.components = Components(
            weights=prior.weights.to(fit.images.device, torch.float64),
            means=prior.means.flatten(1).to(fit.images),
            directions=prior.directions.mT.to(fit.images).contiguous(),
            variances=prior.variances.to(fit.images.device),
            noise=prior.rest.to(fit.images.device),
        )
    for _ in range(iterations):
        joint = fit.start() if fit.components is None else fit.joint(fit.images)
        fit.components = fit.maximise(fit.responsibilities(joint)[0])
        fit.iteration += 1
    assert fit.components is not None
    return fit.components.prior(fit.shape)
