"""Whether a value from the command line fits the parameter that it goes to."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from invdiff.cli.values import check_kinds, fits, in_words
from invdiff.io import BadInput
from invdiff.schedules import Schedule

LIST = OmegaConf.create([1, 2])
NODE = OmegaConf.create({"_target_": "x"})


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, True),
        (3.0, int, False),
        (True, int, False),
        ("3", int, False),
        (None, int, False),
        (3, float, True),
        (3.5, float, True),
        (False, float, False),
        (True, bool, True),
        (1, bool, False),
        (None, float | None, True),
        ("x", float | None, False),
        ("x", str | Path | None, True),
        (4, str | Path, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (None, Literal["a", None], True),
        (LIST, tuple[int, int], True),
        (3, tuple[int, int], False),
        (LIST, float | tuple[int, ...], True),
        (0.1, float | torch.Tensor, True),
        (LIST, float | torch.Tensor, True),
        ("x", float | torch.Tensor, False),
        (NODE, Schedule, True),
        ("x", Schedule, False),
        ("anything", Any, True),
        (True, Any, True),
    ],
)
def test_fits(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (float | torch.Tensor, "a number"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[int, int], "a list of 2"),
        (tuple[int, ...], "a list"),
        (Schedule, "Schedule"),
    ],
)
def test_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


def config(**values: Any) -> DictConfig:
    schedule = {"_target_": "invdiff.schedules.EDM", "steps": 5} | values.pop("schedule", {})
    return OmegaConf.create({"sampler": {"_target_": "invdiff.samplers.DAPS", "schedule": schedule} | values})


def test_the_option_is_named() -> None:
    check_kinds(config(tau=None, inner="auto"), "sampler")
    with pytest.raises(BadInput, match=r"^sampler\.schedule\.steps must be a whole number, got many$"):
        check_kinds(config(schedule={"steps": "many"}), "sampler")
    choices = "auto, langevin, hamiltonian, metropolis, closed_form"
    with pytest.raises(BadInput, match=rf"^sampler\.inner must be one of {choices}, got 3$"):
        check_kinds(config(inner=3), "sampler")
    check_kinds(config(unknown="left to the constructor"), "sampler")
