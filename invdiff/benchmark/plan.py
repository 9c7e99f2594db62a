"""The plan of a benchmark: the runs of a grid, with their records, and the batches that are missing.

The record of a run keeps what its plan depends on (the cost of a VJP, the steps that a budget buys, the batch that
fits), so that a resumed benchmark makes the same plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from invdiff.benchmark.budget import (
    FULL,
    Budget,
    NoFit,
    Speed,
    fit_calls,
    fit_seconds,
    likely_rows,
    measure_speed,
    network_cost,
    steps_of,
    with_steps,
)
from invdiff.benchmark.grid import Entry, Grid, Measurements, Task, in_effect, task_of
from invdiff.benchmark.store import Store
from invdiff.engine.driver import Compute
from invdiff.fingerprint import fingerprint
from invdiff.io import BadInput
from invdiff.priors.precision import chosen
from invdiff.samplers import Sampler

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A sampler on a task, and the images that are missing.

    task     index of the task in the grid
    rows     samples in flight at once, to begin with
    batches  image indices, a tuple for each batch
    """

    id: str
    label: str
    task: int
    sampler: Sampler
    vjp_weight: float | None
    rows: int
    batches: Sequence[tuple[int, ...]]

    @property
    def cost(self) -> float:
        """Network calls of one sample."""
        return network_cost(self.sampler, self.vjp_weight)


class Planner:
    """Makes the runs of a grid, and their records in the store."""

    def __init__(
        self,
        grid: Grid,
        store: Store,
        compute: Compute,
        measurements: Sequence[Measurements],
        *,
        vjp_weight: float | None,
        ranks: int = 1,
    ) -> None:
        self.grid, self.store, self.compute, self.ranks = grid, store, compute, ranks
        self.measurements = measurements  # of each task
        self.device = compute.resolve_device()
        self.precision = chosen(compute.precision, self.device, bounded_error=grid.prior.bounded_error)
        self.fixed_weight = vjp_weight
        self._speed: Speed | None = None
        self._done = store.done()
        self._known = store.all_records()
        self._names: dict[tuple[str, bool], list[str]] = {}  # of this plan, by run and whether it was fitted

    def plan(self) -> list[Run]:
        """Every possible run with its missing images; an impossible one gets a record with the reason.

        Samplers of equal settings are one run under all their names.
        """
        runs: dict[str, Run] = {}
        for t, measurements in enumerate(self.measurements):
            for entry in self.grid.entries:
                runs |= {run.id: run for run in self._pair(entry, t, measurements)}
        return list(runs.values())

    def _pair(self, entry: Entry, t: int, measurements: Measurements) -> list[Run]:
        """The runs of one sampler on one task: with its own settings, and one for each budget."""
        grid, task = self.grid, measurements.task
        sampler, reason = entry.for_task(task.label), None
        try:
            problem = measurements.problem([0])
            sampler = grid.prepared(sampler.resolve(problem, grid.prior)[0])
            sampler.check(problem, grid.prior)
        except ValueError as error:  # Unsupported is one
            reason = " ".join(str(error).split())
        base = self._record(entry, task, sampler, reason=reason, fitted=False)
        if reason is not None:
            return []
        runs = [self._run(base, sampler, t)] if grid.own else []
        for budget in grid.budgets:
            fitted = self._fitted(entry, base, sampler, budget, measurements)
            if fitted is not None:
                runs.append(self._run(self._record(entry, task, fitted, fitted=True), fitted, t))
        return runs

    def _record(self, entry: Entry, task: Task, sampler: Sampler, *, reason: str | None = None, fitted: bool) -> Record:
        """The record of a run: the results of earlier runs, with the labels of this one.

        fitted  to a budget
        """
        settings = self.grid.settings(sampler, task, self.precision)
        run = fingerprint(settings)
        known = self._known.get(run, {})
        names = self._names.setdefault((run, fitted), [])
        if entry.label not in names:
            names.append(entry.label)
        label = ", ".join(self._names.get((run, False), names))
        record = {
            "run": run,
            "sampler": label,
            "operator": task.label,
            "task": task_of(settings),
            "reason": reason,
            # The same settings may also be asked for without a budget, earlier or later.
            "fitted": fitted and known.get("fitted", True),
            "vjp_weight": known.get("vjp_weight"),
            "rows_at_once": known.get("rows_at_once"),
            "device": known.get("device"),
            "fits": known.get("fits", {}),
            "settings": settings,
            "in_effect": in_effect(task.operator, settings.get("operator")),
        }
        if self.grid.config is not None and reason is None:
            self.store.write_config(run, self.grid.config_of(label, sampler, task))
        return self._keep(record)

    def _keep(self, record: Record) -> Record:
        self._known[record["run"]] = record
        self.store.write_record(record)
        return record

    # -- measurements of speed ---------------------------------------------------------------------------------------

    def _weight(self) -> float | None:
        """Cost of a VJP in forwards: as given, as measured earlier for this prior on this device, or measured now."""
        if not self.grid.prior.differentiable or self.fixed_weight is not None:
            return self.fixed_weight
        for record in self._known.values():
            settings = record["settings"]
            alike = (settings["prior"], settings["data"], settings["precision"], record["device"]) == (
                self.grid.prior_settings,
                self.grid.images.settings,
                self.precision,
                str(self.device),
            )
            if alike and record["vjp_weight"] is not None:
                return record["vjp_weight"]
        weight = self._measured_speed().vjp_weight
        if weight is None:
            raise BadInput(
                "could not measure the cost of a VJP (no slower than a forward pass); set budget.vjp_weight=2 or retry "
                "on an idle machine"
            )
        return weight

    def _measured_speed(self) -> Speed:
        if self._speed is None:
            shape = tuple(self.grid.images.truth.shape[1:])
            rows = max(1, min(16, FULL["cpu"] // (4 * shape[-1] * shape[-2])))
            prior = self.grid.prior.to(self.device)
            self._speed = measure_speed(prior, shape, self.device, self.precision, rows=rows)
        return self._speed

    def _rows(self, sampler: Sampler) -> int:
        speed = self._measured_speed() if self.device.type == "cuda" else Speed(None, None)
        return likely_rows(tuple(self.grid.images.truth.shape[1:]), sampler.particles, self.device, speed)

    def _run(self, record: Record, sampler: Sampler, t: int) -> Run:
        here = record["device"] == str(self.device)
        weight = record["vjp_weight"] if here and self.fixed_weight is None else self._weight()
        rows = self.compute.max_rows or (record["rows_at_once"] if here else None) or self._rows(sampler)
        self._keep(record | {"vjp_weight": weight, "rows_at_once": rows, "device": str(self.device)})
        missing = self._missing(record["run"], rows, self.grid.runs_of(sampler))
        return Run(record["run"], record["sampler"], t, sampler, weight, rows, missing)

    def _missing(self, run: str, rows: int, rows_each: int) -> list[tuple[int, ...]]:
        """The images without all their samples, in batches whose limits do not depend on earlier runs."""
        images, samples = self.grid.images, self.grid.num_samples
        at_once = max(1, min(rows // rows_each, -(-len(images) // self.ranks)))
        batches = []
        for start in range(0, len(images), at_once):
            open_: list[int] = []
            for i in range(start, min(start + at_once, len(images))):
                if self._done.get((run, i, images.keys[i]), 0) < samples:
                    open_.append(i)
                elif open_:
                    batches.append(tuple(open_))
                    open_ = []
            if open_:
                batches.append(tuple(open_))
        return batches

    # -- budgets -------------------------------------------------------------------------------------------------------

    def _fitted(
        self, entry: Entry, base: Record, sampler: Sampler, budget: Budget, measurements: Measurements
    ) -> Sampler | None:
        """The sampler with the steps that a budget buys; None where it buys none, with the reason in the record."""
        base = self._known[base["run"]]
        fit = base["fits"].get(str(budget))
        if fit is None:
            weight = self._weight()
            try:
                if budget.kind == "calls":
                    fitted = fit_calls(sampler, budget.amount, weight)
                else:
                    fitted = fit_seconds(sampler, budget.amount, weight, lambda s: self._pilot(s, measurements))
                settings = self.grid.settings(fitted, measurements.task, self.precision)
                fit = {"steps": steps_of(fitted), "run": fingerprint(settings), "reason": None}
            except NoFit as error:
                fit = {"steps": None, "run": None, "reason": str(error)}
            fits = {**base["fits"], str(budget): fit | {"kind": budget.kind, "amount": budget.amount}}
            self._keep(base | {"fits": fits})
        return None if fit["steps"] is None else with_steps(sampler, fit["steps"])

    def _pilot(self, sampler: Sampler, measurements: Measurements) -> float:
        """Seconds of one sample in the first batch."""
        grid = self.grid
        rows = self.compute.max_rows or self._rows(sampler)
        images = list(range(max(1, min(len(grid.images), rows // grid.num_samples))))
        posterior = sampler.sample(
            measurements.problem(images),
            grid.prior,
            num_samples=grid.num_samples,
            seed=grid.seed,
            compute=replace(self.compute, max_rows=rows, progress=False),
        )
        return posterior.cost.seconds / (len(images) * grid.num_samples)
