"""The run of a benchmark: every sampler on the same measurements, in batches that are stored one by one.

A run that was killed at any moment resumes where the store ends; no batch is computed twice. With several ranks each
takes every n-th batch; all append to the same store.
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

from invdiff.benchmark.budget import out_of_memory
from invdiff.benchmark.grid import Grid, Measurements
from invdiff.benchmark.loggers import Logger, Several
from invdiff.benchmark.pictures import THUMBNAILS, pictures, save_pictures
from invdiff.benchmark.plan import Planner, Run
from invdiff.benchmark.provenance import provenance
from invdiff.benchmark.ranks import Ranks
from invdiff.benchmark.store import PER_SAMPLE, Store
from invdiff.engine.driver import Compute, Event
from invdiff.engine.progress import progress_bar
from invdiff.io.atomic import write_atomically
from invdiff.io.lock import Lock
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem
from invdiff.samplers import ParticleSampler
from invdiff.scores.metrics import for_json, mean_of
from invdiff.scores.of_images import missing_scores, score_images
from invdiff.scores.proper import PROPER
from invdiff.scores.truth import DISTANCES, distances_to, missing_truth

LOGGED = (*PROPER, "psnr_mean", "psnr", "ssim", "lpips", "misfit", "diversity", "baseline_psnr", "seconds")


@dataclass(frozen=True)
class Save:
    """Files to write besides the rows, for batches that are computed from now on.

    reconstructions  samples, mean, std, y and x of every batch, in `reconstructions/`, an .npz file each
    thumbnails       pictures of the first so many images, small PNG in `thumbnails/`: truth, measurement, first guess,
                     a sample, the mean, its error and the standard deviation
    """

    reconstructions: bool = False
    thumbnails: int = 0


@dataclass
class Outcome:
    """The outcome of a benchmark.

    rows     computed by all ranks in this run
    errors   that stopped runs of this rank
    reasons  the messages of the errors of all ranks, by the fingerprint of the run
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
    """Compute the missing rows of a grid in a folder that no other run writes to.

    vjp_weight  cost of a VJP through the network in forwards; None: measured
    say         called with messages about the folder
    logger      gets every batch that this rank stores
    lock        the first rank's hold on the folder; None: no other process uses it

    An exception in one run ends only this run and is returned; an error while storing rows is raised. Stored rows are
    never lost.
    """
    store = Store(folder)
    measurements = [Measurements(grid, task) for task in grid.tasks]
    plan: list[Run] = []
    if ranks.first:
        with nullcontext() if lock is None else lock.turn():
            store.open(alone=lock is None or lock.alone)
            for message in store.messages:
                say(message)
            plan = Planner(grid, store, compute, measurements, vjp_weight=vjp_weight, ranks=ranks.count).plan()
            if lock is not None:
                lock.claim(run.id for run in plan if run.batches)
    plan = ranks.from_first(plan)
    outcome = _Worker(grid, store, compute, measurements, save, ranks, logger or Several()).work(plan)
    found = ranks.gather((outcome.rows, outcome.reasons))
    outcome.rows = sum(rows for rows, _ in found)
    outcome.reasons = {run: reason for _, reasons in found for run, reason in reasons.items()}
    return outcome


@dataclass
class _Batch:
    """The posterior of some images of a run, by their indices."""

    images: tuple[int, ...]
    problem: InverseProblem
    posterior: Posterior
    truth: Tensor


class _Worker:
    """Computes the batches of one rank."""

    def __init__(
        self,
        grid: Grid,
        store: Store,
        compute: Compute,
        measurements: Sequence[Measurements],
        save: Save,
        ranks: Ranks,
        logger: Logger,
    ) -> None:
        self.grid, self.store, self.compute, self.measurements = grid, store, compute, measurements
        self.save, self.ranks, self.logger = save, ranks, logger
        self.origin = provenance(compute.resolve_device())
        self.outcome = Outcome()
        self.logged = 0  # rows that this rank has stored
        self.calls = 0.0  # network calls of the batches that this rank is done with

    def work(self, plan: Sequence[Run]) -> Outcome:
        every = [(run.id, images) for run in plan for images in run.batches]
        mine = every[self.ranks.rank :: self.ranks.count]
        shares = [(run, [images for run_id, images in mine if run_id == run.id]) for run in plan]
        total = sum(self._calls(run, images) for run, share in shares for images in share)
        show = self.compute.progress and self.ranks.first
        # In network calls: the time that is left is that of the whole grid.
        with progress_bar(max(1, round(total)), "call", "benchmark", show=show, steady=True) as self.bar:
            for (run, share), following in zip(shares, [*shares[1:], None], strict=True):
                self.bar.set_description(f"{run.label} on {self.grid.tasks[run.task].label}", refresh=False)
                self._work_on(run, share)
                if following is None or following[0].task != run.task:
                    self.measurements[run.task].forget()
        return self.outcome

    def _calls(self, run: Run, images: Sequence[int]) -> float:
        return run.cost * self.grid.runs_of(run.sampler) * len(images)

    def _show(self, calls: float) -> None:
        self.bar.update(round(calls) - self.bar.n)

    def _work_on(self, run: Run, batches: Sequence[tuple[int, ...]]) -> None:
        """Compute and store batches of one run. They are halved once one has not fitted into the memory."""
        rows, rows_each = run.rows, self.grid.runs_of(run.sampler)
        waiting = list(batches)
        while waiting:
            images = waiting.pop(0)
            at_once = max(1, rows // rows_each)
            if len(images) > at_once:
                waiting[:0] = [images[k : k + at_once] for k in range(0, len(images), at_once)]
                continue
            self._show(self.calls)
            try:
                batch = self._batch(run, images, rows)
                found = self._rows(run, batch)
            except Exception as error:
                rows = min(rows, len(images) * rows_each)
                if rows == 1 or not out_of_memory(error):
                    error.add_note(f"{run.label} on {self.grid.tasks[run.task].label}")
                    self.outcome.errors.append(error)
                    self.outcome.reasons[run.id] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    self.calls += sum(self._calls(run, images) for images in [images, *waiting])
                    return
                rows //= 2
                batch = None
            if batch is None:  # out of the clause above: its error holds on to the memory
                self._remember(run, rows)
                waiting.insert(0, images)
                continue
            self._write(run, batch, found)
            self.calls += self._calls(run, images)
            self.outcome.rows += len(found)
        self._show(self.calls)

    def _batch(self, run: Run, images: tuple[int, ...], rows: int) -> _Batch:
        grid, sampler = self.grid, run.sampler
        calls_of_step, shown = run.cost / sampler.num_steps, self.calls

        def show(event: Event) -> None:
            nonlocal shown
            shown += calls_of_step * len(event.image)
            self._show(shown)

        problem = self.measurements[run.task].problem(images)
        in_clouds = grid.clouds and isinstance(sampler, ParticleSampler)
        sample = sampler.sample_of_cloud if in_clouds else sampler.sample
        posterior = sample(
            problem,
            grid.prior,
            num_samples=grid.num_samples,
            seed=grid.seed,
            first_image=images[0],
            compute=replace(self.compute, max_rows=rows, progress=False),
            callback=show,
        )
        return _Batch(images, problem, posterior, grid.images.truth[list(images)])

    def _remember(self, run: Run, rows: int) -> None:
        """Keep the rows that fit in the record, for resumed runs; of several ranks the last one wins."""
        record = self.store.record(run.id)
        if record is not None:
            self.store.write_record(record | {"rows_at_once": rows})

    # -- scores --------------------------------------------------------------------------------------------------------

    def _rows(self, run: Run, batch: _Batch) -> list[dict[str, Any]]:
        """A row for each sample of the batch: the columns of `store.SCHEMA`, without those that are null."""
        grid, posterior, problem = self.grid, batch.posterior, batch.problem
        measurements = self.measurements[run.task]
        baseline = measurements.baseline(problem, batch.images)
        distances, missing = self._distances(batch, measurements)
        notes = missing_scores(problem, batch.truth, grid.num_samples) | missing
        if None in baseline:
            notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no first guess"
        if grid.num_samples == 1:
            notes["diversity"] = notes["coverage"] = "needs num_samples >= 2"
        count = posterior.diverged.numel()
        of_batch = {
            "run": run.id,
            "sampler": run.label,
            "operator": measurements.task.label,
            "seed": grid.seed,
            "vjp_weight": run.vjp_weight,
            "rows_at_once": len(batch.images) * grid.runs_of(run.sampler),
            **{cost: getattr(posterior.cost, cost) / count for cost in PER_SAMPLE},
            "peak_memory_mb": posterior.cost.peak_memory_mb,
            "created": datetime.now(UTC),
            "notes": json.dumps(notes),
            **self.origin,
        }
        rows = []
        scores = score_images(posterior, batch.truth, grid.prior.value_range)
        for k, i in enumerate(batch.images):
            of_image = {"image": i, "image_key": grid.images.keys[i], "name": grid.images.names[i]}
            of_image |= _finite({**scores[k].image, "baseline_psnr": baseline[k], **distances[k]})
            for s, of_sample in enumerate(scores[k].samples):
                at = int(posterior.diverged_at[k, s])
                which = {"sample": s, "diverged_at": None if at < 0 else at}
                rows.append(of_batch | of_image | which | _finite(of_sample or {}))
        return rows

    def _distances(self, batch: _Batch, measurements: Measurements) -> tuple[list[dict[str, float]], dict[str, str]]:
        """To the exact posterior of each image, where there is one, and why not."""
        reason = missing_truth(batch.problem, self.grid.prior, self.grid.num_samples)
        if reason is not None:
            return [{} for _ in batch.images], dict.fromkeys(DISTANCES, reason)
        found: list[dict[str, float]] = []
        notes: dict[str, str] = {}
        for k, i in enumerate(batch.images):
            try:
                exact = measurements.exact(i)
            except ValueError as error:
                notes |= dict.fromkeys(DISTANCES, f"no exact posterior: {error}")
                found.append({})
                continue
            notes |= exact.notes
            found.append(distances_to(exact, batch.posterior.samples[k], batch.posterior.diverged[k]))
        return found, notes

    # -- output -----------------------------------------------------------------------------------------------

    def _write(self, run: Run, batch: _Batch, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows last: where they exist, all other files do. Then log their means."""
        if self.save.reconstructions:
            self._write_arrays(run, batch)
        name = f"{self.grid.tasks[run.task].label}/{run.label}/{run.sampler.num_steps}_steps"
        if batch.images[0] < self.save.thumbnails and batch.truth.dim() == 4:
            self._write_thumbnails(run, batch, name)
        self.store.append(rows)
        self.logged += len(rows)
        means = {f"{name}/{score}": mean_of([row.get(score) for row in rows]) for score in LOGGED}
        self.logger.scalars({score: mean for score, mean in means.items() if mean is not None}, self.logged)

    def _write_arrays(self, run: Run, batch: _Batch) -> None:
        images = self.grid.images
        data = io.BytesIO()
        np.savez_compressed(
            data,
            samples=batch.posterior.samples.numpy(),
            mean=batch.posterior.mean.numpy(),
            std=batch.posterior.std.numpy(),
            y=batch.problem.y.numpy(),
            x=batch.truth.numpy(),
            names=np.array([images.names[i] for i in batch.images]),
            images=np.array(batch.images),
            keys=np.array([images.keys[i] for i in batch.images]),
            value_range=np.array(self.grid.prior.value_range),
        )
        folder = self.store.folder / "reconstructions"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{run.id}-{batch.images[0]:06d}.npz", data.getvalue())

    def _write_thumbnails(self, run: Run, batch: _Batch, name: str) -> None:
        facing = batch.posterior.facing(batch.truth)
        found = pictures(batch.problem, batch.truth, facing, self.grid.prior.value_range)
        for i, of_image in zip(batch.images, found, strict=True):
            if i < self.save.thumbnails:
                save_pictures(self.store.folder / THUMBNAILS, run.id, i, of_image)
                if "mean" in of_image:
                    self.logger.image(f"{name}/mean_{i}", of_image["mean"].clamp(0, 1), self.logged)


def _finite(scores: dict[str, Any]) -> dict[str, float | None]:
    return {name: for_json(value) for name, value in scores.items()}
