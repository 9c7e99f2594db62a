"""`invdiff check-operator`: the rules of a forward model one by one, and what it can be used with."""

from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invdiff.checks import one_at_a_time
from invdiff.cli.app import command, fail_if_broken
from invdiff.cli.targets import make
from invdiff.contracts import operator_checks
from invdiff.contracts.verdict import broken, judged_behind_a_bar
from invdiff.io import BadInput
from invdiff.operators import Operator
from invdiff.report.operator_check import describe, small_shape, usable_with
from invdiff.report.tables import verdict_table
from invdiff.shapes import describe_shape


@command("check_operator")
def main(config: DictConfig, output: Path) -> None:
    """Check the operator of a configuration and print every rule; raises `CheckFailed` where one is broken."""
    given = _given_shape(config)
    operator: Operator = make(config.operator)
    name = type(operator).__name__
    if not isinstance(operator, Operator):
        raise BadInput(
            f"operator={config.operator['_target_']} makes {name}, no operator; subclass invdiff.operators.Operator, "
            "or use operator=callable"
        )
    shape = given or small_shape(operator)
    reason = operator.mismatch(shape)
    if reason is not None:
        raise BadInput(reason + ("; give image_shape=[C,H,W]" if given is None else ""))
    verdicts = judged_behind_a_bar(operator_checks(operator, shape), name)
    console = Console(highlight=False, markup=False)
    console.print(verdict_table(f"{name} on images of {describe_shape(shape)}", verdicts))
    sound = {verdict.rule for verdict in verdicts if verdict.result == "passed"}
    if {"shape of y", "an image fits its own y"} <= sound:  # else it cannot be used
        console.print(describe(operator, shape, sound), soft_wrap=True)
        table = Table(title=Text("can be used with"), title_justify="left", box=None, show_header=False)
        for kind, what, words in usable_with(operator, shape):
            table.add_row(f"  {kind}", what, Text(words))
        console.print(table)
    raised = any(verdict.words.startswith("raises") for verdict in verdicts)
    unknown_shape = given is None and raised
    hint = f"; if {describe_shape(shape)} is no image for it, give image_shape=[C,H,W]" if unknown_shape else ""
    hint = one_at_a_time(operator, torch.full((1, *shape), 0.5)) or hint if raised else ""
    fail_if_broken(name, broken(verdicts), hint)


def _given_shape(config: DictConfig) -> tuple[int, ...] | None:
    """(C, H, W) of image_shape=, or of the operator's own option of that name."""
    for key, value in (("image_shape", config.image_shape), ("operator", config.operator.get("image_shape"))):
        if value is None:
            continue
        if isinstance(value, ListConfig) and len(value) == 3 and all(type(n) is int and n > 0 for n in value):
            return tuple(value)
        if key == "image_shape":
            raise BadInput(f"image_shape must be [C,H,W], integers >= 1, got {value}")
    return None
