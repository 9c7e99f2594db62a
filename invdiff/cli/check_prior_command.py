"""`invdiff check-prior`: its contract, its denoising, its declared image range, its cost and its samples."""

import json
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from invdiff.cli.app import command, fail_if_broken
from invdiff.cli.inputs import make_prior, plain
from invdiff.cli.targets import resolved
from invdiff.contracts.prior_figures import levels_for
from invdiff.contracts.prior_report import report_on
from invdiff.contracts.verdict import broken
from invdiff.engine.device import resolve
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput
from invdiff.io.atomic import write_atomically
from invdiff.io.examples import drawn_from_prior, example_for
from invdiff.io.truth import images_to_check
from invdiff.priors import Prior
from invdiff.ranges import Count, Positive, fits
from invdiff.report.prior_check import as_json, cost_in_words, levels_table, picture, save_figure
from invdiff.report.tables import verdict_table


@command("check_prior", options={"images": Count})
def main(config: DictConfig, output: Path) -> None:
    """Check the prior of a configuration, print and write the outcome; raises `CheckFailed` where a rule is broken."""
    if config.input is not None and "data" in config:
        raise BadInput("give input= (files) or data= (an example), not both")
    prior = make_prior(config)
    name, device = type(prior).__name__, resolve(config.device)
    sigmas = _levels(config, prior)
    example = example_for(prior, config.images)
    if "data" in config:
        settings = plain(config.data)
        example = partial(resolved(config.data, "data"), **{k: v for k, v in settings.items() if k != "_target_"})
    clean, names = images_to_check(
        prior, files=config.input, example=example, size=config.size, most=config.images, seed=config.seed
    )
    output.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(sigmas) + 2 * config.steps, "step", name) as bar:
        found = report_on(
            prior,
            names,
            clean,
            sigmas,
            seed=config.seed,
            with_contract=config.contract,
            samples=config.grid,
            steps=config.steps,
            device=device,
            drawn=config.input is None and example.func is drawn_from_prior,
            on_step=bar.update,
        )
    content = {"target": config.prior["_target_"], **as_json(found)}
    write_atomically(output / "check.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    console = Console(highlight=False, markup=False)
    if found.cost is not None:
        title = f"{name} on {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        figure = picture(found.levels, clean[0], found.pictures, found.samples, prior.value_range, title)
        save_figure(figure, output / "check.png")
        console.print(levels_table(found, tuple(clean.shape[1:])))
    console.print(verdict_table(f"rules of {name}", found.verdicts))
    if found.cost is not None:
        console.print(cost_in_words(found.cost, device), soft_wrap=True)
        console.print(f"check.png and check.json are in {output}", soft_wrap=True)
    fail_if_broken(name, broken(found.verdicts), "" if found.cost else f": {found.verdicts[0].words}")


def _levels(config: DictConfig, prior: Prior) -> list[float]:
    given = config.levels
    if given is None:
        return levels_for(prior.diffusion)
    if not isinstance(given, ListConfig) or not given or not all(fits(sigma, Positive) for sigma in given):
        raise BadInput(f"levels must be a list of numbers > 0, such as [0.05,0.1], got {given}")
    return sorted(float(sigma) for sigma in given)
