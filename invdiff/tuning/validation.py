"""Scores of a sampler's settings on validation images: one number for each image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from invdiff.benchmark.grid import Images
from invdiff.benchmark.images import Source, load_images
from invdiff.io import BadInput, Slicing
from invdiff.posterior import Posterior
from invdiff.priors import Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.problem import InverseProblem
from invdiff.scores import metrics
from invdiff.scores.distances import energy_distance
from invdiff.scores.proper import FEWEST, crps, energy_score
from invdiff.streams import generator

Score = Literal["energy_score", "crps", "psnr", "lpips", "misfit", "truth"]
SCORES: dict[str, str] = {
    "energy_score": "energy score, image units",
    "crps": "CRPS, image units",
    "psnr": "PSNR of the posterior mean, dB",
    "lpips": "LPIPS of the samples",
    "misfit": "distance of the misfit to 1",
    "truth": "energy distance to the exact posterior, image units",
}
EXACT_DRAWS = 256  # of the exact posterior of each image


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation images, apart from those of every test, and their score.

    problem  of all of them
    truth    (B, C, H, W), image units
    seed     of measurements and samples; the same random numbers for every trial
    batch    images between two looks at the score
    """

    problem: InverseProblem
    truth: Tensor
    prior: Prior
    score: Score
    num_samples: int
    seed: int
    batch: int

    @property
    def higher_is_better(self) -> bool:
        return self.score == "psnr"

    def scorer(self) -> Callable[[InverseProblem, Posterior, Sequence[int]], list[float]]:
        """Score images, by their indices, from their samples, none of which diverged.

        Raises BadInput, with the reason, where this score cannot be computed.
        """
        if self.score not in get_args(Score):
            raise BadInput(f"score must be one of {', '.join(get_args(Score))}, got {self.score}")
        if self.score in ("energy_score", "crps"):
            if self.num_samples < FEWEST:
                raise BadInput(
                    f"score={self.score}: num_samples must be >= {FEWEST}, for of fewer it is mostly noise, "
                    f"got {self.num_samples}"
                )
            return partial(self._proper, energy_score if self.score == "energy_score" else crps)
        if self.score == "lpips":
            reason = metrics.lpips_unavailable(self.problem.image_shape)
            if reason is not None:
                raise BadInput(f"score=lpips: {reason}")
            return self._lpips
        if self.score == "truth":
            exact = self._exact_draws()
            return lambda problem, posterior, images: [
                energy_distance(x, exact[i], generator(self.seed, "generate", i, 2)).value
                for x, i in zip(posterior.samples, images, strict=True)
            ]
        return self._psnr if self.score == "psnr" else self._misfit

    def _proper(
        self,
        score: Callable[[Tensor, Tensor], float | None],
        problem: InverseProblem,
        posterior: Posterior,
        images: Sequence[int],
    ) -> list[float]:
        truth = self.truth[list(images)]
        pairs = zip(posterior.facing(truth).samples, truth, strict=True)
        return [math.nan if (value := score(x, t)) is None else value for x, t in pairs]

    def _psnr(self, problem: InverseProblem, posterior: Posterior, images: Sequence[int]) -> list[float]:
        truth = self.truth[list(images)]
        mean = problem.operator.align(posterior.mean, truth)
        return [metrics.psnr(x, t, self.prior.value_range) for x, t in zip(mean, truth, strict=True)]

    def _lpips(self, problem: InverseProblem, posterior: Posterior, images: Sequence[int]) -> list[float]:
        truth, found = self.truth[list(images)], []
        for x in posterior.samples.unbind(1):
            moved = problem.operator.align(x, truth)
            found.append(
                [metrics.lpips_distance(a, b, self.prior.value_range) for a, b in zip(moved, truth, strict=True)]
            )
        return np.mean(found, 0).tolist()

    def _misfit(self, problem: InverseProblem, posterior: Posterior, images: Sequence[int]) -> list[float]:
        return (posterior.misfit.mean(1) - 1).abs().tolist()

    def _exact_draws(self) -> list[Tensor]:
        """Draws of the exact posterior of every image, made before the prior is moved to the device."""
        if not isinstance(self.prior, ClosedFormPrior):
            raise BadInput(
                f"score=truth needs a prior in closed form, such as prior=digits_mixture; {type(self.prior).__name__} "
                "has no exact posterior"
            )
        if self.num_samples < 2:
            raise BadInput("score=truth compares distributions: num_samples must be >= 2")
        try:
            return [
                self.prior.posterior(self.problem.select(torch.tensor([i]))).sample(
                    EXACT_DRAWS, generator(self.seed, "generate", i, 1)
                )
                for i in range(len(self.truth))
            ]
        except ValueError as error:
            raise BadInput(f"score=truth: {error}") from error

    def batches(self) -> list[list[int]]:
        """The images of each batch, by their indices."""
        every = list(range(len(self.truth)))
        return [every[start : start + self.batch] for start in every[:: self.batch]]


def validation_images(
    source: Source, prior: Prior, count: int, *, slicing: Slicing | None, size: int | None, seed: int
) -> tuple[Images, str]:
    """Images that no test sees, and the split in words: draws with another seed, or the last `count` of a folder."""
    found = load_images([source], prior, {}, slicing=slicing, size=size, seed=seed)
    if source.drawn:
        return found, f"validation: {count} images drawn from the prior with seed {seed}; no other seed draws them"
    there, names = len(found), list(found.names)
    if source.files is None:
        return found, f"validation: {' and '.join(names)}, all images of data=; test on other images"
    if there < count:
        raise BadInput(f"images={count}, but there are {there} in {source.files}")
    last = slice(there - count, None)
    found = replace(found, truth=found.truth[last], names=names[last], keys=found.keys[last])
    words = f"validation: the last {count} of {there} images in {source.files}, {found.names[0]} to {names[-1]}"
    others = f"the others: images={there - count} of benchmark takes them" if there > count else "others"
    return found, f"{words}; test on {others}"
