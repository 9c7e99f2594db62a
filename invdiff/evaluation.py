"""Scores of a batch of reconstructions, as `metrics.json` states them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from invdiff import metrics
from invdiff.metrics import for_json, mean_of
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem

SCORES = ("psnr", "psnr_mean", "ssim", "lpips", "misfit", "baseline_psnr")


def evaluate(
    problem: InverseProblem,
    posterior: Posterior,
    names: Sequence[str],
    truth: Tensor | None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Any]:
    """Score every image; what cannot be computed is None, with the reason under `notes`.

    psnr, ssim, lpips  averages over the samples that did not diverge
    psnr_mean          of the posterior mean
    baseline_psnr      of the operator's first guess (pseudo-inverse), which uses no prior
    misfit             reduced chi-square of the samples' residuals, averaged; 1 fits to the noise
    diverged           how many of the samples diverged
    """
    notes = _missing(problem, posterior, truth)
    baseline = None
    with torch.no_grad():
        if truth is not None:
            baseline = problem.operator.first_guess(problem.y)
        misfit = torch.stack([problem.misfit(posterior.samples[:, s]) for s in range(posterior.samples.shape[1])], 1)
    if truth is not None and baseline is None:
        notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no pseudo-inverse"

    images = []
    mean = posterior.mean
    for i, name in enumerate(names):
        kept = [s for s in range(posterior.samples.shape[1]) if not posterior.diverged[i, s]]
        row: dict[str, Any] = dict.fromkeys(("name", *SCORES, "diverged"))
        row["name"], row["diverged"] = name, len(posterior.diverged[i]) - len(kept)
        row["misfit"] = mean_of([float(misfit[i, s]) for s in kept])
        if truth is not None:
            samples = [posterior.samples[i, s] for s in kept]
            row["psnr"] = mean_of([metrics.psnr(x, truth[i], value_range) for x in samples])
            row["ssim"] = mean_of([metrics.ssim(x, truth[i], value_range) for x in samples])
            row["psnr_mean"] = for_json(metrics.psnr(mean[i], truth[i], value_range))
            if "lpips" not in notes:
                row["lpips"] = mean_of([metrics.lpips_distance(x, truth[i], value_range) for x in samples])
            if baseline is not None:
                row["baseline_psnr"] = for_json(metrics.psnr(baseline[i], truth[i], value_range))
        images.append(row)

    for score in SCORES:
        # Whatever else left a gap where there were samples to score and a truth to compare them with.
        gaps = [row for row in images if row[score] is None and row["diverged"] < posterior.samples.shape[1]]
        if gaps and (truth is not None or score == "misfit") and score not in notes:
            notes[score] = "infinite, the images are equal" if "psnr" in score else "not a finite number"
    return {
        "images": images,
        "mean": {score: mean_of([row[score] for row in images]) for score in SCORES},
        "cost": asdict(posterior.cost),
        "notes": notes,
    }


def _missing(problem: InverseProblem, posterior: Posterior, truth: Tensor | None) -> dict[str, Any]:
    """Reasons that are known beforehand why a score cannot be computed."""
    notes: dict[str, Any] = {}
    if truth is None:
        notes["psnr, psnr_mean, ssim, lpips, baseline_psnr"] = "the true image is not known"
    else:
        lpips_reason = metrics.lpips_unavailable(problem.image_shape)
        if lpips_reason is not None:
            notes["lpips"] = lpips_reason
        if min(problem.image_shape[-2:]) < metrics.SSIM_WINDOW:
            notes["ssim"] = f"SSIM looks through a window of {metrics.SSIM_WINDOW}x{metrics.SSIM_WINDOW} pixels"
    if posterior.diverged.any():
        notes["diverged"] = "diverged samples are left out of every average"
    return notes
