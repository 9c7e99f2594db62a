"""Learners of a mixture of Gaussians and of a network."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.engine.driver import Compute, Event
from invdiff.learning.em import Learner, LearningPlan
from invdiff.learning.steps import refit
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.training.mixture_fit import LEAST_IMAGES, MixtureRecipe
from invdiff.priors.training.training import Recipe, Trainer
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler


class MixtureLearner(Learner):
    """Learns a mixture of low-rank Gaussians; both steps are exact up to the randomness of the draws.

    recipe  components, rank, batch, noise floor and seed; its bounds are not used
    """

    def __init__(self, plan: LearningPlan, recipe: MixtureRecipe, problem: InverseProblem, folder: Path) -> None:
        super().__init__(plan, problem, folder)
        n, count = math.prod(problem.image_shape), self.problem.images
        if recipe.rank >= n:
            raise ValueError(f"rank must be < {n}, the number of values of an image, got {recipe.rank}")
        if count < recipe.components * LEAST_IMAGES:
            raise ValueError(
                f"components={recipe.components} need >= {recipe.components * LEAST_IMAGES} measurements that are not "
                f"held out, got {count}; take fewer components or more measurements"
            )
        self.recipe = recipe

    @property
    def kind(self) -> dict[str, Any]:
        return {"prior": "mixture", "components": self.recipe.components, "rank": self.recipe.rank}

    def fit(self, images: Tensor, prior: Prior | None, report: Callable[[float], None]) -> LowRankMixturePrior:
        assert prior is None or isinstance(prior, LowRankMixturePrior)
        return refit(self.recipe, images, prior, self.round, self.plan.iterations, self.folder)


class NetworkLearner(Learner):
    """Learns a network: posterior samples by a sampler, and a training on them with the bounds of `recipe` per round.

    sampler  of the E-step; the paper's is MMPS
    compute  where and how it runs
    """

    def __init__(
        self,
        plan: LearningPlan,
        recipe: Recipe,
        problem: InverseProblem,
        folder: Path,
        *,
        sampler: Sampler,
        compute: Compute | None = None,
    ) -> None:
        super().__init__(plan, problem, folder)
        shape = tuple(problem.image_shape)
        if recipe.shape is None or tuple(recipe.shape) != shape or not recipe.crop == shape[1] == shape[2]:
            raise ValueError(
                f"a network learns from whole images: recipe.shape must be {list(shape)} and recipe.crop its side, got "
                f"{recipe.shape} and {recipe.crop}"
            )
        self.recipe, self.sampler = recipe, sampler
        self.compute = compute or Compute(progress=False)

    @property
    def kind(self) -> dict[str, Any]:
        return {"prior": "network", "unet": json.dumps(self.recipe.unet.as_dict())}

    def draw(self, prior: Prior, report: Callable[[float], None]) -> Tensor:
        if isinstance(prior, ClosedFormPrior):  # the Gaussian that it starts from
            return super().draw(prior, report)

        def on_step(event: Event) -> None:
            done = int(event.image.min()) + len(event.image) * (event.index + 1) / event.total
            report(done / self.problem.images)

        found = self.sampler.sample(self.problem, prior, seed=self.seed, compute=self.compute, callback=on_step)
        return torch.where(found.diverged[..., None, None, None], torch.nan, found.samples)[:, 0].cpu()

    def fit(self, images: Tensor, prior: Prior | None, report: Callable[[float], None]) -> EDMPrior:
        # The trainer divides by 255, as for 8-bit pictures; these are floats, and may leave [0, 1].
        pictures = list(255 * images.permute(0, 2, 3, 1).numpy())
        validation = pictures[: min(self.recipe.held_out, len(pictures) // 4)]
        assert prior is None or isinstance(prior, EDMPrior)
        recipe = replace(self.recipe, seed=self.recipe.seed + self.round)
        folder = self.folder / "network"
        trainer = Trainer(recipe, pictures[len(validation) :], validation, folder, init=prior)
        found = trainer.run(lambda step, loss: report(min(1.0, trainer.progress())))
        for left in folder.iterdir():
            left.unlink()  # the next round must not resume this one
        folder.rmdir()
        return found.cpu()
