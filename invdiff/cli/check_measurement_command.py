"""`invdiff check-measurement`: what looks wrong with real data, rule by rule, before a reconstruction."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from invdiff.checks import measurement_checks
from invdiff.cli.app import CheckFailed, command
from invdiff.cli.inputs import make_prior
from invdiff.cli.reconstruct_command import load_given
from invdiff.contracts.verdict import broken
from invdiff.reconstruction import problem_of
from invdiff.report.tables import verdict_table
from invdiff.shapes import describe_shape


@command("check_measurement")
def main(config: DictConfig, output: Path) -> None:
    """Print the outcome of every rule; raises `CheckFailed` where the result would likely be wrong."""
    prior = make_prior(config)
    given = load_given(config)
    operator = instantiate(config.operator, **given.parameters)
    problem = problem_of(given.y, operator, instantiate(config.noise), prior)
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
