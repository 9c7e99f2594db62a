"""`invdiff calibrate`: compare a sampler's posterior with the true one, on truths drawn from the prior."""

import json
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

from invdiff.checks import check_callable
from invdiff.cli.app import command, write_config
from invdiff.cli.inputs import make_prior, make_sampler
from invdiff.cli.targets import make
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.io.atomic import write_atomically
from invdiff.io.truth import true_images
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate
from invdiff.ranges import Count
from invdiff.report.calibration import calibration_figure, largest_effect
from invdiff.report.comparison import save_figure
from invdiff.report.tables import calibration_table
from invdiff.scores.calibration import calibrate
from invdiff.scores.conformal import correct
from invdiff.scores.stored import key_of


@command("calibrate", options={"images": Count})
def main(config: DictConfig, output: Path) -> None:
    """Draw or read truths, measure and sample them, and count how often they lie in the intervals of the samples."""
    compute: Compute = make(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = make(config.operator)
    noise: Noise = make(config.noise)
    settled = make_sampler(config, operator, noise, prior)
    given = None
    if config.input is not None:
        given, *_ = true_images(prior, files=config.input, size=config.size, seed=config.seed, most=config.images)
    shape = _shape(config, prior) if given is None else tuple(given.shape[1:])
    check_callable(operator, prior, shape)
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
        images=config.images if given is None else given,
        num_samples=config.num_samples,
        seed=config.seed,
        compute=compute,
        image_shape=shape,
        resolution=config.resolution,
    )
    summary = found.summary()
    truths = "draws of the prior" if given is None else f"images in {Path(config.input).name}"
    key = key_of(problem, prior, sampler, config.num_samples)
    correction = None
    try:
        about = {"key": key, "truths": truths, "drawn": given is None, "shape": shape}
        correction = correct(found.errors, config.num_samples, config.seed, **about)
        intervals = f"{correction}, {correction.pixels[0.9].before[0]:.2f} before the correction"
    except ValueError as error:  # the tests of ranks stand all the same
        intervals = str(error)
    summary["calibrations"] = [] if correction is None else [correction.as_json()]
    write_config(config, output)
    write_atomically(output / "calibration.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    title = f"{type(sampler).__name__} on {type(operator).__name__}, prior {type(prior).__name__}"
    save_figure(calibration_figure(found, title=title), output / "calibration.png")
    console.print(calibration_table(found, title))
    p = summary["p_value"]
    verdict = f"calibration {'not rejected' if p >= 0.05 else 'rejected'} (smallest corrected p = {p:.2g})"
    use = (
        f"calibration.png and calibration.json are in {output}; reconstruct takes calibration={output}/calibration.json"
    )
    for line in (f"{verdict}: {largest_effect(found, correction)}", intervals, *summary["notes"], use):
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
