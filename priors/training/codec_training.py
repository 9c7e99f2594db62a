"""Training of the codec of a latent prior: reconstruction error and a weak pull of codes to a standard normal law."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs.convolutional import CodecSpec, ConvolutionalCodec
from .images import random_batch
from .training import Recipe, finite, follow, validation_set, warm_cosine

CODE_RANGE = (-6.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """What to train and how.

    codec          the network
    crop           side of the training crops, pixels; a multiple of 2^levels
    batch, steps, minutes  size and bounds of the run
    learning_rate  peak; linear warm-up over 100 steps, then a cosine to zero
    kl             weight of the divergence from a standard normal law, for each number of a code, against the mean
                   absolute error of a pixel on [-1, 1]
    edges          weight of the absolute error of differences of neighbours
    """

    codec: CodecSpec
    crop: int = 128
    flip: bool = True
    batch: int = 16
    steps: int = 20_000
    minutes: float = 30.0
    learning_rate: float = 1e-3
    kl: float = 1e-4
    edges: float = 1.0
    held_out: int = 48
    seed: int = 0
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        multiple = 2 ** len(self.codec.widths)
        if self.crop % multiple:
            raise ValueError(f"codec: crop={self.crop} must be a multiple of {multiple} for this network")
        if min(self.batch, self.steps, self.minutes, self.learning_rate) <= 0 or min(self.kl, self.edges) < 0:
            raise ValueError("codec: batch, steps, minutes and learning_rate must be > 0, kl and edges >= 0")


@dataclass(frozen=True, kw_only=True)
class LatentRecipe:
    """A latent prior: first the codec, then a diffusion network on codes, which are read as images of `CODE_RANGE`."""

    codec: CodecRecipe
    codes: Recipe

    def __post_init__(self) -> None:
        spec, codes = self.codec.codec, self.codes
        if codes.unet.channels != spec.code_channels:
            raise ValueError(
                f"recipe: codes.unet.channels must be {spec.code_channels}, as the codec's, got {codes.unet.channels}"
            )
        if codes.flip or codes.rotate:
            raise ValueError("recipe: codes are not mirrored, their images are (codec.flip): set codes.flip=false")


def codec_loss(codec: ConvolutionalCodec, images: Tensor, noise: Tensor, kl: float, edges: float) -> Tensor:
    """Mean over the batch; images in [0, 1], noise like the codes."""
    mean, log_variance = codec.law(images)
    error = 2 * (codec.raw_image(mean + (0.5 * log_variance).exp() * noise) - images)
    steep = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + edges * steep + kl * divergence


class CodecTrainer:
    """Runs a recipe on uint8 images, in `folder`: its state is in `codec.pt`, from which it resumes."""

    def __init__(
        self, recipe: CodecRecipe, train: Sequence[np.ndarray], validation: Sequence[np.ndarray], folder: Path
    ) -> None:
        self.recipe, self.images, self.folder = recipe, train, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.codec = ConvolutionalCodec(recipe.codec).to(memory_format=torch.channels_last).to(self.device)
        self.average = copy.deepcopy(self.codec).requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(self.codec.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
        self.validation = validation_set(validation, recipe.crop)
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        return max(self.step / self.recipe.steps, self.seconds / (60 * self.recipe.minutes))

    def run(self, on_step: Callable[[int, float], None] | None = None) -> ConvolutionalCodec:
        """Train until a bound is reached; the codec in units of the recipe's value range, with scaled codes."""
        place = self.folder / "codec.pt"
        if place.exists():
            self._resume(place)
        start, saved = time.monotonic() - self.seconds, time.monotonic()
        try:
            while self.progress() < 1:
                loss = self.train_step()
                self.seconds = time.monotonic() - start
                if on_step is not None:
                    on_step(self.step, loss)
                if time.monotonic() - saved > 60:
                    self._save(place)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            self._save(place)
            raise
        self._save(place)
        return self.scaled()

    def train_step(self) -> float:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, self.step, 1))
        images = random_batch(self.images, rng, batch=recipe.batch, crop=recipe.crop, flip=recipe.flip, rotate=False)
        x = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
        noise = torch.from_numpy(rng.standard_normal((len(x), *self.codec.code_shape(tuple(x.shape[1:]))), np.float32))
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm_cosine(self.step, 100, self.progress())
        loss = codec_loss(self.codec, x, noise.to(x), recipe.kl, recipe.edges)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        value = finite(loss, self.step)
        follow(self.average, self.codec, 0.999, self.step)
        return value

    @torch.no_grad()
    def scaled(self, count: int = 512) -> ConvolutionalCodec:
        """The average, its codes of mean 0 and standard deviation 1 in each channel over training images."""
        codec = copy.deepcopy(self.average).cpu()
        rng = np.random.default_rng((self.recipe.seed, 2))
        images = random_batch(self.images, rng, batch=count, crop=self.recipe.crop, flip=False, rotate=False)
        means = torch.cat([codec.law(part)[0] for part in torch.from_numpy(images).split(32)])
        codec.shift.copy_(means.mean((0, 2, 3))[:, None, None])
        codec.scale.copy_(means.std((0, 2, 3))[:, None, None])
        codec.value_range = self.recipe.value_range
        return codec

    @torch.no_grad()
    def psnr(self) -> float:
        """Of validation images that are encoded and decoded, dB, averaged over images."""
        pairs = [
            (x, self.average.raw_image(self.average.law(x.to(self.device))[0]).cpu()) for x in self.validation.split(16)
        ]
        errors = torch.cat([(found.clamp(0, 1) - x).square().flatten(1).mean(1) for x, found in pairs])
        return float(-10 * errors.log10().mean())

    def _save(self, place: Path) -> None:
        state = {
            "codec": self.codec.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": {"step": self.step, "seconds": self.seconds},
            "spec": json.dumps(self.recipe.codec.as_dict()),
        }
        partial = place.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(place)

    def _resume(self, place: Path) -> None:
        state = torch.load(place, map_location=self.device, weights_only=True)
        if json.loads(state["spec"]) != json.loads(json.dumps(self.recipe.codec.as_dict())):
            raise ValueError(f"{place} holds another codec: {state['spec']}")
        self.codec.load_state_dict(state["codec"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["progress"]["step"], state["progress"]["seconds"]


@torch.no_grad()
def codes_of(codec: ConvolutionalCodec, images: Sequence[np.ndarray], *, flip: bool) -> list[np.ndarray]:
    """Codes of uint8 images [H, W, C], float32 [h, w, c], where 0 and 255 are the ends of `CODE_RANGE`.

    flip  those of mirrored images too
    """
    low, high = CODE_RANGE
    found = []
    for image in images:
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None] / 255
        x = torch.cat([x, x.flip(-1)]) if flip else x
        first, last = codec.value_range
        codes = codec.encode(first + (last - first) * x)
        found += [((code - low) / (high - low) * 255).permute(1, 2, 0).numpy() for code in codes]
    return found
