"""`invdiff train`: a prior from images, resumable, with a grid of samples and a model card at the end."""

from pathlib import Path
from tarfile import TarError
from zipfile import BadZipFile

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from invdiff.benchmark.loggers import Logger, check_loggers, loggers
from invdiff.cli.app import command
from invdiff.cli.config_file import write_config
from invdiff.cli.learning_run import learn
from invdiff.cli.mixture_run import ONLY_MEASUREMENTS, fit_mixture, read_recipe
from invdiff.cli.values import check_kinds
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.ode import generate
from invdiff.priors.training.card import write_card
from invdiff.priors.training.images import read_images, split
from invdiff.priors.training.training import REPORT_SIGMAS, Recipe, Trainer, denoising_psnr, validation_set
from invdiff.report.comparison import thumbnails
from invdiff.streams import Streams, generator


@command("train", values=("data", "prior"))
def main(config: DictConfig, output: Path) -> None:
    """Train, or go on where a checkpoint under `output` stopped; writes `prior.safetensors`, `grid.png`, `card.md`."""
    if config["from"] not in ("images", "measurements"):
        raise BadInput(f"from must be images or measurements, what to train on, got {config['from']}")
    if config.measurement is not None and config["from"] == "images":
        raise BadInput("measurement= goes with from=measurements")
    if config.data is None and config.measurement is None:
        raise BadInput("give data=: a folder, a .npz (uint8 array 'images') or a .tar of images")
    if not isinstance(config.grid, int) or config.grid < 1:
        raise BadInput(f"grid must be a whole number from 1 on, got {config.grid}")
    check_loggers(config.log)
    if config["from"] == "measurements":
        learn(config, output, _images)
    elif config.prior == "mixture":
        mixture = read_recipe(config)
        fit_mixture(config, mixture, _images(config, mixture.channels), output)
    elif config.prior == "network":
        train_network(config, output)
    else:
        raise BadInput(f"prior must be network or mixture here, what to train, got {config.prior}")


def _images(config: DictConfig, channels: int) -> list[np.ndarray]:
    try:
        return read_images(str(config.data), channels=channels, pad_to=config.pad_to)
    except (ValueError, EOFError, BadZipFile, TarError) as error:
        if isinstance(error, ValueError) and "pickle" not in str(error):
            raise
        raise BadInput(f"data is damaged or of another kind than its name says: {config.data}") from error


def train_network(config: DictConfig, output: Path) -> None:
    if config.size is not None:
        raise BadInput(f"size={config.size} goes with prior=mixture; a network is trained on crops of recipe.crop")
    check_kinds(config, "recipe")
    recipe: Recipe = instantiate(config.recipe, _convert_="all")
    images = _images(config, recipe.unet.channels)
    crop, (height, width, _) = recipe.crop, min((image.shape for image in images), key=lambda shape: min(shape[:2]))
    if min(height, width) < crop:
        raise BadInput(f"recipe.crop={crop} does not fit an image of {height}x{width}; pad_to={crop} pads it")
    training, validation = split(images, recipe.held_out)
    init = None if config.init is None else EDMPrior.load(config.init)
    trainer = Trainer(recipe, training, validation, output, init=init)
    try:
        with loggers(config.log, output, config) as logger:
            prior = run_with_progress(trainer, config, logger)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"interrupted at step {trainer.step}; the same command goes on from there") from stop

    clean = validation_set(validation, crop)
    psnr = denoising_psnr(prior, clean, REPORT_SIGMAS, precision=recipe.precision)
    thumbnails(sample_grid(prior, crop, config.grid), output / "grid.png", max(1, round(config.grid**0.5)))
    write_card(output / "card.md", name=config.name, recipe=recipe, trainer=trainer, images=len(training), psnr=psnr)
    Console(highlight=False, markup=False).print(
        f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes; weights, card and samples are in {output}\n"
        f"use them with prior.weights={output / 'prior.safetensors'}",
        soft_wrap=True,
    )


def run_with_progress(trainer: Trainer, config: DictConfig, logger: Logger) -> EDMPrior:
    """Train behind a bar that counts per mille of the run, which steps or minutes may bound.

    The configuration is saved with the first step: what cannot start must not overwrite that of a run that did.
    """
    saved = False
    with progress_bar(1000, "‰", "training") as bar:

        def on_step(step: int, loss: float) -> None:
            nonlocal saved
            if not saved:
                write_config(config, trainer.folder, without=ONLY_MEASUREMENTS)
                saved = True
            bar.update(int(1000 * min(1.0, trainer.progress())) - bar.n)
            bar.set_postfix(step=step, loss=f"{loss:.3f}", refresh=False)
            logger.scalars({"loss": loss}, step)

        def on_validation(row: dict[str, float]) -> None:
            logger.scalars({f"validation/{name}": value for name, value in row.items() if name != "step"}, trainer.step)

        return trainer.run(on_step, on_validation)


def sample_grid(prior: EDMPrior, size: int, count: int, steps: int = 40, seed: int = 0) -> torch.Tensor:
    """Unconditional samples (count, C, H, W); a prior of any size is sampled at its training crop."""
    shape = prior.shape or (prior.network.spec.channels, size, size)
    streams = Streams([generator(seed, "generate", i) for i in range(count)], shape, "cpu")
    with progress_bar(steps, "step", "sampling") as bar:
        return generate(prior.cpu(), streams.normal(), steps=steps, on_step=lambda _: bar.update())
