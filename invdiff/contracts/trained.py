"""The verdict on a prior that was just trained: does it denoise images that it has not seen, are its samples images?"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from invdiff.contracts.prior_figures import levels_for
from invdiff.contracts.prior_report import report_on
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.training.mixture_fit import MixtureFit, MixtureRecipe
from invdiff.priors.training.training import REPORT_SIGMAS, denoising_psnr

MOST_IMAGES, MOST_VALUES = 10_000, 64 * 64  # where a mixture is fitted in seconds and may be the better prior
ROUGHER = 2.0  # samples with so many times the roughness of images are noise


def roughness(x: Tensor) -> float:
    """Mean squared difference of neighbours over twice the variance, of images (N, C, H, W): 1 for white noise."""
    axes = [axis for axis in (2, 3) if x.shape[axis] > 1]
    steps = torch.stack([x.diff(dim=axis).square().mean() for axis in axes])
    return float(steps.mean() / (2 * x.var().clamp(min=1e-30)))


def verdict(prior: Prior, samples: Tensor, held_out: Tensor) -> list[str]:
    """Lines on a trained prior, what is wrong first; one line where nothing is.

    samples   of the prior, (N, C, H, W), image units
    held_out  images that it was not trained on, (M, C, H, W), image units
    """
    lines = []
    rough, right = roughness(samples), roughness(held_out)
    if not samples.isfinite().all() or rough > ROUGHER * right:
        lines.append(
            f"its samples are noise (roughness {rough:.2f}, of images {right:.2f}): train longer, or fit prior=mixture"
        )
    found = report_on(
        prior,
        [""],
        held_out[:4],
        levels_for(prior),
        seed=0,
        with_contract=False,
        samples=0,
        steps=1,
        device=held_out.device,
    )
    lines += [f"{v.rule}: {v.words}" for v in found.verdicts if v.result == "failed"]
    return lines or [
        f"check-prior: it denoises held-out images, its samples are as smooth as they ({rough:.2f}, {right:.2f})"
    ]


def better_mixture(network: Prior, images: Tensor, held_out: Tensor, path: Path) -> str | None:
    """Fit a mixture to few small images and say so where it denoises better than a network; it is written to `path`.

    images, held_out  (N, C, H, W) in [0, 1], training and validation part, of one size
    network           with the value range of the images
    """
    count, values = len(images), images[0].numel()
    components = min(100, count // 10)
    if count > MOST_IMAGES or values > MOST_VALUES or components < 1 or values < 32:
        return None
    recipe = MixtureRecipe(components=components, rank=16, channels=images.shape[1], minutes=1.0, iterations=15)
    with tempfile.TemporaryDirectory() as folder:
        fit = MixtureFit(recipe, images, held_out, Path(folder), value_range=network.value_range)
        mixture: LowRankMixturePrior = fit.run()
    scores = [sum(denoising_psnr(p, held_out, REPORT_SIGMAS).values()) / len(REPORT_SIGMAS) for p in (network, mixture)]
    if scores[1] <= scores[0]:
        return None
    mixture.save(path)
    return (
        f"a mixture fitted to the same images in {fit.seconds:.0f} s denoises held-out images better "
        f"({scores[1]:.1f} dB, this network {scores[0]:.1f} dB): use prior.weights={path}, or train longer"
    )
