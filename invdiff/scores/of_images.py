"""Scores of a batch of reconstructions, as `metrics.json` states them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem
from invdiff.scores import metrics
from invdiff.scores.metrics import for_json, mean_of

SCORES = ("psnr", "psnr_mean", "ssim", "lpips", "misfit", "baseline_psnr")
# Credible intervals of every pixel: how many of them hold the truth, by the level they are meant to have.
COVERAGES = {"coverage_10": 0.1, "coverage_25": 0.25, "coverage_50": 0.5, "coverage_75": 0.75, "coverage_90": 0.9}


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image; what cannot be computed is None, or no key.

    samples    of each sample, None for one that diverged: misfit and, where the truth is known, psnr, ssim, lpips and
               psnr_raw
    psnr_mean  of the posterior mean
    diversity  root mean square over the pixels of the posterior standard deviation, image units
    coverage   by the names of `COVERAGES`; empty without the truth, or for fewer than two samples
    """

    samples: list[dict[str, float] | None]
    psnr_mean: float | None
    diversity: float | None
    coverage: dict[str, float]

    def kept(self, score: str) -> list[float]:
        """This score of the samples that did not diverge and have it."""
        return [sample[score] for sample in self.samples if sample is not None and score in sample]


def score_images(
    posterior: Posterior, truth: Tensor | None, value_range: tuple[float, float] = (0.0, 1.0)
) -> list[ImageScores]:
    """Score every image and every sample of it; see `evaluate` for what the scores are."""
    problem, misfit, diverged = posterior.problem, posterior.misfit, posterior.diverged
    moves, std = problem.operator.ambiguous, posterior.std
    mean, samples, facing = posterior.mean, posterior.samples, posterior.aligned
    with_lpips = truth is not None and metrics.lpips_unavailable(problem.image_shape) is None
    if truth is not None:
        samples, facing = posterior.onto(truth), posterior.facing(truth)
        with torch.no_grad():
            mean = problem.operator.align(mean, truth)

    def score(i: int, s: int) -> dict[str, float]:
        row = {"misfit": float(misfit[i, s])}
        if truth is not None:
            row["psnr"] = metrics.psnr(samples[i, s], truth[i], value_range)
            row["ssim"] = metrics.ssim(samples[i, s], truth[i], value_range)
            if with_lpips:
                row["lpips"] = metrics.lpips_distance(samples[i, s], truth[i], value_range)
            if moves:
                row["psnr_raw"] = metrics.psnr(posterior.samples[i, s], truth[i], value_range)
        return row

    return [
        ImageScores(
            samples=[None if diverged[i, s] else score(i, s) for s in range(diverged.shape[1])],
            psnr_mean=None if truth is None else for_json(metrics.psnr(mean[i], truth[i], value_range)),
            diversity=for_json(float(std[i].square().mean().sqrt())),
            coverage={} if truth is None else coverage(facing.samples[i][~diverged[i]], truth[i]),
        )
        for i in range(len(diverged))
    ]


def coverage(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of the truth (C, H, W) in the central credible intervals of its pixels, by the names of `COVERAGES`.

    Truth and exact samples are exchangeable: among L samples (L, C, H, W) each of the L + 1 ranks of the truth is as
    likely. So rank r, spread evenly over [r / (L + 1), (r + 1) / (L + 1)], is uniform over [0, 1] if the samples are
    right, and the middle part of that holds the truth as often as its level says, however few samples there are
    (`invdiff.scores.calibration` has the test). A truth that equals some samples is spread over all their ranks. Empty
    for fewer than two samples, of which one could not be wrong.
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

    psnr, ssim, lpips  averages over the samples that did not diverge
    psnr_mean          of the posterior mean
    baseline_psnr      of the operator's first guess (pseudo-inverse), which uses no prior
    misfit             reduced chi-square of the samples' residuals, averaged; 1 fits to the noise
    diverged           how many of the samples diverged

    Where the operator cannot tell some images apart (`Operator.align`), all of these are of images moved onto the truth
    first, the mean being that of `Posterior.aligned`, and there is one score more:

    psnr_raw           average over the samples as they are

    best_of  add the scores of one sample out of all; no average over them, and the first one is no result of a method:

    psnr_best_oracle   of the sample nearest to the truth, which nobody without the truth can choose
    psnr_best_misfit   of the sample that fits y best, which everybody can
    """
    problem = posterior.problem
    scores = [
        *SCORES,
        *(["psnr_raw"] if problem.operator.ambiguous else []),
        *(["psnr_best_oracle", "psnr_best_misfit"] if best_of else []),
    ]
    notes = missing_scores(problem, truth, scores)
    if posterior.diverged.any():
        notes["diverged"] = "diverged samples are left out of every average"
    baseline = None if truth is None else baseline_psnr(problem, truth, value_range)
    if truth is not None and baseline is None:
        notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no first guess"

    images = []
    for i, (name, found) in enumerate(zip(names, score_images(posterior, truth, value_range), strict=True)):
        row: dict[str, Any] = dict.fromkeys(("name", *scores, "diverged"))
        row["name"], row["diverged"] = name, found.samples.count(None)
        row |= {s: mean_of(found.kept(s)) for s in ("psnr", "ssim", "lpips", "misfit", "psnr_raw") if s in row}
        row["psnr_mean"] = found.psnr_mean
        if baseline is not None:
            row["baseline_psnr"] = for_json(baseline[i])
        if best_of and found.kept("psnr"):
            psnrs, misfits = found.kept("psnr"), found.kept("misfit")
            row["psnr_best_oracle"] = for_json(max(psnrs))
            row["psnr_best_misfit"] = for_json(psnrs[misfits.index(min(misfits))])
        images.append(row)

    for score in scores:
        # Whatever else left a gap where there were samples to score and a truth to compare them with.
        gaps = [row for row in images if row[score] is None and row["diverged"] < posterior.samples.shape[1]]
        if gaps and (truth is not None or score == "misfit") and score not in notes:
            notes[score] = "infinite, the images are equal" if "psnr" in score else "not a finite number"
    return {
        "images": images,
        "mean": {score: mean_of([row[score] for row in images]) for score in scores},
        "cost": asdict(posterior.cost),
        "notes": notes,
    }


def missing_scores(problem: InverseProblem, truth: Tensor | None, scores: Sequence[str] = SCORES) -> dict[str, Any]:
    """Reasons that are known beforehand why a score cannot be computed."""
    notes: dict[str, Any] = {}
    if truth is None:
        notes[", ".join(score for score in scores if score != "misfit")] = "the true image is not known"
    else:
        lpips_reason = metrics.lpips_unavailable(problem.image_shape)
        if lpips_reason is not None:
            notes["lpips"] = lpips_reason
        if min(problem.image_shape[-2:]) < metrics.SSIM_WINDOW:
            notes["ssim"] = f"SSIM looks through a window of {metrics.SSIM_WINDOW}x{metrics.SSIM_WINDOW} pixels"
    if problem.operator.ambiguous:
        notes["alignment"] = (
            f"{type(problem.operator).__name__} cannot tell some images apart: mean and std are of samples moved onto "
            "the one that fits best"
        )
        if truth is not None:
            notes["alignment"] += "; scores are of images moved onto the truth, psnr_raw of the samples as they are"
    return notes
