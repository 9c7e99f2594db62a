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
    notes = {}
    lpips_reason = metrics.lpips_unavailable()
    if truth is None:
        notes["psnr, psnr_mean, ssim, lpips, baseline_psnr"] = "the true image is not known"
    elif lpips_reason is not None:
        notes["lpips"] = lpips_reason
    baseline = problem.operator.first_guess(problem.y)
    if truth is not None and baseline is None:
        notes["baseline_psnr"] = f"{type(problem.operator).__name__} has no pseudo-inverse"
    with torch.no_grad():
        misfit = torch.stack([problem.misfit(posterior.samples[:, s]) for s in range(posterior.samples.shape[1])], 1)

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
            if lpips_reason is None:
                row["lpips"] = mean_of([metrics.lpips_distance(x, truth[i], value_range) for x in samples])
            if baseline is not None:
                row["baseline_psnr"] = for_json(metrics.psnr(baseline[i], truth[i], value_range))
        images.append(row)
    if posterior.diverged.any():
        notes["diverged"] = "diverged samples are left out of every average"
    return {
        "images": images,
        "mean": {score: mean_of([row[score] for row in images]) for score in SCORES},
        "cost": asdict(posterior.cost),
        "notes": notes,
    }
