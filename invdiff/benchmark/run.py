"""The run of a benchmark: every sampler on the same measurements, in batches that are safe as soon as they are done.

Killed at any moment, it goes on where the store ends: what is in the store is not computed again, what is not was never
counted. With several ranks each takes every n-th batch; all of them append to the same store.
"""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from invdiff.benchmark.capacity import out_of_memory
from invdiff.benchmark.draws import draws
from invdiff.benchmark.grid import Grid, Measurements
from invdiff.benchmark.lock import Lock
from invdiff.benchmark.loggers import Logger, Several
from invdiff.benchmark.pictures import MAPS, PICTURES, THUMBNAILS, file_name, pictures, save_map
from invdiff.benchmark.plan import Planner, Run
from invdiff.benchmark.provenance import provenance
from invdiff.benchmark.ranks import Ranks
from invdiff.benchmark.store import Store
from invdiff.engine.driver import Compute, Event
from invdiff.engine.progress import progress_bar
from invdiff.io import write_image
from invdiff.io.atomic import write_atomically
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem
from invdiff.scores.metrics import for_json, mean_of
from invdiff.scores.of_images import missing_scores, score_images
from invdiff.scores.truth import DISTANCES, distances_to, missing_truth

LOGGED = ("psnr", "psnr_mean", "ssim", "lpips", "misfit", "diversity", "baseline_psnr", "seconds")


@dataclass(frozen=True)
class Save:
    """What is kept besides rows, of batches that are computed from now on.

    reconstructions  samples, mean, std, y and x of every batch, in `reconstructions/`, an .npz file each
    thumbnails       pictures of the first so many images, small PNG in `thumbnails/`: truth, measurement, first guess,
                     a sample, the mean, its error and the standard deviation
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
    logger: Logger | None = None,
    lock: Lock | None = None,
) -> Outcome:
    """Compute what is missing of a grid in a folder, which no other run may write to.

    vjp_weight  cost of a VJP through the network in forwards; None: measured
    say         told what a user should know: what was found in the folder, what was set aside
    logger      told of every batch that this rank has stored
    lock        how the first rank holds the folder; None: nobody else knows of it

    An exception in one run ends this run alone and is returned; whatever keeps rows from being stored ends everything.
    Nothing that is stored is ever lost.
    """
    store = Store(folder)
    plan: list[Run] = []
    if ranks.first:
        with nullcontext() if lock is None else lock.turn():
            store.open(alone=lock is None or lock.alone)
            for message in store.messages:
                say(message)
            plan = Planner(grid, store, compute, vjp_weight=vjp_weight, ranks=ranks.count).plan()
            if lock is not None:
                lock.claim(run.id for run in plan if run.batches)
    plan = ranks.from_first(plan)
    outcome = _Worker(grid, store, compute, save, ranks, logger or Several()).work(plan)
    found = ranks.gather((outcome.rows, outcome.reasons))
    outcome.rows = sum(rows for rows, _ in found)
    outcome.reasons = {run: reason for _, reasons in found for run, reason in reasons.items()}
    return outcome


class _Worker:
    """Computes the batches of one rank."""

    def __init__(self, grid: Grid, store: Store, compute: Compute, save: Save, ranks: Ranks, logger: Logger) -> None:
        self.grid, self.store, self.compute, self.save, self.ranks = grid, store, compute, save, ranks
        self.logger, self.logged = logger, 0
        self.origin = provenance(compute.resolve_device())

    def work(self, plan: Sequence[Run]) -> Outcome:
        outcome = Outcome()
        shares = self._shares(plan)
        runs_of = self.grid.runs_of
        total = sum(run.cost * len(images) * runs_of(run.sampler) for run in plan for images in shares[run.id])
        measurements: Measurements | None = None
        with _GridBar(total, show=self.compute.progress and self.ranks.first) as bar:
            for run in plan:
                if not shares[run.id]:
                    continue
                task = self.grid.tasks[run.task]
                if measurements is None or measurements.task is not task:
                    measurements = Measurements(self.grid, task)
                bar.begin(f"{run.label} on {task.label}", run, runs_of(run.sampler))
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
        rows, stored, rows_each = run.rows, 0, self.grid.runs_of(run.sampler)
        waiting = list(batches)
        while waiting:
            images = waiting.pop(0)
            at_once = max(1, rows // rows_each)
            if len(images) > at_once:
                waiting[:0] = [images[k : k + at_once] for k in range(0, len(images), at_once)]
                continue
            try:
                batch = self._batch(run, images, rows, measurements, bar)
            except Exception as error:
                rows = min(rows, len(images) * rows_each)
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
            self._log(run, batch)
            bar.stored(images)
            stored += len(batch.rows)
        return stored

    def _batch(
        self, run: Run, images: tuple[int, ...], rows: int, measurements: Measurements, bar: "_GridBar"
    ) -> "_Batch":
        grid = self.grid
        problem = measurements.problem(images)
        posterior = draws(
            run.sampler,
            problem,
            grid.prior,
            grid.num_samples,
            clouds=grid.clouds,
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
        distances, reasons = self._distances(batch, measurements)
        notes |= reasons
        if grid.num_samples == 1:
            notes["diversity"] = notes["coverage"] = "needs num_samples of 2 or more"
        count = posterior.diverged.numel()
        shared = {
            "run": run.id,
            "sampler": run.label,
            "operator": measurements.task.label,
            "seed": grid.seed,
            "vjp_weight": run.vjp_weight,
            "rows_at_once": len(batch.images) * grid.runs_of(run.sampler),
            "forwards": posterior.cost.forwards / count,
            "vjps": posterior.cost.vjps / count,
            "operator_calls": posterior.cost.operator_calls / count,
            "seconds": posterior.cost.seconds / count,
            "peak_memory_mb": posterior.cost.peak_memory_mb,
            "created": datetime.now(UTC),
            "notes": json.dumps(notes),
            **self.origin,
        }
        scores = score_images(posterior, batch.truth, grid.prior.value_range)
        rows = []
        for k, (i, of_image) in enumerate(zip(batch.images, scores, strict=True)):
            of_all = {
                "image": i,
                "image_key": grid.images.keys[i],
                "name": grid.images.names[i],
                "psnr_mean": of_image.psnr_mean,
                "diversity": of_image.diversity,
                "baseline_psnr": for_json(baseline[k]),
                **of_image.coverage,
                **{name: for_json(value) for name, value in distances[k].items()},
            }
            for s, of_sample in enumerate(of_image.samples):
                at = int(posterior.diverged_at[k, s])
                scored = {name: for_json(value) for name, value in (of_sample or {}).items()}
                rows.append(shared | of_all | scored | {"sample": s, "diverged_at": None if at < 0 else at})
        return rows

    def _distances(self, batch: "_Batch", measurements: Measurements) -> tuple[list[dict[str, float]], dict[str, str]]:
        """To the exact posterior of each image, where there is one, and why not."""
        every = ", ".join(DISTANCES)
        reason = missing_truth(batch.problem, self.grid.prior, self.grid.num_samples)
        if reason is not None:
            return [{} for _ in batch.images], {every: reason}
        found: list[dict[str, float]] = []
        notes: dict[str, str] = {}
        for k, i in enumerate(batch.images):
            try:
                exact = measurements.exact(i)
            except ValueError as error:
                notes[every] = f"no exact posterior: {error}"
                found.append({})
                continue
            notes |= exact.notes
            found.append(distances_to(exact, batch.posterior.samples[k], batch.posterior.diverged[k]))
        return found, notes

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

    def _log(self, run: Run, batch: "_Batch") -> None:
        """Means over the batch, by the number of rows that this rank has stored."""
        self.logged += len(batch.rows)
        means = {score: mean_of([row.get(score) for row in batch.rows]) for score in LOGGED}
        self.logger.scalars({self._name(run, s): v for s, v in means.items() if v is not None}, self.logged)

    def _name(self, run: Run, what: str) -> str:
        return f"{self.grid.tasks[run.task].label}/{run.label}/{run.sampler.num_steps}_steps/{what}"

    def _write_arrays(self, run: Run, batch: "_Batch") -> None:
        data = io.BytesIO()
        np.savez_compressed(
            data,
            samples=batch.posterior.samples.numpy(),
            mean=batch.posterior.mean.numpy(),
            std=batch.posterior.std.numpy(),
            y=batch.problem.y.numpy(),
            x=batch.truth.numpy(),
            names=np.array(batch.names),
            images=np.array(batch.images),
            keys=np.array([self.grid.images.keys[i] for i in batch.images]),
            value_range=np.array(self.grid.prior.value_range),
        )
        folder = self.store.folder / "reconstructions"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{run.id}-{batch.images[0]:06d}.npz", data.getvalue())

    def _write_thumbnails(self, run: Run, batch: "_Batch") -> None:
        facing = batch.posterior.facing(batch.truth)
        folder = self.store.folder / THUMBNAILS
        folder.mkdir(exist_ok=True)
        every = pictures(batch.problem, batch.truth, facing, self.grid.prior.value_range)
        for i, of_image in zip(batch.images, every, strict=True):
            if i >= self.save.thumbnails:
                break
            for what in PICTURES:
                path = folder / file_name(run.id, i, what)
                if what not in of_image:
                    path.unlink(missing_ok=True)  # of an image that was another one earlier
                elif what in MAPS:
                    save_map(of_image[what], path)
                else:
                    write_image(path, of_image[what])
            if "mean" in of_image:
                self.logger.image(self._name(run, f"mean_{i}"), of_image["mean"].clamp(0, 1), self.logged)


@dataclass
class _Batch:
    """Images of a run as they come out."""

    images: tuple[int, ...]
    problem: InverseProblem
    posterior: Posterior
    truth: Tensor
    names: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)


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

    def begin(self, what: str, run: Run, runs_each: int) -> None:
        self.bar.set_description(what, refresh=False)
        self.per_step, self.per_image = run.cost / run.sampler.num_steps, run.cost * runs_each

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
