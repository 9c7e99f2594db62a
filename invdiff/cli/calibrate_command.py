"""`invdiff calibrate`: compare a sampler's posterior with the true one, on truths drawn from the prior."""

import json
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from invdiff.cli.app import command, write_config
from invdiff.cli.inputs import make_prior, make_sampler
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate
from invdiff.report.calibration import calibration_figure
from invdiff.report.comparison import save_figure
from invdiff.report.tables import calibration_table
from invdiff.scores.calibration import calibrate


@command("calibrate")
def main(config: DictConfig, output: Path) -> None:
    """Draw truths, measure and sample them, and count how often they lie in the intervals of the samples."""
    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = instantiate(config.operator)
    noise: Noise = instantiate(config.noise)
    settled = make_sampler(config, operator, noise, prior)
    shape = _shape(config, prior)
    y = simulate(torch.full((1, *shape), 0.5), operator, noise, config.seed)
    first = torch.zeros(1, dtype=torch.long)
    problem = InverseProblem(operator.select(first), noise.select(first), y, image_shape=shape)
    sampler, reason = settled.sampler.resolve(problem, prior)
    sampler.check(problem, prior)
    console = Console(highlight=False, markup=False)
    for words in filter(None, (str(settled), reason and f"sampler {reason}")):
        console.print(words, soft_wrap=True)

    output.mkdir(parents=True, exist_ok=True)
    found = calibrate(
        sampler,
        prior,
        operator,
        noise,
        images=config.images,
        num_samples=config.num_samples,
        seed=config.seed,
        compute=compute,
        image_shape=shape,
        resolution=config.resolution,
    )
    write_config(config, output)
    (output / "calibration.json").write_text(json.dumps(found.summary(), indent=2, allow_nan=False) + "\n")
    title = f"{type(sampler).__name__} on {type(operator).__name__}, prior {type(prior).__name__}"
    save_figure(calibration_figure(found, title=title), output / "calibration.png")
    console.print(calibration_table(found, title))
    p, notes = found.summary()["p_value"], found.summary()["notes"]
    verdict = "not rejected" if p >= 0.05 else "rejected"
    words = f"calibration {verdict} (smallest corrected p = {p:.2g}); coverage below the level: over-confident"
    for line in (words, *notes, f"calibration.png and calibration.json are in {output}"):
        console.print(line, soft_wrap=True)


def _shape(config: DictConfig, prior: Prior) -> tuple[int, ...]:
    """(C, H, W) of the truths: the prior's, or squares of `size`."""
    if prior.shape is not None:
        if config.size is not None and config.size != prior.shape[-1]:
            raise BadInput(f"size={config.size} does not fit this prior of images {prior.shape}; leave size out")
        return tuple(prior.shape)
    if config.size is None:
        raise BadInput("this prior takes images of any size; give their side, for example size=32")
    return (prior.channels or 1, config.size, config.size)
