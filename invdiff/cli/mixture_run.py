"""`invdiff train prior=mixture`: low-rank Gaussians fitted to images, with samples and a card at the end."""

import shlex
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from invdiff.benchmark.loggers import Logger, loggers
from invdiff.cli.config_file import write_config
from invdiff.cli.values import check_kinds
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.closed_form.low_rank import LowRankMixturePrior
from invdiff.priors.training.card import write_mixture_card
from invdiff.priors.training.images import split
from invdiff.priors.training.mixture_fit import MixtureFit, MixtureRecipe, stack_images
from invdiff.priors.training.training import REPORT_SIGMAS, denoising_psnr
from invdiff.report.comparison import thumbnails
from invdiff.streams import generator

# Keys that say nothing of a run on clean images.
ONLY_MEASUREMENTS = ("measurement", "operator", "noise", "sampler", "learning")


def read_recipe(config: DictConfig) -> MixtureRecipe:
    """The recipe of a mixture; BadInput names an option that only a network has."""
    if config.init is not None:
        raise BadInput("init= goes with prior=network; a mixture starts from its images, or from its own checkpoint")
    check_kinds(config, "mixture")
    return instantiate(config.mixture, _convert_="all")


def fit_mixture(config: DictConfig, recipe: MixtureRecipe, images: list[np.ndarray], output: Path) -> None:
    """Fit, or go on where a checkpoint under `output` stopped; writes `prior.safetensors`, `grid.png`, `card.md`."""
    training, validation = split(images, recipe.held_out)
    held_out = stack_images(validation, recipe.size)
    fit = MixtureFit(recipe, stack_images(training, recipe.size), held_out, output)
    try:
        with loggers(config.log, output, config) as logger:
            prior = run_with_progress(fit, config, logger)
    except KeyboardInterrupt as stop:
        done = f"interrupted after iteration {fit.iteration}" if fit.iteration else "interrupted before an iteration"
        raise KeyboardInterrupt(f"{done}; the same command goes on from there") from stop

    psnr = denoising_psnr(prior, held_out, REPORT_SIGMAS)
    columns = max(1, round(config.grid**0.5))
    thumbnails(draw(prior, config.grid).clamp(0, 1), output / "grid.png", columns)
    given = [f"{key}={config[key]}" for key in ("pad_to", "size") if config[key] is not None]
    given += [f"mixture.{key}={config.mixture[key]}" for key in ("components", "rank")]
    command = shlex.join(["invdiff", "train", "prior=mixture", f"data={config.data}", *given])
    write_mixture_card(output / "card.md", name=config.name, fit=fit, command=command, psnr=psnr)
    Console(highlight=False, markup=False).print(
        f"{fit.iteration} iterations in {fit.seconds / 60:.1f} minutes, held-out log-likelihood {fit.best:.1f} nats "
        f"per image; weights, card and samples are in {output}\n"
        f"use them with prior.weights={output / 'prior.safetensors'}",
        soft_wrap=True,
    )


def run_with_progress(fit: MixtureFit, config: DictConfig, logger: Logger) -> LowRankMixturePrior:
    """Fit behind a bar that counts per mille of the run, which iterations or minutes may bound; it may end earlier.

    The configuration is saved with the first iteration: what cannot start must not overwrite that of a run that did.
    """
    first = True
    with progress_bar(1000, "‰", "fitting") as bar:

        def on_iteration(row: dict[str, float | list[int]]) -> None:
            nonlocal first
            if first:
                write_config(config, fit.folder, without=("recipe", *ONLY_MEASUREMENTS))
                first = False
            if row["reseeded"]:
                bar.write(
                    f"iteration {row['iteration']}: components {row['reseeded']} had too few images, seeded again"
                )
            bar.update(int(1000 * min(1.0, fit.progress())) - bar.n)
            bar.set_postfix(train=row["log_likelihood"], held_out=row["held_out"], refresh=False)
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            logger.scalars(numbers, fit.iteration)

        return fit.run(on_iteration)


def draw(prior: ClosedFormPrior, count: int, seed: int = 0) -> torch.Tensor:
    """Exact samples (count, C, H, W); sample i depends on (seed, i) alone."""
    return torch.cat([prior.sample(1, generator(seed, "generate", i)) for i in range(count)])
