"""The run of a benchmark: every sampler on the same measurements, in batches that are safe as soon as they are done.

Killed at any moment, it goes on where the store ends: what is in the store is not computed again, what is not was never
counted. With several ranks each takes every n-th batch; all of them append to the same store.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from invdiff.driver import Compute, Event
from invdiff.evaluation.capacity import out_of_memory
from invdiff.evaluation.grid import Grid, Measurements
from invdiff.evaluation.plan import Planner, Run
from invdiff.evaluation.provenance import provenance
from invdiff.evaluation.ranks import Ranks
from invdiff.evaluation.scores import aligned, missing_scores, score_images
from invdiff.evaluation.store import Store
from invdiff.io import write_image
from invdiff.io.atomic import write_atomically
from invdiff.metrics import for_json
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem
from invdiff.progress import progress_bar

THUMBNAIL = 128  # pixels, the longer side


@dataclass(frozen=True)
class Save:
    """What is kept besides rows, of batches that are computed from now on.

    reconstructions  samples, mean, std, y and x of every batch, in `reconstructions/`, an .npz file each
    thumbnails       truth, first guess, mean and a sample of the first so many images, small PNG in `thumbnails/`
    """

    reconstructions: bool = False
    thumbnails: int = 0


@dataclass
class Outcome:
    """What a run of a benchmark did.

    rows     how many were computed now, by all ranks
    errors   what stopped runs of this rank before all their images were done
    reasons  the same in words, of all ranks, by the fingerprint of the run
    """

    rows: int = 0
    errors: list[Exception] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def run_benchmark(
    grid: Grid,
    folder: Path,
    *,
    compute: Compute,
    save: Save,
    vjp_weight: float | None = None,
    ranks: Ranks,
    say: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Compute what is missing of a grid in a folder, which no other run may write to (`only_run`).

    vjp_weight  cost of a VJP through the network in forwards; None: measured
    say         told what a user should know: what was found in the folder, what was set aside

    An exception in one run ends this run alone and is returned; whatever keeps rows from being stored ends everything.
    Nothing that is stored is ever lost.
    """
    store = Store(folder)
    plan: list[Run] = []
    if ranks.first:
        store.open()
        for message in store.messages:
            say(message)
        plan = Planner(grid, store, compute, vjp_weight=vjp_weight, ranks=ranks.count).plan()
    plan = ranks.from_first(plan)
    outcome = _Worker(grid, store, compute, save, ranks).work(plan)
    found = ranks.gather((outcome.rows, outcome.reasons))
    outcome.rows = sum(rows for rows, _ in found)
    outcome.reasons = {run: reason for _, reasons in found for run, reason in reasons.items()}
    return outcome


class _Worker:
    """Computes the batches of one rank."""

    def __init__(self, grid: Grid, store: Store, compute: Compute, save: Save, ranks: Ranks) -> None:
        self.grid, self.store, self.compute, self.save, self.ranks = grid, store, compute, save, ranks
        self.origin = provenance(compute.resolve_device())

    def work(self, plan: Sequence[Run]) -> Outcome:
        outcome = Outcome()
        shares = self._shares(plan)
        total = sum(run.cost * len(images) * self.grid.num_samples for run in plan for images in shares[run.id])
        measurements: Measurements | None = None
        with _GridBar(total, show=self.compute.progress and self.ranks.first) as bar:
            for run in plan:
                if not shares[run.id]:
                    continue
                task = self.grid.tasks[run.task]
                if measurements is None or measurements.task is not task:
                    measurements = Measurements(self.grid, task)
                bar.begin(f"{run.label} on {task.label}", run, self.grid.num_samples)
                outcome.rows += self._work_on(run, shares[run.id], measurements, bar, outcome)
        return outcome

    def _shares(self, plan: Sequence[Run]) -> dict[str, list[tuple[int, ...]]]:
        """The batches of this rank: every n-th of all."""
        every = [(run.id, images) for run in plan for images in run.batches]
        shares: dict[str, list[tuple[int, ...]]] = {run.id: [] for run in plan}
        for run_id, images in every[self.ranks.rank :: self.ranks.count]:
            shares[run_id].append(images)
        return shares

    def _work_on(
        self,
        run: Run,
        batches: Sequence[tuple[int, ...]],
        measurements: Measurements,
        bar: "_GridBar",
        outcome: Outcome,
    ) -> int:
        """Compute and store batches of one run; how many rows. Batches are halved once they have not fitted."""
        rows, stored = run.rows, 0
        waiting = list(batches)
        while waiting:
            images = waiting.pop(0)
            at_once = max(1, rows // self.grid.num_samples)
            if len(images) > at_once:
                waiting[:0] = [images[k : k + at_once] for k in range(0, len(images), at_once)]
                continue
            try:
                batch = self._batch(run, images, rows, measurements, bar)
            except Exception as error:
                rows = min(rows, len(images) * self.grid.num_samples)
                if rows == 1 or not out_of_memory(error):
                    error.add_note(f"{run.label} on {self.grid.tasks[run.task].label}")
                    outcome.errors.append(error)
                    outcome.reasons[run.id] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    bar.skip([images, *waiting])
                    return stored
                rows //= 2
                batch = None
            if batch is None:  # out of the clause above: its error holds on to the memory
                self._remember(run, rows)
                waiting.insert(0, images)
                bar.back()
                continue
            self._write(run, batch)
            bar.stored(images)
            stored += len(batch.rows)
        return stored

    def _batch(
        self, run: Run, images: tuple[int, ...], rows: int, measurements: Measurements, bar: "_GridBar"
    ) -> "_Batch":
        grid = self.grid
        problem = measurements.problem(images)
        posterior = run.sampler.sample(
            problem,
            grid.prior,
            num_samples=grid.num_samples,
            seed=grid.seed,
            first_image=images[0],
            compute=replace(self.compute, max_rows=rows, progress=False),
            callback=bar.step,
        )
        truth = grid.images.truth[list(images)]
        batch = _Batch(images, problem, posterior, truth, [grid.images.names[i] for i in images])
        batch.rows = self._rows(run, batch, measurements)
        return batch

    def _rows(self, run: Run, batch: "_Batch", measurements: Measurements) -> list[dict[str, Any]]:
        grid, posterior, problem = self.grid, batch.posterior, batch.problem
        baseline = measurements.baseline(problem, batch.images)
        notes = missing_scores(problem, batch.truth)
        if None in baseline:
            notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no first guess"
        if grid.num_samples == 1:
            notes["diversity"] = "needs num_samples of 2 or more"
        count = posterior.diverged.numel()
        shared = {
            "run": run.id,
            "sampler": run.label,
            "operator": measurements.task.label,
            "seed": grid.seed,
            "vjp_weight": run.vjp_weight,
            "rows_at_once": count,
            "forwards": posterior.cost.forwards / count,
            "vjps": posterior.cost.vjps / count,
            "operator_calls": posterior.cost.operator_calls / count,
            "seconds": posterior.cost.seconds / count,
            "peak_memory_mb": posterior.cost.peak_memory_mb,
            "created": datetime.now(UTC),
            "notes": json.dumps(notes),
            **self.origin,
        }
        scores = score_images(problem, posterior, batch.truth, grid.prior.value_range)
        rows = []
        for k, (i, of_image) in enumerate(zip(batch.images, scores, strict=True)):
            of_all = {
                "image": i,
                "image_key": grid.images.keys[i],
                "name": grid.images.names[i],
                "psnr_mean": of_image.psnr_mean,
                "diversity": of_image.diversity,
                "baseline_psnr": for_json(baseline[k]),
            }
            for s, of_sample in enumerate(of_image.samples):
                at = int(posterior.diverged_at[k, s])
                scored = {name: for_json(value) for name, value in (of_sample or {}).items()}
                rows.append(shared | of_all | scored | {"sample": s, "diverged_at": None if at < 0 else at})
        return rows

    def _remember(self, run: Run, rows: int) -> None:
        """Of this rank; what is measured on another one is remembered there."""
        record = self.store.record(run.id)
        if record is not None:
            self.store.write_record(record | {"rows_at_once": rows})

    # -- what is written -----------------------------------------------------------------------------------------------

    def _write(self, run: Run, batch: "_Batch") -> None:
        """The rows come last: where they are, all the rest is."""
        if self.save.reconstructions:
            self._write_arrays(run, batch)
        if batch.images[0] < self.save.thumbnails and batch.truth.dim() == 4:
            self._write_thumbnails(run, batch)
        self.store.append(batch.rows)

    def _write_arrays(self, run: Run, batch: "_Batch") -> None:
        together = aligned(batch.problem, batch.posterior)
        data = io.BytesIO()
        np.savez_compressed(
            data,
            samples=batch.posterior.samples.numpy(),
            mean=together.mean.numpy(),
            std=together.std.numpy(),
            y=batch.problem.y.numpy(),
            x=batch.truth.numpy(),
            names=np.array(batch.names),
            images=np.array(batch.images),
        )
        folder = self.store.folder / "reconstructions"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{run.id}-{batch.images[0]:06d}.npz", data.getvalue())

    def _write_thumbnails(self, run: Run, batch: "_Batch") -> None:
        facing = aligned(batch.problem, batch.posterior, batch.truth)
        pictures = {"truth": batch.truth, "mean": facing.mean, "sample": facing.samples[:, 0]}
        with torch.no_grad():
            guess = batch.problem.operator.first_guess(batch.problem.y)
        if guess is not None:
            pictures["guess"] = guess
        folder = self.store.folder / "thumbnails"
        folder.mkdir(exist_ok=True)
        low, high = self.grid.prior.value_range
        for what, stack in pictures.items():
            for i, picture in zip(batch.images, stack, strict=True):
                if i < self.save.thumbnails and picture.isfinite().all():
                    write_image(folder / f"{run.id}-{i:06d}-{what}.png", _small((picture - low) / (high - low)))


@dataclass
class _Batch:
    """Images of a run as they come out."""

    images: tuple[int, ...]
    problem: InverseProblem
    posterior: Posterior
    truth: Tensor
    names: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)


def _small(image: Tensor) -> Tensor:
    """(C, H, W) with its longer side at most that of a thumbnail."""
    scale = THUMBNAIL / max(image.shape[-2:])
    if scale >= 1:
        return image
    size = [max(1, round(n * scale)) for n in image.shape[-2:]]
    return torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


class _GridBar:
    """One bar over the whole grid, in network calls: the time that is left is that of all of it."""

    def __init__(self, total: float, *, show: bool) -> None:
        self.bar: tqdm = progress_bar(max(1, round(total)), "call", "benchmark", show=show, steady=True)
        self.before = self.now = 0.0
        self.per_step = self.per_image = 0.0

    def __enter__(self) -> "_GridBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def begin(self, what: str, run: Run, num_samples: int) -> None:
        self.bar.set_description(what, refresh=False)
        self.per_step, self.per_image = run.cost / run.sampler.num_steps, run.cost * num_samples

    def step(self, event: Event) -> None:
        self._to(self.now + self.per_step * len(event.image))

    def back(self) -> None:
        self._to(self.before)

    def stored(self, images: Sequence[int]) -> None:
        self.before += self.per_image * len(images)
        self._to(self.before)

    def skip(self, batches: Sequence[Sequence[int]]) -> None:
        for images in batches:
            self.stored(images)

    def _to(self, now: float) -> None:
        self.now = now
        self.bar.update(round(now) - self.bar.n)
