"""The grid of a benchmark: samplers, tasks and images; every pair of sampler and task is a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from invdiff._version import __version__
from invdiff.benchmark.budget import Budget
from invdiff.fingerprint import Settings, fingerprint, settings_of
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate
from invdiff.samplers import ParticleSampler, Sampler
from invdiff.samplers.settings import as_config
from invdiff.scores.of_images import baseline_psnr
from invdiff.scores.truth import Exact

ELSEWHERE = "runs/again/${now:%Y-%m-%d_%H-%M-%S}"  # in its own folder a run would find nothing left to compute
KEPT_BYTES = 2**30  # of measurements, so that those of a slow operator are made once and not for every sampler


@dataclass(frozen=True)
class Images:
    """True images.

    truth     (B, C, H, W), image units
    names     of each
    keys      fingerprint of each
    settings  of their source, as JSON; without the number of images
    """

    truth: Tensor
    names: Sequence[str]
    keys: Sequence[str]
    settings: Settings

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Task:
    """An operator with its noise.

    settings  both as JSON, files by their contents
    config    both as nodes of a configuration, where they come from one
    """

    label: str
    operator: Operator
    noise: Noise
    settings: Settings
    config: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A sampler under a label.

    on  the sampler with other settings, by the labels of tasks
    """

    label: str
    sampler: Sampler
    on: Mapping[str, Sampler] = field(default_factory=dict)

    def for_task(self, label: str) -> Sampler:
        return self.on.get(label, self.sampler)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Samplers x operators x images, with one prior, one seed and as many samples of each image for all.

    prior_settings  the prior as JSON, its weights included
    budgets         besides own settings: run every sampler with as many steps as each of these buys
    own             run the samplers with their own settings
    config          the resolved configuration that it was made from, if there is one
    clouds          of a particle filter, the samples of an image are one cloud of as many particles; otherwise each is
                    a draw of a cloud of its own
    """

    entries: Sequence[Entry]
    tasks: Sequence[Task]
    images: Images
    prior: Prior
    prior_settings: Settings
    num_samples: int = 1
    seed: int = 0
    budgets: Sequence[Budget] = ()
    own: bool = True
    clouds: bool = False
    config: Settings | None = None

    def prepared(self, sampler: Sampler) -> Sampler:
        """The sampler as it is run: with `clouds`, a particle filter has as many particles as there are samples."""
        if self.clouds and isinstance(sampler, ParticleSampler):
            return replace(sampler, ensemble=self.num_samples)
        return sampler

    def runs_of(self, sampler: Sampler) -> int:
        """Independent runs of a sampler for one image."""
        return 1 if self.clouds and isinstance(sampler, ParticleSampler) else self.num_samples

    def settings(self, sampler: Sampler, task: Task, precision: str) -> Settings:
        """Everything that determines the rows of a sampler on a task, except the images."""
        return {
            "sampler": settings_of(sampler),
            **task.settings,
            "prior": self.prior_settings,
            "data": self.images.settings,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "precision": precision,
            "invdiff": __version__,
            **({"clouds": True} if self.clouds else {}),
        }

    def config_of(self, label: str, sampler: Sampler, task: Task) -> Settings:
        """The configuration that makes one run alone, of a sampler under this label with all its settings."""
        return {
            **(self.config or {}),
            "samplers": [{label: as_config(sampler)}],
            "operators": [{task.label: task.config["operator"]}],
            "noise": task.config["noise"],
            "recommended": False,
            "budget": {**(self.config or {})["budget"], "own": True, "calls": [], "seconds": []},
            "output": ELSEWHERE,
        }


def in_effect(operator: Operator, settings: Any) -> Settings:
    """Values that an operator chose for settings that were null: plain attributes of the same name."""
    if not isinstance(settings, Mapping):  # tasks made in Python may describe it in another way
        return {}
    found = {key: getattr(operator, key, None) for key, given in settings.items() if given is None}
    return {key: value for key, value in found.items() if isinstance(value, (int, float, str))}


# Settings in which the runs of one comparison may differ.
OF_THE_SAMPLER = ("sampler", "precision", "invdiff")


def task_of(settings: Mapping[str, Any]) -> str:
    """Fingerprint of the settings that the runs of one comparison share."""
    return fingerprint({key: value for key, value in settings.items() if key not in OF_THE_SAMPLER})


@dataclass
class Measurements:
    """Problems of parts of a task's images, scores of the first guess and exact posteriors, made once."""

    grid: Grid
    task: Task
    _y: dict[int, Tensor] = field(default_factory=dict)
    _baseline: dict[int, float | None] = field(default_factory=dict)
    _exact: dict[int, Exact] = field(default_factory=dict)
    _bytes: int = 0

    def forget(self) -> None:
        """Free the memory."""
        for kept in (self._y, self._baseline, self._exact):
            kept.clear()
        self._bytes = 0

    def problem(self, images: Sequence[int]) -> InverseProblem:
        """The problem of these images; raises ValueError, with the reason, where the task cannot measure them."""
        task, truth = self.task, self.grid.images.truth
        y = torch.cat([self._measured(i) for i in images])
        index = torch.tensor(images)
        return InverseProblem(
            task.operator.select(index), task.noise.select(index), y, image_shape=tuple(truth.shape[1:])
        )

    def _measured(self, i: int) -> Tensor:
        if i in self._y:
            return self._y[i]
        y = simulate(self.grid.images.truth[i : i + 1], self.task.operator, self.task.noise, self.grid.seed, index=[i])
        if self._bytes + y.nbytes <= KEPT_BYTES:
            self._y[i] = y
            self._bytes += y.nbytes
        return y

    def exact(self, i: int) -> Exact:
        """The exact posterior of an image; raises ValueError, with the reason, where there is none."""
        if i in self._exact:
            return self._exact[i]
        grid = self.grid
        exact = Exact.of(self.problem([i]), grid.prior, grid.num_samples, seed=grid.seed, image=i)
        if self._bytes + exact.draws.nbytes <= KEPT_BYTES:
            self._exact[i] = exact
            self._bytes += exact.draws.nbytes
        return exact

    def baseline(self, problem: InverseProblem, images: Sequence[int]) -> list[float | None]:
        """PSNR of the first guess of each of these images; None where the operator has none."""
        missing = [k for k, i in enumerate(images) if i not in self._baseline]
        if missing:
            index = torch.tensor(missing)
            truth = self.grid.images.truth[[images[k] for k in missing]]
            found = baseline_psnr(problem.select(index), truth, self.grid.prior.value_range)
            for k, score in zip(missing, [None] * len(missing) if found is None else found, strict=True):
                self._baseline[images[k]] = score
        return [self._baseline[i] for i in images]
