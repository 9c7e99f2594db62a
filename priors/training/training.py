"""Training of network priors: EDM loss, EMA, cosine schedule, checkpoint and resume.

Paper       Karras et al. 2022, arXiv:2206.00364, equations 7 and 8 with the weighting of Table 1.
Departures  noise levels: lognormal, mixed with a log-uniform share over the whole range, so that every level a sampler
            may ask for has been seen; drawn stratified over the batch, which lowers the variance of the gradient.
Bounds      a run ends after `steps` steps or `minutes` minutes, whichever comes first; the learning rate follows the
            one that is nearer to its end, so that a slow machine also finishes its cosine.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from ..networks.edm import EDMPrior
from ..networks.unet import UNet, UNetSpec
from ..precision import autocast
from .images import channel_means, random_batch
from .optimiser import Optimiser

REPORT_SIGMAS = (0.01, 0.025, 0.05, 25 / 255, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how.

    unet            the network
    shape           (C, H, W) for a prior of one size, None for any size
    crop            side of the training crops, pixels; a multiple of `unet.multiple`
    flip, rotate    augmentation, see `images.random_batch`
    batch, steps, minutes   size and bounds of the run
    learning_rate   peak of the learning rate; linear warm-up, then a cosine to zero
    ema             decay of the weight average that is validated and saved
    log_sigma       mean and standard deviation of ln(sigma), image units
    uniform_share   fraction of noise levels drawn log-uniformly over `sigma_range` instead
    held_out        images kept for validation
    validate_every  steps between validations; each one also writes a checkpoint
    """

    unet: UNetSpec
    shape: tuple[int, int, int] | None = None
    crop: int = 64
    flip: bool = True
    rotate: bool = False
    batch: int = 16
    steps: int = 10_000
    minutes: float = 60.0
    learning_rate: float = 5e-4
    warmup: int = 100
    ema: float = 0.999
    log_sigma: tuple[float, float] = (-2.0, 1.4)
    uniform_share: float = 0.1
    sigma_data: float = 0.25
    sigma_range: tuple[float, float] = (0.002, 80.0)
    held_out: int = 32
    validate_every: int = 500
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.crop % self.unet.multiple:
            raise ValueError(f"crop={self.crop} must be a multiple of {self.unet.multiple} for this network")
        if not 0 <= self.uniform_share <= 1 or not 0 < self.ema < 1:
            raise ValueError("uniform_share must lie in [0, 1] and ema in (0, 1)")
        if min(self.batch, self.steps, self.minutes, self.learning_rate, self.validate_every) <= 0:
            raise ValueError("batch, steps, minutes, learning_rate and validate_every must be positive")


def draw_sigmas(recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """One noise level per image of a batch, (batch,): stratified quantiles of the recipe's mixture."""
    quantiles = (rng.permutation(recipe.batch) + rng.random(recipe.batch)) / recipe.batch
    low, high = np.log(recipe.sigma_range)
    normal = NormalDist(*recipe.log_sigma)
    share = recipe.uniform_share
    logs = []
    for q in quantiles:
        if q < share:  # stratified as well: the lowest quantiles are the log-uniform part
            logs.append(low + (high - low) * q / share)
        else:
            logs.append(normal.inv_cdf(min(max((q - share) / (1 - share), 1e-6), 1 - 1e-6)))
    return torch.tensor(np.exp(np.clip(logs, low, high)), dtype=torch.float32)


def edm_loss(prior: EDMPrior, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Weighted denoising error per image, (B,): one at initialisation for every noise level."""
    weight = (sigma**2 + prior.sigma_data**2) / (sigma * prior.sigma_data) ** 2
    estimate = prior.denoise(clean + sigma_per_row(sigma, clean) * noise, sigma)
    return weight * (estimate - clean).square().flatten(1).mean(1)


def warm_cosine(step: int, warmup: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero at progress 1."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))


def finite(loss: Tensor, step: int) -> float:
    """The loss as a number. Raises FloatingPointError where it is none."""
    value = float(loss.item())
    if not np.isfinite(value):
        raise FloatingPointError(f"the loss became {value} at step {step}; lower learning_rate and resume")
    return value


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, ema: float, step: int) -> None:
    """Move the average of the weights; its memory is short at first, so that it does not keep the initial ones."""
    decay = min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


class Trainer:
    """Runs a recipe on images, in `folder`: `checkpoint.pt`, `prior.safetensors` (the best average), `log.jsonl`.

    init         a trained prior to start from instead of random weights: see `UNet.start_from`
    value_range  what the darkest and the brightest value of images stand for: the image units of `prior.safetensors`
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Sequence[np.ndarray],
        validation: Sequence[np.ndarray],
        folder: Path,
        *,
        init: EDMPrior | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.value_range = value_range
        self.recipe, self.train_images, self.folder = recipe, train, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.seed)  # initial weights; the only use of the global stream
        self.prior = EDMPrior(
            UNet(recipe.unet),
            shape=recipe.shape,
            sigma_data=recipe.sigma_data,
            sigma_range=recipe.sigma_range,
            mean=channel_means(train),
        ).to(self.device)
        if init is not None:
            self.prior.network.start_from(init.network)
        self.optimiser = Optimiser(self.prior, recipe.learning_rate)
        self.average = copy.deepcopy(self.prior).requires_grad_(False).eval()
        self.validation = validation_set(validation, recipe.crop)
        self.step, self.seconds, self.best = 0, 0.0, -float("inf")
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        on_step: Callable[[int, float], None] | None = None,
        on_validation: Callable[[dict[str, float]], None] | None = None,
    ) -> EDMPrior:
        """Train until a bound is reached; returns the best average.

        on_step(step, loss)            called after every step
        on_validation(row of the log)  called after every validation
        """
        if (self.folder / "checkpoint.pt").exists():
            self.resume()
        start = time.monotonic() - self.seconds
        try:
            while self.progress() < 1:
                loss = self.train_step()
                self.seconds = time.monotonic() - start
                if on_step is not None:
                    on_step(self.step, loss)
                if self.step % self.recipe.validate_every == 0 or self.progress() >= 1:
                    row = self.validate()
                    if on_validation is not None:
                        on_validation(row)
        except KeyboardInterrupt:
            self.save_checkpoint()
            raise
        return EDMPrior.load(self.folder / "prior.safetensors")

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        return max(self.step / self.recipe.steps, self.seconds / (60 * self.recipe.minutes))

    def learning_rate(self) -> float:
        return self.recipe.learning_rate * warm_cosine(self.step, self.recipe.warmup, self.progress())

    def train_step(self) -> float:
        recipe = self.recipe
        # Data and noise of step k depend on (seed, k) alone: a resumed run goes on exactly where it stopped.
        rng = np.random.default_rng((recipe.seed, self.step))
        batch = random_batch(
            self.train_images, rng, batch=recipe.batch, crop=recipe.crop, flip=recipe.flip, rotate=recipe.rotate
        )
        clean = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
        noise = torch.from_numpy(rng.standard_normal(batch.shape, dtype=np.float32)).to(clean)
        sigma = draw_sigmas(recipe, rng).to(self.device)
        self.optimiser.set_learning_rate(self.learning_rate())

        with autocast(recipe.precision, self.device):
            loss = edm_loss(self.prior, clean, noise, sigma).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        value = finite(loss, self.step)
        follow(self.average, self.prior, recipe.ema, self.step)
        return value

    def validate(self) -> dict[str, float]:
        """Score the average, keep it if it is the best so far, and save the state; returns the row of the log."""
        psnr = denoising_psnr(self.average, self.validation, REPORT_SIGMAS, precision=self.recipe.precision)
        mean = float(np.mean(list(psnr.values())))
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2), "mean_psnr": round(mean, 3)}
        row |= {f"psnr_{s:.3g}": round(v, 3) for s, v in psnr.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if mean > self.best:
            self.best = mean
            self.average.in_units(self.value_range).save(self.folder / "prior.safetensors")
        self.save_checkpoint()
        return row

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        state = {
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": {"step": self.step, "seconds": self.seconds, "best": self.best},
            "recipe": json.dumps(asdict(self.recipe)),
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from `checkpoint.pt`; the bounds may have changed since, the network may not."""
        state = torch.load(self.folder / "checkpoint.pt", map_location=self.device, weights_only=True)
        before = json.loads(state["recipe"]).get("unet", "a mixture, no network")
        if before != json.loads(json.dumps(self.recipe.unet.as_dict())):
            raise ValueError(f"{self.folder / 'checkpoint.pt'} holds another network: {before}")
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.best = (state["progress"][k] for k in ("step", "seconds", "best"))


def validation_set(images: Sequence[np.ndarray], crop: int) -> Tensor:
    """Centre crops, float32 [N, C, crop, crop] in [0, 1]."""
    crops = []
    for image in images:
        top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
        crops.append(image[top : top + crop, left : left + crop])
    return torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / 255)


@torch.no_grad()
def denoising_psnr(
    prior: Prior, clean: Tensor, sigmas: Sequence[float], *, precision: str = "auto", seed: int = 0, rows: int = 16
) -> dict[float, float]:
    """PSNR in dB of one denoiser call at each noise level, averaged over images.

    clean   (N, C, H, W) images in [0, 1]; estimates are clamped to [0, 1], as every published figure is
    sigmas  for images in [0, 1]; a prior in other units gets images and levels in its own
    rows    images per call
    """
    low, high = prior.value_range
    span = high - low
    device = next(chain(prior.parameters(), prior.buffers())).device
    result = {}
    for sigma in sigmas:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        errors = []
        for x, n in zip(clean.split(rows), noise.split(rows), strict=True):
            with autocast(precision, device):
                estimate = prior.denoise((low + span * (x + sigma * n)).to(device), span * sigma).cpu()
            estimate = (estimate - low) / span
            errors.append((estimate.clamp(0, 1) - x).square().flatten(1).mean(1))
        result[sigma] = float(-10 * torch.cat(errors).log10().mean())
    return result
