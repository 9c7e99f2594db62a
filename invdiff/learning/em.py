"""Learning a prior from measurements alone, by expectation-maximisation.

Paper       Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS 2024,
            arXiv:2405.13712, Algorithm 1.
Round       E: an image x_i ~ p(x | y_i) of every measurement, under the prior of the round before. M: the prior is
            fitted anew to these images. The likelihood of the measurements grows, but for the randomness of the draws.
Start       rounds with a single Gaussian of many directions, from the mean and the scatter of the pseudo-inverses.
E-step      exact where the prior is in closed form, by a sampler (MMPS) where it is a network.
M-step      a mixture takes a few iterations of EM on the images, a network a training that starts from its weights.
Departures  the paper fits its Gaussian by the same kind of rounds, with MMPS; here these are exact. Of a mixture the
            round that explains the held-out measurements best is kept, of a network the last one.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.engine.driver import Compute, Event
from invdiff.operators import Inpainting, LinearOperator
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.closed_form.base import ClosedFormPrior, gaussian
from invdiff.priors.closed_form.low_rank_pixels import draws_given_pixels, evidence_of_pixels
from invdiff.priors.library import load_prior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.training.mixture_fit import LEAST_IMAGES, Components, MixtureFit, MixtureRecipe
from invdiff.priors.training.training import Recipe, Trainer
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler
from invdiff.streams import generator

LEAST = 8  # measurements
BATCH = 64  # of them at a time


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """How long to learn.

    gaussian_rounds  rounds with a single Gaussian, of which the others start
    gaussian_rank    directions of that Gaussian; fewer where there are few pixels, or few measurements
    rounds           rounds of the prior itself
    iterations       of EM on the images of one round, for a mixture
    minutes          no round begins after these
    held_out         measurements that are scored and never fitted
    """

    gaussian_rounds: int = 8
    gaussian_rank: int = 64
    rounds: int = 16
    iterations: int = 2
    minutes: float = 60.0
    held_out: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gaussian_rounds", "gaussian_rank", "rounds", "iterations", "held_out"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"learning: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"learning: minutes must be positive and finite, got {self.minutes}")


class Learner(ABC):
    """Learns from the measurements of a problem, in `folder`: `prior.safetensors`, `checkpoint.pt`, `log.jsonl`.

    problem  N measurements of N images, linear and with Gaussian noise; best with an operator that has parameters of
             its own for every image, for what no measurement sees cannot be learned

    A run that was stopped goes on: from the last round that was finished, and within a round from its images if these
    had been drawn. Raises ValueError for other problems, and for too few measurements.
    """

    def __init__(self, plan: LearningPlan, problem: InverseProblem, folder: Path) -> None:
        _check_problem(plan, problem)
        self.plan, self.folder = plan, folder
        chosen = np.linspace(0, problem.images - 1, plan.held_out).round().astype(int)
        self.held_out_index = torch.from_numpy(chosen)
        rest = np.setdiff1d(np.arange(problem.images), chosen)
        self.problem, self.held_out = problem.select(torch.from_numpy(rest)), problem.select(self.held_out_index)
        self.round, self.seconds, self.best = 0, 0.0, -math.inf
        self.prior: Prior | None = None
        self.rows: list[dict[str, Any]] = []

    # -- what a prior has to bring -------------------------------------------------------------------------------------

    def draw(self, prior: Prior, told: Callable[[float], None]) -> Tensor:
        """The E-step: an image of every measurement, (N, C, H, W); NaN where a sample diverged."""
        assert isinstance(prior, ClosedFormPrior)
        return exact_draws(prior, self.problem, self.seed, told)

    @abstractmethod
    def fit(self, images: Tensor, prior: Prior | None, told: Callable[[float], None]) -> Prior:
        """The M-step; `prior` is that of the round before, None in the first round after the Gaussian."""

    @property
    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""

    # -- the rounds ----------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Rounds, the Gaussian ones included."""
        return self.plan.gaussian_rounds + self.plan.rounds

    def run(
        self,
        on_round: Callable[[dict[str, Any]], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Prior:
        """Round after round. Returns the prior that was kept.

        on_round     told of each: a row of the log
        on_progress  told of the share of all that is done
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "checkpoint.pt").exists():
            self.resume()
        clock = time.monotonic() - self.seconds
        while self.round < self.total and self.seconds < 60 * self.plan.minutes:
            simple = self.round < self.plan.gaussian_rounds
            images = self._images(lambda share: self._tell(on_progress, share / 2))
            sound = images.flatten(1).isfinite().all(1)
            if not bool(sound.any()):
                raise FloatingPointError(f"round {self.round + 1}: every posterior sample diverged")
            images = images[sound]
            if simple:
                self.prior = self._gaussian(images)
            else:
                before = None if self.round == self.plan.gaussian_rounds else self.prior
                self.prior = self.fit(images, before, lambda share: self._tell(on_progress, 0.5 + share / 2))
            self.round += 1
            self.seconds = time.monotonic() - clock
            row = self._finish(simple, diverged=int((~sound).sum()))
            if on_round is not None:
                on_round(row)
        return load_prior(weights=self.folder / "prior.safetensors")

    def _tell(self, on_progress: Callable[[float], None] | None, share: float) -> None:
        if on_progress is not None:
            on_progress((self.round + share) / self.total)

    def _images(self, told: Callable[[float], None]) -> Tensor:
        """The images of this round: those that an interrupted run has left, or new ones."""
        path = self.folder / "images.pt"
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if kept["round"] == self.round and len(kept["images"]) == self.problem.images:
                return kept["images"]
        if self.prior is None:
            self.prior = first_guess(self.problem)
        images = self.draw(self.prior, told)
        _replace(path, {"round": self.round, "images": images})
        return images

    @property
    def seed(self) -> int:
        """Of the draws of this round: every round has its own."""
        return 1_000_003 * self.plan.seed + self.round

    def _gaussian(self, images: Tensor) -> LowRankMixturePrior:
        # With fewer images for a direction it would fit their noise, and believe itself in the next round.
        rank = max(1, min(self.plan.gaussian_rank, images[0].numel() - 1, len(images) // 8))
        recipe = MixtureRecipe(components=1, rank=rank, channels=images.shape[1])
        return refit(recipe, images, None, self.round, 1, self.folder)

    def _finish(self, simple: bool, diverged: int) -> dict[str, Any]:
        """Score the round on what was held out, log it, and save."""
        assert self.prior is not None
        score = None
        if isinstance(self.prior, ClosedFormPrior):
            score = float(evidence(self.prior, self.held_out).mean())
            if not math.isfinite(score):
                raise FloatingPointError(
                    f"round {self.round}: the evidence of the held-out measurements became {score}"
                )
        row = {
            "round": self.round,
            "prior": "gaussian" if simple else str(self.kind["prior"]),
            "minutes": round(self.seconds / 60, 2),
            "held_out": None if score is None else round(score, 3),
            "diverged": diverged,
        }
        if self.round == self.plan.gaussian_rounds + 1:
            self.best = -math.inf  # a Gaussian of many directions would win over what it is only the start of
        if score is None or score > self.best:
            self.best = -math.inf if score is None else score
            _save(self.prior, self.folder / "prior.safetensors")
        last = self.folder / "last.safetensors"
        _save(self.prior, last, dtype=torch.float32)
        self.prior = load_prior(weights=last)  # so that a run that stops here goes on with the same digits
        self.rows.append(row)
        state = {
            "round": self.round,
            "seconds": self.seconds,
            "best": self.best,
            "kind": self._whole_kind(),
            "rows": json.dumps(self.rows),
        }
        _replace(self.folder / "checkpoint.pt", state)
        (self.folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        (self.folder / "images.pt").unlink(missing_ok=True)
        return row

    def resume(self) -> None:
        """Go on from `checkpoint.pt`; the bounds may have changed since, the prior and the measurements may not."""
        path = self.folder / "checkpoint.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("kind") != self._whole_kind():
            raise ValueError(
                f"{path} holds another run: {state.get('kind', 'one on images')}, this one is {self._whole_kind()}; "
                "choose another output folder, or remove that one"
            )
        self.round, self.seconds, self.best = state["round"], state["seconds"], state["best"]
        self.rows = json.loads(state["rows"])
        self.prior = load_prior(weights=self.folder / "last.safetensors")

    def _whole_kind(self) -> dict[str, Any]:
        shape = list(self.problem.image_shape)
        return self.kind | {"measurements": self.problem.images + self.held_out.images, "shape": shape}


class MixtureLearner(Learner):
    """Learns a mixture of low-rank Gaussians: both steps are exact, but for the draws.

    recipe  its components, rank, batch, noise floor and seed count; its bounds do not
    """

    def __init__(self, plan: LearningPlan, recipe: MixtureRecipe, problem: InverseProblem, folder: Path) -> None:
        super().__init__(plan, problem, folder)
        n, count = math.prod(problem.image_shape), self.problem.images
        if recipe.rank >= n:
            raise ValueError(f"rank={recipe.rank} must be less than the {n} values of an image")
        if count < recipe.components * LEAST_IMAGES:
            raise ValueError(
                f"components={recipe.components} need at least {recipe.components * LEAST_IMAGES} measurements beside "
                f"those held out, got {count}; take fewer components or more measurements"
            )
        self.recipe = recipe

    @property
    def kind(self) -> dict[str, Any]:
        return {"prior": "mixture", "components": self.recipe.components, "rank": self.recipe.rank}

    def fit(self, images: Tensor, prior: Prior | None, told: Callable[[float], None]) -> LowRankMixturePrior:
        assert prior is None or isinstance(prior, LowRankMixturePrior)
        return refit(self.recipe, images, prior, self.round, self.plan.iterations, self.folder)


class NetworkLearner(Learner):
    """Learns a network: posterior samples by a sampler, and a training on them, which `recipe` bounds for each round.

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
                f"a network learns from measurements of whole images: recipe.shape must be {list(shape)} and "
                f"recipe.crop its side, got {recipe.shape} and {recipe.crop}"
            )
        self.recipe, self.sampler = recipe, sampler
        self.compute = compute or Compute(progress=False)

    @property
    def kind(self) -> dict[str, Any]:
        return {"prior": "network", "unet": json.dumps(self.recipe.unet.as_dict())}

    def draw(self, prior: Prior, told: Callable[[float], None]) -> Tensor:
        if isinstance(prior, ClosedFormPrior):  # the Gaussian that it starts from
            return super().draw(prior, told)

        def on_step(event: Event) -> None:
            done = int(event.image.min()) + len(event.image) * (event.index + 1) / event.total
            told(done / self.problem.images)

        found = self.sampler.sample(self.problem, prior, seed=self.seed, compute=self.compute, callback=on_step)
        return torch.where(found.diverged[..., None, None, None], torch.nan, found.samples)[:, 0].cpu()

    def fit(self, images: Tensor, prior: Prior | None, told: Callable[[float], None]) -> EDMPrior:
        # The trainer takes 8-bit pictures; images are no integers, and may leave [0, 1], here.
        pictures = list(255 * images.permute(0, 2, 3, 1).numpy())
        validation = pictures[: min(self.recipe.held_out, len(pictures) // 4)]
        assert prior is None or isinstance(prior, EDMPrior)
        recipe = replace(self.recipe, seed=self.recipe.seed + self.round)
        folder = self.folder / "network"
        trainer = Trainer(recipe, pictures[len(validation) :], validation, folder, init=prior)
        found = trainer.run(lambda step, loss: told(min(1.0, trainer.progress())))
        for left in folder.iterdir():
            left.unlink()  # the next round is no continuation of this one
        folder.rmdir()
        return found.cpu()


# -- the steps ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def first_guess(problem: InverseProblem) -> LowRankMixturePrior:
    """A round Gaussian with the mean and the scatter of the pseudo-inverses of all measurements."""
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
    prior: ClosedFormPrior, problem: InverseProblem, seed: int, told: Callable[[float], None] | None = None
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
        if told is not None:
            told(done / problem.images)
    return torch.cat(draws)


@torch.no_grad()
def evidence(prior: ClosedFormPrior, problem: InverseProblem) -> Tensor:
    """log p(y) of every measurement, (N,)."""
    if _fast(prior, problem):
        assert isinstance(prior, LowRankMixturePrior)
        return evidence_of_pixels(prior, problem.y, *_pixels(problem))
    return torch.stack([prior.log_evidence(problem.select(torch.tensor([i]))) for i in range(problem.images)])


def _fast(prior: Prior, problem: InverseProblem) -> bool:
    """Whether all images can be had at once; what `posterior` does one by one gives the same."""
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
    """The mixture after some iterations of EM on these images, from `prior`, or from k-means.

    number  of the round, which has random numbers of its own
    """
    # One of the images stands in for those held out, which are scored by `MixtureFit.validate` alone.
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


# -- files and checks --------------------------------------------------------------------------------------------------


def _save(prior: Prior, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """A stop in the middle leaves the file as it was."""
    assert isinstance(prior, (LowRankMixturePrior, EDMPrior))
    partial = path.with_name(path.name + ".partial")
    prior.save(partial, dtype=dtype)
    partial.replace(path)


def _replace(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _check_problem(plan: LearningPlan, problem: InverseProblem) -> None:
    if not problem.operator.linear:
        raise ValueError(
            f"learning from measurements needs a linear operator, {type(problem.operator).__name__} is not"
        )
    if not gaussian(problem.noise):
        raise ValueError(f"learning from measurements needs Gaussian noise, got {type(problem.noise).__name__}")
    if problem.images < plan.held_out + LEAST:
        raise ValueError(
            f"learning needs at least {LEAST} measurements beside the {plan.held_out} held out, got {problem.images} "
            "in all"
        )
