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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.learning.steps import evidence, exact_draws, first_guess, refit
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.library import load_prior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.training.mixture_fit import MixtureRecipe
from invdiff.problem import InverseProblem

LEAST = 8  # measurements to fit


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """How long to learn.

    gaussian_rounds  rounds with a single Gaussian, the start of the others
    gaussian_rank    directions of that Gaussian; fewer for few pixels or measurements
    rounds           rounds of the prior itself
    iterations       of EM on the images of one round, for a mixture
    minutes          time after which no round begins
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
                raise ValueError(f"learning: {name} must be an integer >= 1, got {getattr(self, name)}")
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"learning: minutes must be positive and finite, got {self.minutes}")


class Learner(ABC):
    """Learns from the measurements of a problem, in `folder`: `prior.safetensors`, `checkpoint.pt`, `log.jsonl`.

    problem  N measurements of N images, linear and with Gaussian noise; best with an operator that has parameters per
             image, for components of the images in the null space of all operators cannot be learned

    An interrupted run resumes after its last complete round, and within a round from the images of the E-step. Raises
    ValueError for other problems, and for too few measurements.
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

    # -- steps of a kind of prior --------------------------------------------------------------------------------------

    def draw(self, prior: Prior, report: Callable[[float], None]) -> Tensor:
        """The E-step: an image of every measurement, (N, C, H, W); NaN where a sample diverged."""
        assert isinstance(prior, ClosedFormPrior)
        return exact_draws(prior, self.problem, self.seed, report)

    @abstractmethod
    def fit(self, images: Tensor, prior: Prior | None, report: Callable[[float], None]) -> Prior:
        """The M-step; `prior` is that of the round before, None in the first round after the Gaussian."""

    @property
    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """Settings that must agree between a checkpoint and the run that resumes it."""

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
        """All rounds. Returns the prior that was kept.

        on_round     called after each with its row of the log
        on_progress  called with the share of the run that is done
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

    def _images(self, report: Callable[[float], None]) -> Tensor:
        """The images of this round: those of an interrupted run, or new ones."""
        path = self.folder / "images.pt"
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if kept["round"] == self.round and len(kept["images"]) == self.problem.images:
                return kept["images"]
        if self.prior is None:
            self.prior = first_guess(self.problem)
        images = self.draw(self.prior, report)
        _replace(path, {"round": self.round, "images": images})
        return images

    @property
    def seed(self) -> int:
        """Seed of the draws of this round."""
        return 1_000_003 * self.plan.seed + self.round

    def _gaussian(self, images: Tensor) -> LowRankMixturePrior:
        # With fewer images per direction it would fit their noise, and repeat it in the next round.
        rank = max(1, min(self.plan.gaussian_rank, images[0].numel() - 1, len(images) // 8))
        recipe = MixtureRecipe(components=1, rank=rank, channels=images.shape[1])
        return refit(recipe, images, None, self.round, 1, self.folder)

    def _finish(self, simple: bool, diverged: int) -> dict[str, Any]:
        """Score the round on the held-out measurements, log it, and save."""
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
            self.best = -math.inf  # a Gaussian of many directions, the start alone, would score best
        if score is None or score > self.best:
            self.best = -math.inf if score is None else score
            _save(self.prior, self.folder / "prior.safetensors")
        last = self.folder / "last.safetensors"
        _save(self.prior, last, dtype=torch.float32)
        self.prior = load_prior(weights=last)  # so that a resumed run has the same digits
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
        """Resume from `checkpoint.pt`; the bounds may differ, the prior and the measurements may not."""
        path = self.folder / "checkpoint.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("kind") != self._whole_kind():
            raise ValueError(
                f"{path} must belong to this run, {self._whole_kind()}, got {state.get('kind', 'a run on images')}; "
                "choose another output folder, or remove that one"
            )
        self.round, self.seconds, self.best = state["round"], state["seconds"], state["best"]
        self.rows = json.loads(state["rows"])
        self.prior = load_prior(weights=self.folder / "last.safetensors")

    def _whole_kind(self) -> dict[str, Any]:
        shape = list(self.problem.image_shape)
        return self.kind | {"measurements": self.problem.images + self.held_out.images, "shape": shape}


# -- files and checks --------------------------------------------------------------------------------------------------


def _save(prior: Prior, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Atomic: an interruption leaves the file unchanged."""
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
        raise ValueError(f"learning from measurements needs a linear operator, got {type(problem.operator).__name__}")
    if not problem.noise.gaussian:
        raise ValueError(f"learning from measurements needs Gaussian noise, got {type(problem.noise).__name__}")
    if problem.images < plan.held_out + LEAST:
        raise ValueError(
            f"learning needs >= {plan.held_out + LEAST} measurements, of which {plan.held_out} are held out, got "
            f"{problem.images}"
        )
