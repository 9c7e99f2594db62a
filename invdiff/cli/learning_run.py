"""`invdiff train from=measurements`: a prior of images of which none was ever seen clean."""

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from invdiff.benchmark.loggers import Logger, loggers
from invdiff.cli.config_file import write_config
from invdiff.cli.mixture_run import draw, read_recipe
from invdiff.cli.values import check_kinds
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput, load_measurement
from invdiff.io.measurement import PARAMETERS
from invdiff.learning.em import Learner, LearningPlan
from invdiff.learning.learners import MixtureLearner, NetworkLearner
from invdiff.operators import Noise, Operator
from invdiff.priors import LowRankMixturePrior, Prior
from invdiff.priors.ode import generate
from invdiff.priors.training.card import write_learned_card
from invdiff.priors.training.mixture_fit import MixtureRecipe, stack_images
from invdiff.priors.training.training import REPORT_SIGMAS, Recipe, denoising_psnr
from invdiff.problem import InverseProblem, simulate
from invdiff.report.comparison import thumbnails
from invdiff.streams import Streams, generator

ReadImages = Callable[[DictConfig, int], list[np.ndarray]]


def learn(config: DictConfig, output: Path, read_images: ReadImages) -> None:
    """Learn, or go on where a checkpoint under `output` stopped; writes `prior.safetensors`, `grid.png`, `card.md`."""
    if config.prior not in ("network", "mixture"):
        raise BadInput(f"prior must be network or mixture here, what to train, got {config.prior}")
    if config.init is not None:
        raise BadInput("init= goes with from=images; a prior that is learned from measurements starts from a Gaussian")
    check_kinds(config, "operator", "noise", "sampler", "learning", *([] if config.prior == "mixture" else ["recipe"]))
    plan: LearningPlan = instantiate(config.learning)
    recipe: MixtureRecipe | Recipe
    recipe = read_recipe(config) if config.prior == "mixture" else instantiate(config.recipe, _convert_="all")
    problem, truth = _measurements(config, recipe, read_images)
    learner: Learner
    if isinstance(recipe, MixtureRecipe):
        learner = MixtureLearner(plan, recipe, problem, output)
    else:
        learner = NetworkLearner(plan, recipe, problem, output, sampler=instantiate(config.sampler))
    try:
        with loggers(config.log, output, config) as logger:
            prior = _run_with_progress(learner, config, logger)
    except KeyboardInterrupt as stop:
        done = f"interrupted after round {learner.round}" if learner.round else "interrupted in the first round"
        raise KeyboardInterrupt(f"{done}; the same command goes on from there") from stop
    _write(config, learner, prior, None if truth is None else truth[learner.held_out_index])
    Console(highlight=False, markup=False).print(
        f"{learner.round} rounds in {learner.seconds / 60:.1f} minutes, the last one of a {learner.rows[-1]['prior']}; "
        f"weights, card and samples are in {output}\nuse them with prior.weights={output / 'prior.safetensors'}",
        soft_wrap=True,
    )


# -- what goes in ------------------------------------------------------------------------------------------------------


def _measurements(
    config: DictConfig, recipe: MixtureRecipe | Recipe, read_images: ReadImages
) -> tuple[InverseProblem, Tensor | None]:
    """All measurements as one problem, and the true images where these are measured here."""
    noise: Noise = instantiate(config.noise)
    if config.measurement is not None:
        if config.data is not None:
            raise BadInput("give data= (images, measured here) or measurement= (a file of measurements), not both")
        open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
        given = load_measurement(Path(str(config.measurement)), parameters=open_, allow_nan=True)
        operator: Operator = instantiate(config.operator, **given.parameters)
        y = given.y[:, None] if given.y.dim() == 3 else given.y  # grey images without an axis for their channel
        shape = recipe.shape if isinstance(recipe, Recipe) else None
        return InverseProblem(operator, noise, y, image_shape=shape), None
    channels = recipe.channels if isinstance(recipe, MixtureRecipe) else recipe.unet.channels
    truth = stack_images(read_images(config, channels), config.size)
    operator = operator_for_each(config.operator, tuple(truth.shape[1:]), len(truth))
    y = simulate(truth, operator, noise, config.learning.seed)
    return InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:])), truth


def operator_for_each(config: DictConfig, shape: tuple[int, ...], count: int) -> Operator:
    """The operator with random choices of its own for each image, where its class knows how to make them.

    Masks that all images share would hide the same pixels of all of them, which then cannot be learned. Chosen by a
    file, or by what is not random, it is the same for all.
    """
    cls: Any = get_class(config["_target_"])
    if not hasattr(cls, "random"):
        return instantiate(config)
    known = inspect.signature(cls.random).parameters
    usual = inspect.signature(cls).parameters
    given = {str(k): v for k, v in config.items() if k != "_target_" and v is not None and v != usual[str(k)].default}
    if not set(given) <= set(known):
        return instantiate(config)
    options: dict[str, Any] = {str(k): v for k, v in config.items() if k in known and v is not None}
    if "shape" in known:
        options["shape"] = shape
    return cls.random(**options, images=count)


# -- what comes out ----------------------------------------------------------------------------------------------------


def _run_with_progress(learner: Learner, config: DictConfig, logger: Logger) -> Prior:
    """Learn behind a bar that counts per mille of the rounds.

    The configuration is saved with the first round: what cannot start must not overwrite that of a run that did.
    """
    other = "recipe" if config.prior == "mixture" else "mixture"
    saved = False
    with progress_bar(1000, "‰", "learning") as bar:

        def on_progress(share: float) -> None:
            nonlocal saved
            if not saved:
                write_config(config, learner.folder, without=(other,))
                saved = True
            bar.update(int(1000 * share) - bar.n)

        def on_round(row: dict[str, Any]) -> None:
            bar.set_postfix(round=row["round"], held_out=row["held_out"], refresh=False)
            if row["held_out"] is not None:
                logger.scalars({"held_out": row["held_out"]}, row["round"])

        return learner.run(on_round, on_progress)


def _write(config: DictConfig, learner: Learner, prior: Prior, truth: Tensor | None) -> None:
    """The grid of samples and the card."""
    if isinstance(prior, LowRankMixturePrior):
        samples = draw(prior, config.grid)
        words = f"{prior.components} Gaussians of rank {prior.directions.shape[1]}, in closed form"
        score = f"the best round, by the evidence of the held-out measurements: {learner.best:.1f} nats"
    else:
        assert prior.shape is not None
        streams = Streams([generator(0, "generate", i) for i in range(config.grid)], prior.shape, "cpu")
        samples = generate(prior.cpu(), streams.normal(), steps=40)
        words, score = "a network", "the last round"
    thumbnails(samples.clamp(0, 1), learner.folder / "grid.png", max(1, round(config.grid**0.5)))
    chosen = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    write_learned_card(
        learner.folder / "card.md",
        name=config.name,
        prior=words,
        measurements=learner.problem.images,
        measured_by=type(learner.problem.operator).__name__,
        rounds=learner.round,
        minutes=learner.seconds / 60,
        score=score,
        command=shlex.join(["invdiff", "train", *(word.removeprefix("++_values.") for word in chosen)]),
        psnr=None if truth is None else denoising_psnr(prior, truth, REPORT_SIGMAS),
    )
