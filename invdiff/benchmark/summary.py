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
from invdiff.scores.proper import pooled
from invdiff.scores.truth import DISTANCES, FLOORS

# Scores of a sample, averaged over the samples of each image first; and scores of an image.
OF_SAMPLES = ("psnr", "ssim", "lpips", "misfit", "psnr_raw")
OF_IMAGES = ("energy", "crps", "psnr_mean", "diversity", "baseline_psnr", *COVERAGES, *DISTANCES, *FLOORS)
# The score that ranks where no exact posterior is known, with the sign of a loss: the first that any sampler has.
RULES = {"energy": 1, "psnr_mean": -1}
ESTABLISHED = 2.0  # standard errors: smaller differences make nobody the best
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
    by_image          those of `RULES` by image, for paired differences
    behind            difference to the best row in the score that ranks, paired over the images of both; None: is it
    best              better than every other row by an established difference
    forwards ... seconds  of one sample
    cost              forwards and weighted VJPs; None where the weight is not known
    best_for_cost     no sampler with fewer network calls is as good, to within the error of the difference
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
    by_image: Mapping[str, Mapping[tuple[int, str], float]] = field(default_factory=dict)
    behind: Estimate | None = None
    best: bool = False
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
    """Samplers on one task at one budget, the best first.

    By distance to the exact posterior where it is known, then by energy score, without one by PSNR of the mean.

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
    def rule(self) -> str:
        """The score of `RULES` that ranks and marks."""
        return rule_of(self.standings)

    @property
    def notes(self) -> dict[str, str]:
        """What is missing or weak, by the names of scores; those that share a reason stand together."""
        reasons: dict[str, list[str]] = {}
        for score, why in {score: why for s in self.standings for score, why in s.notes.items()}.items():
            reasons.setdefault(why, []).append(score)
        notes = {", ".join(scores): why for why, scores in reasons.items()}
        if self.rule != "energy" and any(self.rule in s.scores for s in self.standings):
            notes["ranking"] = "by the PSNR of the mean, for no sampler has an energy score"
        return notes


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
        by_budget: dict[tuple[str, float, str], dict[str, Standing]] = {}
        for record in members:
            for budget, fit in record["fits"].items():
                place = by_budget.setdefault((fit["kind"], fit["amount"], budget), {})
                if fit["run"] is None:
                    place[record["run"]] = _nothing(record, fit["reason"])
                elif fit["run"] in place:  # samplers of other steps may be the same at a budget
                    same = place[fit["run"]]
                    place[fit["run"]] = replace(same, label=f"{same.label}, {record['sampler']}")
                elif fit["run"] in records:
                    at_budget = records[fit["run"]] | {"sampler": record["sampler"]}
                    place[fit["run"]] = standing(at_budget, steps=fit["steps"])
        shared = {key: value for key, value in members[0]["settings"].items() if key not in OF_THE_SAMPLER}
        if members[0].get("in_effect"):
            shared["operator"] = shared["operator"] | members[0]["in_effect"]
        if by_budget and not all(s.images or s.reason for s in own):
            own = []  # not asked for: the few rows are those that a budget happens to share
        for budget, standings in [(None, own), *((key[2], [*by_budget[key].values()]) for key in sorted(by_budget))]:
            shown = [s for s in standings if s.images or s.reason]
            if any(s.images for s in shown) or (budget is None and shown):
                operator = members[0]["operator"]
                baseline = next((s.scores["baseline_psnr"] for s in shown if "baseline_psnr" in s.scores), None)
                comparisons.append(Comparison(task, operator, budget, shared, _ranked(shown), baseline))
    return comparisons


def rows_by_image(store: Store) -> Rows:
    """Rows of each run and image; of an image that was another one earlier, the latest."""
    columns = (
        "created",
        "name",
        *ORIGIN,
        "diverged_at",
        "notes",
        "vjp_weight",
        "spread_error",
        "rmse_mean",
        *OF_SAMPLES,
        *OF_IMAGES,
        *PER_SAMPLE,
    )
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
    ratio = pooled(*([rows[0][name] for rows in images.values()] for name in ("spread_error", "rmse_mean")))
    scores["spread_error"] = None if ratio is None else Estimate(ratio.value, ratio.standard_error)
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
        by_image={
            score: {(i, r[0]["image_key"]): r[0][score] for i, r in images.items() if r[0][score] is not None}
            for score in RULES
        },
        cost=costs["forwards"] + (weight or 0.0) * costs["vjps"] if weight is not None or not costs["vjps"] else None,
        notes=json.loads(every[-1]["notes"]),
        **costs,
    )


def _nothing(record: Mapping[str, Any], reason: str | None) -> Standing:
    return Standing(run=record["run"], label=record["sampler"], settings=record["settings"], reason=reason)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def rule_of(standings: Sequence[Standing]) -> str:
    """The first score of `RULES` that any of them has."""
    return next((score for score in RULES if any(score in s.scores for s in standings)), "psnr_mean")


def paired(a: Standing, b: Standing, score: str) -> Estimate | None:
    """Mean of a's score minus b's over the images that both have, and its standard error; None without any."""
    ours, theirs = a.by_image.get(score, {}), b.by_image.get(score, {})
    return Estimate.of([ours[image] - theirs[image] for image in ours if image in theirs])


def _ranked(standings: Sequence[Standing]) -> list[Standing]:
    """Sort as `Comparison` says, with differences to the best row in the score that ranks, and Pareto fronts.

    Those that share a label get the settings in which they differ.
    """
    names, rule = _labels(standings), rule_of(standings)
    sign = RULES[rule]
    scored = [s for s in standings if rule in s.scores]
    shared = set.intersection(*({*s.by_image[rule]} for s in scored)) if scored else set()

    def loss_of(s: Standing) -> float:
        """Over the images that all rows have: a mean over easier ones must not win."""
        of_image = s.by_image.get(rule, {})
        return sign * (float(np.mean([of_image[i] for i in shared])) if shared else s.scores[rule].mean)

    first = min(scored, key=loss_of, default=None)
    behind = [None if first in (None, s) else _loss(s, first, rule) for s in standings]
    others = [loss for s, loss in zip(standings, behind, strict=True) if rule in s.scores and s is not first]
    for_cost = front(standings, [s.cost for s in standings], rule)
    for_seconds = front(standings, [s.seconds for s in standings], rule)
    marked = [
        replace(
            s,
            label=names[k],
            behind=behind[k],
            best=s is first and bool(others) and all(map(_established, others)),
            best_for_cost=for_cost[k],
            best_for_seconds=for_seconds[k],
        )
        for k, s in enumerate(standings)
    ]

    def place(s: Standing) -> tuple[float, float, float, str]:
        distance = s.scores["sliced_wasserstein"].mean if "sliced_wasserstein" in s.scores else math.inf
        psnr = s.scores["psnr_mean"].mean if "psnr_mean" in s.scores else -math.inf
        return distance, loss_of(s) if rule in s.scores else math.inf, -psnr, s.label

    return sorted(marked, key=place)


def _loss(s: Standing, other: Standing, rule: str) -> Estimate | None:
    """How much worse a row is than another one, paired."""
    found = paired(s, other, rule)
    return None if found is None else Estimate(RULES[rule] * found.mean, found.error)


def _established(loss: Estimate | None) -> bool:
    return loss is not None and loss.mean > ESTABLISHED * loss.error  # an error that is not known establishes nothing


def front(standings: Sequence[Standing], prices: Sequence[float | None], rule: str) -> list[bool]:
    """Whether each is on the Pareto front: it is better, by an established difference, than all that cost less.

    Of those that cost the same it must not be worse. Rows without a price or a score are not on it and beat none.
    """
    known = [(s, p) for s, p in zip(standings, prices, strict=True) if p is not None and rule in s.scores]

    def beaten(s: Standing, price: float, other: Standing, less: float) -> bool:
        if less < price:
            gain = _loss(other, s, rule)
            return gain is not None and not _established(gain)
        return less == price and _established(_loss(s, other, rule))

    fronts = {id(s): not any(beaten(s, p, o, q) for o, q in known if o is not s) for s, p in known}
    return [fronts.get(id(s), False) for s in standings]


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
