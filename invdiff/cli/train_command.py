"""`invdiff train`: a diffusion prior from images, resumable, with a grid of samples and a model card at the end."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from invdiff.cli.app import command
from invdiff.priors.card import write_card
from invdiff.priors.edm import EDMPrior
from invdiff.priors.images import read_images, split
from invdiff.priors.ode import generate
from invdiff.priors.training import REPORT_SIGMAS, Recipe, Trainer, denoising_psnr, validation_set
from invdiff.progress import progress_bar
from invdiff.report.comparison import thumbnails
from invdiff.streams import Streams, generator


@command("train")
def main(config: DictConfig, output: Path) -> None:
    """Train, or go on where a checkpoint under `output` stopped; writes `prior.safetensors`, `grid.png`, `card.md`."""
    if config.data is None:
        raise ValueError("give data=: a folder, a .npz (uint8 array 'images') or a .tar of images")
    recipe: Recipe = instantiate(config.recipe)
    images = read_images(config.data, channels=recipe.unet.channels, pad_to=config.pad_to)
    training, validation = split(images, recipe.held_out)
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, output / "config.yaml", resolve=True)
    trainer = Trainer(recipe, training, validation, output)
    prior = run_with_progress(trainer)

    clean = validation_set(validation, recipe.crop)
    psnr = denoising_psnr(prior, clean, REPORT_SIGMAS, precision=recipe.precision)
    count, columns = config.grid, max(1, round(config.grid**0.5))
    thumbnails(sample_grid(prior, recipe.crop, count), output / "grid.png", columns)
    write_card(output / "card.md", name=config.name, recipe=recipe, trainer=trainer, images=len(training), psnr=psnr)
    Console(highlight=False).print(
        f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes; weights, card and samples are in {output}\n"
        f"use them with prior.weights={output / 'prior.safetensors'}",
        soft_wrap=True,
    )


def run_with_progress(trainer: Trainer) -> EDMPrior:
    """Train behind a bar that counts per mille of the run, which steps or minutes may bound."""
    with progress_bar(1000, "‰", "training") as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update(int(1000 * min(1.0, trainer.progress())) - bar.n)
            bar.set_postfix(step=step, loss=f"{loss:.3f}", refresh=False)

        return trainer.run(on_step)


def sample_grid(prior: EDMPrior, size: int, count: int, steps: int = 40, seed: int = 0) -> torch.Tensor:
    """Unconditional samples (count, C, H, W); a prior of any size is sampled at its training crop."""
    shape = prior.shape or (prior.channels, size, size)
    streams = Streams([generator(seed, "generate", i) for i in range(count)], shape, "cpu")
    with progress_bar(steps, "step", "sampling") as bar:
        return generate(prior.cpu(), streams.normal(), steps=steps, on_step=lambda _: bar.update())
