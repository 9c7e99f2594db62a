"""`invdiff calibrate`: is a sampler's posterior the posterior, where the truth is drawn from the prior?"""

import json
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from invdiff.cli.app import command
from invdiff.cli.config_file import write_config
from invdiff.cli.inputs import make_prior
from invdiff.cli.values import check_kinds
from invdiff.engine.driver import Compute
from invdiff.io import BadInput
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.scores.calibration import Calibration, calibrate

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of those that are computed, the ones that the terminal shows


@command("calibrate")
def main(config: DictConfig, output: Path) -> None:
    """Draw truths, measure and sample them, and say how often they lie where the samples say."""
    check_kinds(config, "prior", "operator", "noise", "sampler")
    compute: Compute = instantiate(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    operator: Operator = instantiate(config.operator)
    noise, sampler = instantiate(config.noise), instantiate(config.sampler)
    shape = _shape(config, prior)
    console = Console(highlight=False, markup=False)
    sampler, reason = sampler.resolve(_blank(operator, noise, shape), prior)
    if reason is not None:
        console.print(f"sampler {reason}", soft_wrap=True)
    sampler.check(_blank(operator, noise, shape), prior)

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
    _draw(found, title, output / "calibration.png")
    _print(found, title, console)
    console.print(f"calibration.png and calibration.json are in {output}", soft_wrap=True)


def _shape(config: DictConfig, prior: Prior) -> tuple[int, ...]:
    """(C, H, W) of the truths: the prior's, or squares of `size`."""
    if prior.shape is not None:
        if config.size is not None and config.size != prior.shape[-1]:
            raise BadInput(f"size={config.size} does not go with this prior, whose images are {prior.shape}")
        return tuple(prior.shape)
    if config.size is None:
        raise BadInput("this prior takes images of any size; say which by size=32")
    return (prior.channels or 1, config.size, config.size)


def _blank(operator: Operator, noise: object, shape: tuple[int, ...]) -> InverseProblem:
    """A problem of the kind, for what looks at traits alone."""
    reason = operator.mismatch(shape)
    if reason is not None:
        raise BadInput(reason)
    with torch.no_grad():
        y = operator.select(torch.zeros(1, dtype=torch.long))(torch.full((1, *shape), 0.5))
    return InverseProblem(operator.select(torch.zeros(1, dtype=torch.long)), noise, y, image_shape=shape)  # type: ignore[arg-type]


def _draw(found: Calibration, title: str, path: Path) -> None:
    from invdiff.report.calibration import calibration_figure  # matplotlib is slow to import
    from invdiff.report.comparison import save_figure

    save_figure(calibration_figure(found, title=title), path)


def _print(found: Calibration, title: str, console: Console) -> None:
    summary = found.summary()
    table = Table(title=title, title_justify="left")
    for heading in ("credible level", "pixels inside", "truths in ball (TARP)"):
        table.add_column(heading, justify="right")
    levels = found.levels.tolist()
    for level in LEVELS:
        k = min(range(len(levels)), key=lambda j: abs(levels[j] - level))
        low, high = found.tarp_band[:, k].tolist()
        inside = f"{float(found.coverage[k]):.2f} ± {float(found.coverage_error[k]):.2f}"
        table.add_row(f"{levels[k]:.2f}", inside, f"{float(found.tarp[k]):.2f} ({low:.2f} to {high:.2f})")
    console.print(table)
    p = summary["p_value"]
    verdict = "no sign that they are not" if p >= 0.05 else "they are not"
    console.print(
        f"samples from the posterior: {verdict} (smallest p-value of all tests, corrected: {p:.2g}); pixels less often "
        "inside than the level says: over-confident",
        soft_wrap=True,
    )
    for note in summary["notes"]:
        console.print(note, soft_wrap=True)
