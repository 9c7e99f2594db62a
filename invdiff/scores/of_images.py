"""Scores of a batch of reconstructions, as `metrics.json` states them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem
from invdiff.scores import metrics
from invdiff.scores.metrics import for_json, mean_of, standard_error_of
from invdiff.scores.proper import PROPER, crps, energy_score, missing_proper, pooled, spread_and_error

SCORES = (*PROPER, "psnr_mean", "psnr", "ssim", "lpips", "misfit", "baseline_psnr")
OF_SAMPLES = ("psnr", "ssim", "lpips", "misfit", "psnr_raw")  # averaged over the samples
BEST = ("psnr_best_oracle", "psnr_best_misfit")
# Credible intervals of every pixel: how many of them hold the truth, by the level they are meant to have.
COVERAGES = {"coverage_10": 0.1, "coverage_25": 0.25, "coverage_50": 0.5, "coverage_75": 0.75, "coverage_90": 0.9}


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; what cannot be computed is None, or no key.

    samples  of each sample, None for one that diverged: misfit and, where the truth is known, psnr, ssim, lpips and
             psnr_raw
    image    psnr_mean, of the posterior mean; diversity, root mean square over the pixels of the posterior standard
             deviation, image units; where the truth is known and two samples were kept, those of `PROPER`, rmse_mean
             (root mean square error of the mean of the samples, image units) and those of `COVERAGES`
    """

    samples: list[dict[str, float] | None]
    image: dict[str, float | None]

    def kept(self, score: str) -> list[float]:
        """This score of the samples that did not diverge and have it."""
        return [sample[score] for sample in self.samples if sample is not None and score in sample]


def score_images(
    posterior: Posterior, truth: Tensor | None, value_range: tuple[float, float] = (0.0, 1.0)
) -> list[ImageScores]:
    """Score every image and every sample of it; see `evaluate` for what the scores are."""
    operator, misfit, diverged = posterior.problem.operator, posterior.misfit, posterior.diverged
    if truth is None:
        return [
            ImageScores(
                [None if lost else {"misfit": float(m)} for m, lost in zip(misfit[i], diverged[i], strict=True)],
                {"psnr_mean": None, "diversity": _diversity(posterior.std[i])},
            )
            for i in range(len(diverged))
        ]
    samples, facing = posterior.onto(truth), posterior.facing(truth)
    with torch.no_grad():
        mean = operator.align(posterior.mean, truth)
    with_lpips = metrics.lpips_unavailable(posterior.problem.image_shape) is None

    def score(i: int, s: int) -> dict[str, float]:
        x, true = samples[i, s], truth[i]
        row = {
            "misfit": float(misfit[i, s]),
            "psnr": metrics.psnr(x, true, value_range),
            "ssim": metrics.ssim(x, true, value_range),
        }
        if with_lpips:
            row["lpips"] = metrics.lpips_distance(x, true, value_range)
        if operator.ambiguous:
            row["psnr_raw"] = metrics.psnr(posterior.samples[i, s], true, value_range)
        return row

    return [
        ImageScores(
            [None if diverged[i, s] else score(i, s) for s in range(diverged.shape[1])],
            {
                "psnr_mean": for_json(metrics.psnr(mean[i], truth[i], value_range)),
                "diversity": _diversity(posterior.std[i]),
                **proper(facing.samples[i][~diverged[i]], truth[i]),
                **coverage(facing.samples[i][~diverged[i]], truth[i]),
            },
        )
        for i in range(len(diverged))
    ]


def _diversity(std: Tensor) -> float | None:
    return for_json(float(std.square().mean().sqrt()))


def proper(samples: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Proper scores of samples (L, C, H, W), and rmse_mean; empty for fewer than two samples."""
    widths = spread_and_error(samples, truth)
    if widths is None:
        return {}
    spread, error = widths
    found = {"energy": energy_score(samples, truth), "crps": crps(samples, truth), "rmse_mean": error}
    return found | {"spread_error": spread / error if error > 0 else None}


def coverage_floor(num_samples: int, level: float) -> float:
    """The coverage of so many samples that all lie on one side of the truth in every pixel, as of a collapsed sampler.

    Their interval is taken to reach beyond them (`coverage`), the fewer they are the more: 0.85 at the level of 90 %
    for 2 samples, 0.75 for 4, 0 from 19 on. Coverage says something only above this floor.
    """
    return max(0.0, 1 - (num_samples + 1) * (1 - level) / 2)


def coverage(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of the truth (C, H, W) in the central credible intervals of its pixels, by the names of `COVERAGES`.

    Truth and exact samples are exchangeable: among L samples (L, C, H, W) each of the L + 1 ranks of the truth is as
    likely. So rank r, spread evenly over [r / (L + 1), (r + 1) / (L + 1)], is uniform over [0, 1] if the samples are
    right, and its central part of every level holds the truth with that probability, for any number of samples
    (`invdiff.scores.calibration` has the test). A truth that equals some samples is spread over all their ranks. Empty
    for fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        return {}
    low = (samples < truth).sum(0).double() / (count + 1)
    high = ((samples <= truth).sum(0).double() + 1) / (count + 1)
    found = {}
    for name, level in COVERAGES.items():
        inside = (high.clamp(max=(1 + level) / 2) - low.clamp(min=(1 - level) / 2)).clamp(min=0)
        found[name] = float((inside / (high - low)).mean())
    return found


def baseline_psnr(
    problem: InverseProblem, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)
) -> list[float] | None:
    """PSNR of the operator's first guess (pseudo-inverse), which uses no prior; None where it has none."""
    guess = problem.first_guess
    if guess is None:
        return None
    if guess.shape != truth.shape:
        guess = problem.operator.frame(guess)
    with torch.no_grad():
        guess = problem.operator.align(guess, truth)
    return [metrics.psnr(x, true, value_range) for x, true in zip(guess, truth, strict=True)]


def evaluate(
    posterior: Posterior,
    names: Sequence[str],
    truth: Tensor | None,
    value_range: tuple[float, float] = (0.0, 1.0),
    *,
    best_of: bool = False,
) -> dict[str, Any]:
    """Score every image; what cannot be computed is None, with the reason under `notes`.

    energy, crps       proper scores of the samples that did not diverge, image units, lower is better: they rank
    spread_error       spread of the samples over the error of their mean: 1 is right, below 1 too sure
    psnr_mean          of the posterior mean
    psnr, ssim, lpips  averages over the samples that did not diverge: no quality of a sampler, see docs/scores.md
    baseline_psnr      of the operator's first guess (pseudo-inverse), which uses no prior
    misfit             of the samples (`Noise.misfit`), averaged; 1 fits to the noise
    diverged           how many of the samples diverged

    `mean` is over the images, of spread_error by root mean squares (`pooled`); `standard_error` is its error.

    Where the operator cannot tell some images apart (`Operator.align`), all of these are of images moved onto the truth
    first, the mean being that of `Posterior.aligned`, and there is one score more:

    psnr_raw           average over the samples as they are

    best_of  add the scores of one sample out of all:

    psnr_best_oracle   of the sample nearest to the truth: an oracle, not a method
    psnr_best_misfit   of the sample that fits y best
    """
    problem = posterior.problem
    scores = [*SCORES, *(["psnr_raw"] if problem.operator.ambiguous else []), *(BEST if best_of else [])]
    baseline = None if truth is None else baseline_psnr(problem, truth, value_range)
    images: list[dict[str, Any]] = []
    scored = score_images(posterior, truth, value_range)
    for i, (name, found) in enumerate(zip(names, scored, strict=True)):
        known = {score: mean_of(found.kept(score)) for score in OF_SAMPLES} | found.image
        known["baseline_psnr"] = None if baseline is None else for_json(baseline[i])
        if best_of and found.kept("psnr"):
            psnrs, misfits = found.kept("psnr"), found.kept("misfit")
            known |= zip(BEST, map(for_json, (max(psnrs), psnrs[misfits.index(min(misfits))])), strict=True)
        images.append({"name": name, **{s: known.get(s) for s in scores}, "diverged": found.samples.count(None)})

    notes = missing_scores(problem, truth, posterior.samples.shape[1], scores)
    if posterior.diverged.any():
        notes["diverged"] = "diverged samples are left out of every average"
    if truth is not None and baseline is None:
        notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no first guess"
    for score in scores:
        # Other gaps, in images that have samples to score.
        if any(row[score] is None and row["diverged"] < posterior.samples.shape[1] for row in images):
            why = "fewer than two samples are left" if score in PROPER else "not a finite number"
            notes.setdefault(score, "infinite: the images are equal" if "psnr" in score else why)
    means = {score: mean_of([row[score] for row in images]) for score in scores}
    errors = {score: standard_error_of([row[score] for row in images]) for score in scores}
    ratio = pooled([f.image.get("spread_error") for f in scored], [f.image.get("rmse_mean") for f in scored])
    if ratio is not None:
        means["spread_error"], errors["spread_error"] = ratio.value, for_json(ratio.standard_error)
    return {
        "images": images,
        "mean": means,
        "standard_error": errors,
        "cost": posterior.cost.as_dict(),
        "notes": notes,
    }


def missing_scores(
    problem: InverseProblem, truth: Tensor | None, num_samples: int, scores: Sequence[str] = SCORES
) -> dict[str, Any]:
    """Reasons why scores of so many samples cannot be computed, or not relied on, by score."""
    notes: dict[str, Any] = {}
    if truth is None:
        notes |= {score: "the true image is not known" for score in scores if score != "misfit"}
    else:
        reason = missing_proper(num_samples)
        if reason is not None:
            notes |= dict.fromkeys(PROPER, reason)
        lpips_reason = metrics.lpips_unavailable(problem.image_shape)
        if lpips_reason is not None:
            notes["lpips"] = lpips_reason
        if min(problem.image_shape[-2:]) < metrics.SSIM_WINDOW:
            notes["ssim"] = f"SSIM needs images of {metrics.SSIM_WINDOW}x{metrics.SSIM_WINDOW} pixels or more"
    if problem.operator.ambiguous:
        notes["alignment"] = (
            f"{type(problem.operator).__name__} cannot tell some images apart: mean and std are of samples aligned "
            "with the one that fits best"
        )
        if truth is not None:
            notes["alignment"] += "; scores are of images aligned with the truth, psnr_raw of the samples as drawn"
    return notes
