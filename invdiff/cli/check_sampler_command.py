"""`invdiff check-sampler`: the rules of a sampler one by one."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from invdiff.cli.app import command, fail_if_broken, typed
from invdiff.cli.inputs import made_sampler
from invdiff.contracts import sampler_checks
from invdiff.contracts.toys import small_operator
from invdiff.contracts.verdict import broken, judged_behind_a_bar
from invdiff.io import BadInput
from invdiff.report.tables import verdict_table
from invdiff.samplers import Auto
from invdiff.samplers.settings import given_settings, with_settings


@command("check_sampler")
def main(config: DictConfig, output: Path) -> None:
    """Check the sampler of a configuration and print every rule; raises `CheckFailed` where one is broken."""
    made = made_sampler(config.sampler, "sampler")
    if isinstance(made, Auto):
        raise BadInput("sampler=auto chooses another sampler; name the one to check, for example sampler=dps")
    named = [word.partition("=")[0].removeprefix("settings.") for word in typed("sampler")]
    # A run of a few steps, with the settings that were given.
    sampler = with_settings(type(made).example(), given_settings(made, named))
    name = type(sampler).__name__
    verdicts = judged_behind_a_bar(sampler_checks(sampler), name)
    operator = type(small_operator(sampler)).__name__
    title = f"{name} on {operator}, images of 1x8x8, {sampler.num_steps} steps"
    Console(highlight=False, markup=False).print(verdict_table(title, verdicts))
    fail_if_broken(name, broken(verdicts))
