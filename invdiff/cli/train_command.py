"""`invdiff train`: a prior from images or measurements, resumable, with a grid of samples and a model card."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tarfile import TarError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from invdiff.benchmark.loggers import Logger, check_loggers, loggers
from invdiff.cli.app import command, typed, write_config
from invdiff.cli.inputs import plain
from invdiff.cli.targets import make, resolved
from invdiff.contracts.trained import better_mixture, verdict
from invdiff.engine.progress import Watch, progress_bar
from invdiff.io import BadInput, load_measurement
from invdiff.io.measurement import PARAMETERS
from invdiff.learning.em import Learner
from invdiff.learning.learners import MixtureLearner, NetworkLearner
from invdiff.learning.measured import operator_for_each
from invdiff.operators import Noise
from invdiff.priors import LatentPrior, LowRankMixturePrior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.training.card import write_card, write_latent_card, write_learned_card, write_mixture_card
from invdiff.priors.training.codec_training import CODE_RANGE, CodecTrainer, LatentRecipe, codes_of
from invdiff.priors.training.fields import is_fields, read_fields
from invdiff.priors.training.images import read_images, split
from invdiff.priors.training.mixture_fit import MixtureFit, MixtureRecipe, stack_images
from invdiff.priors.training.training import REPORT_SIGMAS, Recipe, Trainer, denoising_psnr, validation_set
from invdiff.problem import InverseProblem, simulate
from invdiff.ranges import Count
from invdiff.report.prior_grid import write_grid

ONLY_MEASUREMENTS = ("measurement", "operator", "noise", "sampler", "learning")  # unused on clean images


@command(
    "train",
    values=("data", "prior"),
    options={
        "from": Literal["images", "measurements"],
        "prior": Literal["network", "mixture"],
        "grid": Count,
        "axes": Literal["NCHW", "NHWC"] | None,
    },
)
def main(config: DictConfig, output: Path) -> None:
    """Train, or resume from a checkpoint under `output`; writes `prior.safetensors`, `grid.png`, `card.md`."""
    images = config["from"] == "images"
    if config.measurement is not None and images:
        raise BadInput("measurement= needs from=measurements")
    if config.data is None and config.measurement is None:
        raise BadInput("give data=: a folder or a .tar of images, or a .npy or .npz of arrays")
    if config.init is not None and not (images and config.prior == "network"):
        raise BadInput("init= needs from=images prior=network; other priors start from their data")
    if config.size is not None and images and config.prior == "network":
        raise BadInput(f"size={config.size} needs prior=mixture; a network is trained on crops of recipe.crop")
    check_loggers(config.log)
    recipe = make(config.mixture if config.prior == "mixture" else config.recipe, _convert_="all")
    if not images:
        done = _learn(config, recipe, output)
    elif config.prior == "mixture":
        done = _fit_mixture(config, recipe, output)
    elif isinstance(recipe, LatentRecipe):
        done = _train_latent(config, recipe, output)
    else:
        done = _train_network(config, recipe, output)
    Console(highlight=False, markup=False).print(
        f"{done}\nweights, card and samples are in {output}\n"
        f"use them with prior.weights={output / 'prior.safetensors'}",
        soft_wrap=True,
    )


def _images(config: DictConfig, channels: int) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Images (H, W, C) from 0 to 255, and the range that this is in image units."""
    fields = is_fields(str(config.data))
    picture_only = {"pad_to": config.pad_to} if fields else {"axes": config.axes, "value_range": config.value_range}
    for key, value in picture_only.items():
        if value is not None:
            raise BadInput(f"{key}= is for {'pictures' if fields else 'arrays of numbers'}, which {config.data} is not")
    try:
        if fields:
            given = {"axes": config.axes, "value_range": config.value_range}
            return read_fields(str(config.data), channels=channels, **given)
        images = read_images(str(config.data), channels=channels, pad_to=config.pad_to)
        return images, (0.0, 1.0)
    except (ValueError, EOFError, BadZipFile, TarError) as error:
        if isinstance(error, ValueError) and "pickle" not in str(error):
            raise
        raise BadInput(f"data is damaged, or not of the kind that its name says: {config.data}") from error


@contextmanager
def _watched(
    words: str, config: DictConfig, folder: Path, without: tuple[str, ...], state: Callable[[], str]
) -> Iterator[tuple[Watch, Logger]]:
    """A bar and a logger.

    without  keys that the run does not use
    state    where it was interrupted, in words
    """
    try:
        with loggers(config.log, folder, config) as logger, progress_bar(1000, "‰", words) as bar:
            yield Watch(bar, lambda: write_config(config, folder, without=without)), logger
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"interrupted {state()}; the same command resumes") from stop


# -- from images -------------------------------------------------------------------------------------------------------


def _train_network(config: DictConfig, recipe: Recipe, output: Path) -> str:
    images, value_range = _images(config, recipe.unet.channels)
    crop, (height, width, _) = recipe.crop, min((image.shape for image in images), key=lambda shape: min(shape[:2]))
    if min(height, width) < crop:
        raise BadInput(f"recipe.crop={crop} is larger than an image of {height}x{width}; pad_to={crop} pads it")
    training, validation = split(images, recipe.held_out)
    init = None if config.init is None else EDMPrior.load(config.init)
    trainer = Trainer(recipe, training, validation, output, init=init, value_range=value_range)
    with _watched("training", config, output, ONLY_MEASUREMENTS, lambda: f"at step {trainer.step}") as (watch, logger):

        def on_step(step: int, loss: float) -> None:
            watch.at(trainer.progress(), step=step, loss=f"{loss:.3f}")
            logger.scalars({"loss": loss}, step)

        def on_validation(row: dict[str, float]) -> None:
            scores = {f"validation/{name}": value for name, value in row.items() if name != "step"}
            logger.scalars(scores, trainer.step)

        prior = trainer.run(on_step, on_validation)
    held_out = validation_set(validation, crop)
    psnr = denoising_psnr(prior, held_out, REPORT_SIGMAS, precision=recipe.precision)
    samples = write_grid(
        prior, prior.shape or (prior.network.spec.channels, crop, crop), config.grid, output / "grid.png"
    )
    write_card(output / "card.md", name=config.name, recipe=recipe, trainer=trainer, images=len(training), psnr=psnr)
    lines = verdict(prior, samples, in_units(held_out, value_range))
    if len({image.shape for image in images}) == 1:
        mixture = better_mixture(
            prior, stack_images(training), stack_images(validation), output / "mixture.safetensors"
        )
        lines += [] if mixture is None else [mixture]
    return "\n".join([f"{trainer.step} steps in {trainer.seconds / 60:.1f} minutes", *lines])


def _train_latent(config: DictConfig, recipe: LatentRecipe, output: Path) -> str:
    """First the codec, then the network on its codes, each in a folder of its own, resumed from there."""
    if config.init is not None:
        raise BadInput("init= needs a recipe of a network in pixels; a latent prior starts from its data")
    images, value_range = _images(config, recipe.codec.codec.channels)
    training, validation = split(images, recipe.codec.held_out)
    first = CodecTrainer(replace(recipe.codec, value_range=value_range), training, validation, output / "codec")
    with _watched("codec", config, output, ONLY_MEASUREMENTS, lambda: f"at step {first.step}") as (watch, _):
        codec = first.run(lambda step, loss: watch.at(first.progress(), step=step, loss=f"{loss:.3f}"))
    codes, held_out = (codes_of(codec, part, flip=recipe.codec.flip) for part in (training, validation))
    second = Trainer(recipe.codes, codes, held_out, output / "codes", value_range=CODE_RANGE)
    with _watched("codes", config, output, ONLY_MEASUREMENTS, lambda: f"at step {second.step}") as (watch, logger):

        def on_step(step: int, loss: float) -> None:
            watch.at(second.progress(), step=step, loss=f"{loss:.3f}")
            logger.scalars({"loss": loss}, step)

        diffusion = second.run(on_step)
    diffusion.unit = 1.0
    prior = LatentPrior(diffusion, codec)
    prior.save(output / "prior.safetensors")
    shape = prior.shape or codec.image_shape((codec.code_channels, recipe.codes.crop, recipe.codes.crop))
    samples = write_grid(prior, shape, config.grid, output / "grid.png")
    write_latent_card(
        output / "card.md", name=config.name, recipe=recipe, codec=first, codes=second, images=len(training)
    )
    minutes = (first.seconds + second.seconds) / 60
    lines = verdict(prior, samples, in_units(validation_set(validation, shape[-1]), value_range))
    return "\n".join([f"codec {first.psnr():.1f} dB, {minutes:.1f} minutes", *lines])


def _fit_mixture(config: DictConfig, recipe: MixtureRecipe, output: Path) -> str:
    images, value_range = _images(config, recipe.channels)
    training, validation = split(images, recipe.held_out)
    held_out = stack_images(validation, recipe.size)
    fit = MixtureFit(recipe, stack_images(training, recipe.size), held_out, output, value_range=value_range)
    unused = ("recipe", *ONLY_MEASUREMENTS)
    with _watched("fitting", config, output, unused, lambda: f"after iteration {fit.iteration}") as (watch, logger):

        def on_iteration(row: dict[str, float | list[int]]) -> None:
            if row["reseeded"]:
                words = f"iteration {row['iteration']}: components {row['reseeded']} had too few images, seeded again"
                watch.bar.write(words)
            watch.at(fit.progress(), train=row["log_likelihood"], held_out=row["held_out"])
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            logger.scalars(numbers, fit.iteration)

        prior = fit.run(on_iteration)
    samples = write_grid(prior, fit.shape, config.grid, output / "grid.png")
    given = [f"{key}={config[key]}" for key in ("pad_to", "size") if config[key] is not None]
    given += [f"mixture.{key}={config.mixture[key]}" for key in ("components", "rank")]
    words = shlex.join(["invdiff", "train", "prior=mixture", f"data={config.data}", *given])
    psnr = denoising_psnr(prior, held_out, REPORT_SIGMAS)
    write_mixture_card(output / "card.md", name=config.name, fit=fit, command=words, psnr=psnr)
    minutes = fit.seconds / 60
    score = f"held-out log-likelihood {fit.best:.1f} nats per image"
    lines = verdict(prior, samples, in_units(held_out, value_range))
    return "\n".join([f"{fit.iteration} iterations in {minutes:.1f} minutes, {score}", *lines])


def in_units(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Images in [0, 1] in the units of a value range."""
    return value_range[0] + (value_range[1] - value_range[0]) * images


# -- from measurements -------------------------------------------------------------------------------------------------


def _learn(config: DictConfig, recipe: MixtureRecipe | Recipe, output: Path) -> str:
    plan = make(config.learning)
    problem, truth = _measurements(config, recipe)
    learner: Learner
    if isinstance(recipe, MixtureRecipe):
        learner = MixtureLearner(plan, recipe, problem, output)
    else:
        learner = NetworkLearner(plan, recipe, problem, output, sampler=make(config.sampler))
    unused = ("recipe" if config.prior == "mixture" else "mixture",)
    with _watched("learning", config, output, unused, lambda: f"after round {learner.round}") as (watch, logger):

        def on_round(row: dict[str, Any]) -> None:
            watch.bar.set_postfix(round=row["round"], held_out=row["held_out"], refresh=False)
            if row["held_out"] is not None:
                logger.scalars({"held_out": row["held_out"]}, row["round"])

        prior = learner.run(on_round, watch.at)
    words, score = "a network", "the last round"
    if isinstance(prior, LowRankMixturePrior):
        words = f"{prior.components} Gaussians of rank {prior.directions.shape[1]}, in closed form"
        score = f"the best round, by the evidence of the held-out measurements: {learner.best:.1f} nats"
    write_grid(prior, learner.problem.image_shape, config.grid, output / "grid.png")
    held_out = None if truth is None else truth[learner.held_out_index]
    write_learned_card(
        output / "card.md",
        name=config.name,
        prior=words,
        measurements=learner.problem.images,
        measured_by=type(learner.problem.operator).__name__,
        rounds=learner.round,
        minutes=learner.seconds / 60,
        score=score,
        command=shlex.join(["invdiff", "train", *typed()]),
        psnr=None if held_out is None else denoising_psnr(prior, held_out, REPORT_SIGMAS),
    )
    minutes, last = learner.seconds / 60, learner.rows[-1]["prior"]
    return f"{learner.round} rounds in {minutes:.1f} minutes, the last one of a {last}"


def _measurements(config: DictConfig, recipe: MixtureRecipe | Recipe) -> tuple[InverseProblem, Tensor | None]:
    """All measurements as one problem, and the true images where they are measured here."""
    noise: Noise = make(config.noise)
    if config.measurement is None:
        channels = recipe.channels if isinstance(recipe, MixtureRecipe) else recipe.unet.channels
        images, value_range = _images(config, channels)
        if value_range != (0.0, 1.0):
            raise BadInput("from=measurements takes pictures as data=; fields in other units need from=images")
        truth = stack_images(images, config.size)
        settings = plain(config.operator)
        settings.pop("_target_")
        cls = resolved(config.operator, "operator")
        operator = operator_for_each(cls, settings, tuple(truth.shape[1:]), len(truth)) or make(config.operator)
        y = simulate(truth, operator, noise, config.learning.seed)
        return InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:])), truth
    if config.data is not None:
        raise BadInput("give data= (images, measured here) or measurement= (a file of measurements), not both")
    open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
    given = load_measurement(Path(str(config.measurement)), parameters=open_, allow_nan=True)
    operator = make(config.operator, **given.parameters)
    y = given.y[:, None] if given.y.dim() == 3 else given.y  # grey images without an axis for their channel
    return InverseProblem(operator, noise, y, image_shape=getattr(recipe, "shape", None)), None
