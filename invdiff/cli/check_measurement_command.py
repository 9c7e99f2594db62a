"""`invdiff check-measurement`: what looks wrong with real data, rule by rule, before a reconstruction."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from invdiff.axes import problem_of, with_axes
from invdiff.checks import measurement_checks
from invdiff.cli.app import CheckFailed, command
from invdiff.cli.inputs import make_prior
from invdiff.cli.measured import load_measured, settle_sigma
from invdiff.cli.targets import make
from invdiff.contracts.verdict import broken
from invdiff.ranges import Count
from invdiff.report.tables import verdict_table
from invdiff.shapes import describe_shape


@command("check_measurement", options={"images": Count, "measurement": str | list[str]})
def main(config: DictConfig, output: Path) -> None:
    """Print the outcome of every rule; raises `CheckFailed` where the result would likely be wrong."""
    prior = make_prior(config)
    given, operator = load_measured(config, prior)
    given.notes.extend(settle_sigma(config, with_axes(given.y, operator, prior), operator))
    problem = problem_of(given.y, operator, make(config.noise), prior)
    verdicts = list(measurement_checks(problem, prior, images=config.images))
    console = Console(highlight=False, markup=False)
    for note in given.notes[:6]:
        console.print(note, soft_wrap=True)
    name = Path(str(config.measurement)).name
    shape = describe_shape(tuple(problem.y.shape))
    title = f"{name}, {shape}, of images of {describe_shape(problem.image_shape)}"
    console.print(verdict_table(title, verdicts))
    wrong = broken(verdicts)
    if wrong:
        raise CheckFailed(f"{name}: a reconstruction would likely be wrong: {', '.join(wrong)}")
