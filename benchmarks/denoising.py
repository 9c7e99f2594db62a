"""Denoising PSNR of a prior on a folder, .npz or .tar of images, beside BM3D on the same noisy images.

    pip install bm3d
    python benchmarks/denoising.py --prior photo --data photos/ --crop 256 --sigma 0.098 --images 16

Centre crops, one network call, estimates clamped to [0, 1], average of the PSNR of each image.
"""

import argparse

import numpy as np
import torch

from invdiff import load_prior
from invdiff.priors.training.images import read_images
from invdiff.priors.training.training import denoising_psnr, validation_set


def bm3d_psnr(clean: torch.Tensor, sigma: float, seed: int = 0) -> float:
    """The same noise as `denoising_psnr` draws, denoised by BM3D (colour images by its colour version)."""
    from bm3d import bm3d, bm3d_rgb

    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    values = []
    for noisy, x in zip((clean + sigma * noise).double(), clean, strict=True):
        if len(x) == 3:
            estimate = bm3d_rgb(noisy.permute(1, 2, 0).numpy(), sigma).transpose(2, 0, 1)
        else:
            estimate = bm3d(noisy[0].numpy(), sigma)[None]
        values.append(-10 * np.log10(np.mean((estimate.clip(0, 1) - x.numpy()) ** 2)))
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="photo")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--sigma", type=float, default=25 / 255)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    prior = load_prior(options.prior, weights=options.weights)
    images = read_images(options.data, channels=prior.channels or 3)
    large = [image for image in images if min(image.shape[:2]) >= options.crop]
    chosen = [large[i] for i in np.linspace(0, len(large) - 1, min(options.images, len(large))).round().astype(int)]
    clean = validation_set(chosen, options.crop)
    ours = denoising_psnr(prior, clean, [options.sigma], rows=4)[options.sigma]
    theirs = bm3d_psnr(clean, options.sigma)
    print(f"{len(clean)} images of {options.crop}x{options.crop}, sigma {options.sigma:.4f}")
    print(f"{options.prior}: {ours:.3f} dB   BM3D: {theirs:.3f} dB   difference {ours - theirs:+.3f} dB")


if __name__ == "__main__":
    main()
