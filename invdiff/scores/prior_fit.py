"""How unlike the images of a prior a sample is: the test of a prior against the data, after a run.

A flexible prior explains nearly every measurement, so the misfit does not show that it is the wrong one. But samples
are then unlike its own images. A few numbers describe an image, its features: how far the denoiser moves it at some
noise levels, the logarithm of the mean of |x - D(x + sigma n, sigma)|^2; the energy of its octaves; mean, contrast, the
shares of dark and bright pixels, and the energy of its colours. The distance of an image is that of its features from
the nearest ones of reference images, over the distance that 95 % of other images of the same kind keep, times a
margin. References were measured once, by `benchmarks/prior_fit.py`.

These features are those of an image upside down, too. So a second test asks whether the prior denoises the image better
upside down, or inverted, than as it is: the mean log ratio of |x - D(x + sigma n, sigma)|^2 to that of the turned image
with the same noise, turned as well. It counts from what 95 % of other images of the kind stay below, times the margin,
or from 0. The larger of the distance and the exponential of what is above this limit is taken.

Cost: a denoiser call for each of `LEVELS`, and 12 for the turned images, of one sample of each image.
"""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from invdiff.priors import Prior
from invdiff.shapes import shallow_copy
from invdiff.streams import generator

LEVELS = (0.2, 0.5, 1.0, 2.0, 5.0)  # widths of the value range; at lower ones what samplers leave behind shows
TURN_LEVELS = (0.5, 1.0)  # widths: where the layout of an image decides
TURN_DRAWS = 2  # of the noise at each of these
SIDE = 64
OCTAVES, SMALLEST = 4, 8  # octaves of images that are this large or larger
FLOOR = 0.005  # widths: a contrast that does not count
DARK, BRIGHT, SHARE = 0.1, 0.9, 0.02
NEAREST = 5
CALLS = len(LEVELS) + 3 * TURN_DRAWS * len(TURN_LEVELS)  # of the denoiser, for each image
SHRINK = 0.5  # of the correlations between features
MARGIN = 1.3
TELLING = 0.4  # of the images of a kind must be found when turned, or the turn is no evidence: photographs upside down


def bundled_file() -> Path:
    """Features of the reference images of the priors of this package, made by `benchmarks/prior_fit.py`."""
    return Path(str(files("invdiff.priors"))) / "weights" / "prior_fit.npz"


@dataclass(frozen=True, eq=False)
class References:
    """Features of reference images of a prior, (N, F), the distance of 95 % of others, and limits of `turned`, (2,)."""

    features: Tensor
    usual: float
    turned: Tensor

    @classmethod
    def of(cls, prior: Prior) -> Self | None:
        """Those of a bundled prior, by the hash of its weights; None for others."""
        with np.load(bundled_file(), allow_pickle=False) as file:
            if prior.weights_hash is None or prior.weights_hash not in file:
                return None
            stored = torch.from_numpy(file[prior.weights_hash]).float()
            turned = torch.from_numpy(file[f"{prior.weights_hash}.turned"]).float()
            return cls(stored, float(file[f"{prior.weights_hash}.usual"]), turned)

    @classmethod
    def measured(cls, features: Tensor, others: Tensor, turned: Tensor) -> Self:
        """References, (N, F), and what is usual in other images of the kind: features (M, F), `turned` (M, 2)."""
        usual = float(cls(features, 1 / MARGIN, turned).distance(others).quantile(0.95))
        limit = (MARGIN * turned.quantile(0.95, 0)).clamp(min=0)
        telling = (-turned > limit).float().mean(0) >= TELLING
        return cls(features, usual, limit.where(telling, torch.inf))

    def distance_of(self, features: Tensor, turned: Tensor) -> Tensor:
        """The larger of `distance` and the excess of `turned`, (B,): below 1 for images like the references."""
        return torch.maximum(self.distance(features), (turned - self.turned).amax(1).exp())

    def distance(self, features: Tensor) -> Tensor:
        """Distance of images from the references, (B,), by their features alone."""
        mean, std = self.features.mean(0), self.features.std(0) + 1e-6
        scaled = (self.features - mean) / std
        covariance = (1 - SHRINK) * scaled.mT @ scaled / len(scaled) + SHRINK * torch.eye(len(mean))
        root = torch.linalg.cholesky(covariance)

        def white(x: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root, ((x - mean) / std).mT, upper=False).mT / len(mean) ** 0.5

        near = torch.cdist(white(features), white(self.features)).topk(NEAREST, 1, largest=False).values
        return near.mean(1) / (MARGIN * self.usual)


def distance_from(
    prior: Prior, samples: Tensor, diverged: Tensor, device: torch.device, known: References | None = None
) -> Tensor | None:
    """Distance of the first sample of each image that did not diverge, (B,); NaN where none is left.

    samples   (B, S, C, H, W), diverged (B, S)
    known     references; None: the bundled ones

    None where there are no references, and for images too small to have octaves.
    """
    known = known or References.of(prior)
    if known is None or min(samples.shape[-2:]) < 2 * SMALLEST:
        return None
    prior = shallow_copy(prior).to(device)
    found = torch.full((len(samples),), torch.nan)
    for i, lost in enumerate(diverged):
        if not lost.all():
            x = samples[i, int((~lost).int().argmax())][None].to(device)
            features = features_of(prior, x)
            if features.shape[1] != known.features.shape[1]:  # a smaller image has fewer octaves than the references
                return None
            found[i] = known.distance_of(features, turned(prior, x))[0]
    return found


@torch.no_grad()
def features_of(prior: Prior, x: Tensor) -> Tensor:
    """Features of images (B, C, H, W) in image units, (B, F), float32 on the CPU.

    For a prior of images of any size they are of the centre, reduced to `SIDE` pixels.
    """
    x = _centre(prior, x)
    low, high = prior.value_range
    width = high - low
    noise = torch.randn(x.shape[1:], generator=generator(0, "generate", 0)).to(x)
    removed = [
        (prior.denoise(x + level * width * noise, level * width) - x).square().flatten(1).mean(1).log()
        - 2 * math.log(width)
        for level in LEVELS
    ]
    plain = (x - low) / width
    flat = plain.flatten(1)
    tone = [
        flat.mean(1),
        (flat.std(1) + FLOOR).log(),
        ((flat < DARK).float().mean(1) + SHARE).log(),
        ((flat > BRIGHT).float().mean(1) + SHARE).log(),
    ]
    colour = [_energy(plain - plain.mean(1, keepdim=True))] if x.shape[1] > 1 else []
    return torch.stack([*removed, *_octaves(plain), *tone, *colour], 1).float().cpu()


@torch.no_grad()
def turned(prior: Prior, x: Tensor) -> Tensor:
    """How much better than images (B, C, H, W) a prior denoises them upside down, and inverted: (B, 2) on the CPU.

    Mean logarithm of the ratio of the mean square errors over `TURN_LEVELS` and `TURN_DRAWS`; above 0: better turned.
    """
    x = _centre(prior, x)
    low, high = prior.value_range
    found = torch.zeros(len(x), 2, device=x.device)
    for draw in range(TURN_DRAWS):
        for i, level in enumerate(TURN_LEVELS):
            sigma = level * (high - low)
            noise = sigma * torch.randn(x.shape[1:], generator=generator(1, "generate", draw, i)).to(x)

            def error(image: Tensor, noise: Tensor, sigma: float = sigma) -> Tensor:
                return (prior.denoise(image + noise, sigma) - image).square().flatten(1).mean(1).log()

            upside_down, inverted = error(x.flip(-2), noise.flip(-2)), error(low + high - x, -noise)
            found += error(x, noise)[:, None] - torch.stack([upside_down, inverted], 1)
    return (found / (TURN_DRAWS * len(TURN_LEVELS))).float().cpu()


def _centre(prior: Prior, x: Tensor) -> Tensor:
    """The images, and for a prior of images of any size their centre, reduced to `SIDE` pixels."""
    x, side = x.float(), min(x.shape[-2:])
    if prior.shape is None and side > SIDE:
        top, left = ((n - side) // 2 for n in x.shape[-2:])
        x = x[..., top : top + side, left : left + side]
        x = interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return x


def _octaves(x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    while len(found) < OCTAVES and min(x.shape[-2:]) >= SMALLEST:
        coarse = avg_pool2d(x, 2)
        smooth = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
        found.append(_energy(x[..., : smooth.shape[-2], : smooth.shape[-1]] - smooth))
        x = coarse
    return found


def _energy(x: Tensor) -> Tensor:
    """Logarithm of the root mean square of each image."""
    return (x.square().flatten(1).mean(1) + FLOOR**2).log() / 2
