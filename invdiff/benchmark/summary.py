"""Summary of the rows of a store: for every task and budget, the samplers side by side."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from invdiff.benchmark.grid import OF_THE_SAMPLER
from invdiff.benchmark.sets import SetScores
from invdiff.benchmark.store import PER_SAMPLE, Store
from invdiff.scores.of_images import COVERAGES
from invdiff.scores.truth import DISTANCES, FLOORS

# Scores of a sample, averaged over the samples of each image first; and scores of an image.
OF_SAMPLES = ("psnr", "ssim", "lpips", "misfit", "psnr_raw")
OF_IMAGES = ("psnr_mean", "diversity", "baseline_psnr", *COVERAGES, *DISTANCES, *FLOORS)
ORIGIN = ("invdiff", "torch", "git_revision", "device")


# By the fingerprint of the run, then by image: a row for each sample.
Rows = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error, NaN for one image: samples of one image are not independent."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """None where there is no value."""
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            return None
        spread = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
        return cls(float(np.mean(known)), spread / math.sqrt(len(known)))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A sampler on a task.

    label             of the sampler; with the settings that tell it apart where several share one
    steps             of its schedule, where they were fitted to a budget
    reason            why it has no rows, or not all
    images, samples   numbers of those that were computed
    diverged          number of diverged samples
    scores            by name; without those that could not be computed
    forwards ... seconds  of one sample
    cost              forwards and weighted VJPs; None where the weight is not known
    best_for_cost     no other sampler has a better PSNR for fewer network calls
    best_for_seconds  the same, in seconds
    """

    run: str
    label: str
    settings: Mapping[str, Any]
    steps: int | None = None
    reason: str | None = None
    images: int = 0
    samples: int = 0
    diverged: int = 0
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    forwards: float = 0.0
    vjps: float = 0.0
    operator_calls: float = 0.0
    seconds: float = 0.0
    cost: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    best_for_cost: bool = False
    best_for_seconds: bool = False


@dataclass(frozen=True)
class Comparison:
    """Samplers on one task at one budget, the best first: nearest to the exact posterior, or of the best PSNR.

    budget    None: with their own settings
    settings  that they share; with the values that the operator chose for null
    baseline  PSNR of the first guess
    """

    task: str
    operator: str
    budget: str | None
    settings: Mapping[str, Any]
    standings: Sequence[Standing]
    baseline: Estimate | None

    @property
    def notes(self) -> dict[str, str]:
        """Why scores are missing, of any of them, by their names; those that share a reason stand together."""
        reasons: dict[str, list[str]] = {}
        for score, why in {score: why for s in self.standings for score, why in s.notes.items()}.items():
            reasons.setdefault(why, []).append(score)
        return {", ".join(scores): why for why, scores in reasons.items()}


def summarise(
    store: Store,
    failures: Mapping[str, str] | None = None,
    *,
    rows: Rows | None = None,
    of_sets: Mapping[str, SetScores] | None = None,
) -> list[Comparison]:
    """Everything in a store, a task after another; the samplers' own settings first, then budget by budget.

    failures  why runs stopped early, by fingerprint
    rows      of the store, if already read (`rows_by_image`)
    of_sets   FID and KID by fingerprint, where they are wanted (`invdiff.benchmark.sets.of_runs`)
    """
    records, rows = store.all_records(), rows_by_image(store) if rows is None else rows
    failures, of_sets = failures or {}, of_sets or {}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        tasks.setdefault(record["task"], []).append(record)

    def standing(record: Mapping[str, Any], **more: Any) -> Standing:
        run = record["run"]
        found = _standing(record, rows.get(run, {}), **more)
        if run in of_sets:
            scores = {name: Estimate(value, math.nan) for name, value in of_sets[run].scores.items()}
            found = replace(found, scores={**found.scores, **scores}, notes={**found.notes, **of_sets[run].notes})
        return replace(found, reason=failures[run]) if run in failures else found

    comparisons = []
    for task, members in sorted(tasks.items(), key=lambda item: item[1][0]["operator"]):
        own = [standing(record) for record in members if not record["fitted"]]
        by_budget: dict[tuple[str, float, str], list[Standing]] = {}
        for record in members:
            for budget, fit in record["fits"].items():
                place = by_budget.setdefault((fit["kind"], fit["amount"], budget), [])
                if fit["run"] is None:
                    place.append(_nothing(record, fit["reason"]))
                elif fit["run"] in records:
                    at_budget = records[fit["run"]] | {"sampler": record["sampler"]}
                    place.append(standing(at_budget, steps=fit["steps"]))
        shared = {key: value for key, value in members[0]["settings"].items() if key not in OF_THE_SAMPLER}
        if members[0].get("in_effect"):
            shared["operator"] = shared["operator"] | members[0]["in_effect"]
        for budget, standings in [(None, own), *((key[2], by_budget[key]) for key in sorted(by_budget))]:
            shown = [s for s in standings if s.images or s.reason]
            if any(s.images for s in shown) or (budget is None and shown):
                operator = members[0]["operator"]
                baseline = next((s.scores["baseline_psnr"] for s in shown if "baseline_psnr" in s.scores), None)
                comparisons.append(Comparison(task, operator, budget, shared, _ranked(shown), baseline))
    return comparisons


def rows_by_image(store: Store) -> Rows:
    """Rows of each run and image; of an image that was another one earlier, the latest."""
    columns = ("created", "name", *ORIGIN, "diverged_at", "notes", "vjp_weight", *OF_SAMPLES, *OF_IMAGES, *PER_SAMPLE)
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in sorted(store.table(columns).to_pylist(), key=lambda row: row["created"]):
        images = found.setdefault(row["run"], {})
        if row["image"] in images and images[row["image"]][0]["image_key"] != row["image_key"]:
            del images[row["image"]]
        images.setdefault(row["image"], []).append(row)
    return found


def _standing(
    record: Mapping[str, Any], images: Mapping[int, Sequence[Mapping[str, Any]]], *, steps: int | None = None
) -> Standing:
    if not images:
        return _nothing(record, record["reason"])
    every = [row for rows in images.values() for row in rows]
    per_image: dict[str, list[float]] = {
        score: [_mean([row[score] for row in rows]) for rows in images.values()] for score in OF_SAMPLES
    }
    per_image |= {score: [rows[0][score] for rows in images.values()] for score in OF_IMAGES}
    scores = {score: Estimate.of(values) for score, values in per_image.items()}
    costs = {cost: sum(row[cost] for row in every) / len(every) for cost in PER_SAMPLE}
    diverged = sum(row["diverged_at"] is not None for row in every)
    weight = every[-1]["vjp_weight"]
    return Standing(
        run=record["run"],
        label=record["sampler"],
        settings=record["settings"],
        steps=steps,
        reason="every sample diverged" if diverged == len(every) else None,
        images=len(images),
        samples=len(every),
        diverged=diverged,
        scores={score: value for score, value in scores.items() if value is not None},
        cost=costs["forwards"] + (weight or 0.0) * costs["vjps"] if weight is not None or not costs["vjps"] else None,
        notes=json.loads(every[-1]["notes"]),
        **costs,
    )


def _nothing(record: Mapping[str, Any], reason: str | None) -> Standing:
    return Standing(run=record["run"], label=record["sampler"], settings=record["settings"], reason=reason)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def _ranked(standings: Sequence[Standing]) -> list[Standing]:
    """Sort by distance to the exact posterior where it is known, then by PSNR; mark the Pareto fronts of PSNR and cost.

    Those that share a label get the settings in which they differ.
    """
    names = _labels(standings)

    def score(s: Standing) -> float:
        return s.scores["psnr"].mean if "psnr" in s.scores else -math.inf

    scores = [score(s) for s in standings]
    for_cost = undominated([s.cost for s in standings], scores)
    for_seconds = undominated([s.seconds for s in standings], scores)
    marked = [
        replace(s, label=names[k], best_for_cost=for_cost[k], best_for_seconds=for_seconds[k])
        for k, s in enumerate(standings)
    ]

    def place(s: Standing) -> tuple[float, float, str]:
        distance = s.scores["sliced_wasserstein"].mean if "sliced_wasserstein" in s.scores else math.inf
        return distance, -score(s), s.label

    return sorted(marked, key=place)


def undominated(prices: Sequence[float | None], scores: Sequence[float]) -> list[bool]:
    """Whether each is on the Pareto front: no other has at least its score for at most its price, one of them better.

    Entries without a price or with a score of -inf are not on it and dominate none.
    """
    known = [(p, s) for p, s in zip(prices, scores, strict=True) if p is not None and s > -math.inf]

    def on_it(price: float | None, score: float) -> bool:
        if price is None or score == -math.inf:
            return False
        return not any(p <= price and s >= score and (p, s) != (price, score) for p, s in known)

    return [on_it(p, s) for p, s in zip(prices, scores, strict=True)]


def _labels(standings: Sequence[Standing]) -> list[str]:
    """Labels, with the settings in which those that share one differ."""
    names = []
    for s in standings:
        twins = [o for o in standings if o.label == s.label]
        mine, others = _flat(s.settings), [_flat(o.settings) for o in twins]
        differing = [key for key in mine if any(key not in o or o[key] != mine[key] for o in others)]
        names.append(s.label + (f" ({', '.join(f'{key}={mine[key]}' for key in differing)})" if differing else ""))
    return names


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a sampler by dotted names; versions and precision as well."""
    found: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            found[path] = node

    walk(settings["sampler"], "")
    walk({key: settings[key] for key in OF_THE_SAMPLER if key != "sampler"}, "")
    return found
