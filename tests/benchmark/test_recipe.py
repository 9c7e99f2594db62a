"""The command and the configuration that a single run can be asked for by."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from invdiff.benchmark.recipe import ELSEWHERE, Named, Recipe, line, value_of


def parsed(word: str) -> Any:
    """As hydra puts it into a configuration."""
    (override,) = OverridesParser.create().parse_overrides([word])
    config: Any = OmegaConf.to_container(OmegaConf.create({"it": override.value()}), resolve=True)
    return config["it"]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 0.25, 1e-05, "dps", "masks/a.png", "null", "True", "", "12", "a b", "it's", 'say "x"', "a\\b"),
        *("ends in \\", 'both \\" here', "x,y:[z]", [], {}, {"a": [1, {"b": None}], "c": "d e"}),
    ],
)
def test_hydra_reads_what_is_written(value: Any) -> None:
    assert parsed(f"key={value_of(value)}") == value


@pytest.fixture
def recipe() -> Recipe:
    budget = {"own": False, "calls": [100], "seconds": [], "vjp_weight": None}
    return Recipe(
        flags=["--config-dir=/mine"],
        options=["experiment=quick", "samplers=[dps,daps]", "images=4", "output=here", "budget.calls=[100]", "seed=3"],
        config={"samplers": ["dps", "daps"], "operators": ["blur"], "noise": 1, "budget": budget, "output": "here"},
        samplers={"bold": Named({"sampler": "dps", "zeta": 2}, {"zeta": 2, "schedule": {"steps": 100, "end": None}})},
        operators={"blur": Named({}, {"operator": "blur", "std": 2.0})},
        noises={"blur": {"sigma": 0.1}},
    )


def test_one_run_alone(recipe: Recipe) -> None:
    found = recipe.of("bold", "blur", {"schedule": {"steps": 48}})
    assert found["command"] == [
        "--config-dir=/mine",
        "experiment=quick",
        "seed=3",
        "samplers=[{bold:{sampler:dps,zeta:2,schedule:{steps:48}}}]",
        "operators=[blur]",
        "budget.calls=[]",
        "budget.own=true",
    ]
    assert found["config"] == {
        "samplers": [{"bold": {"zeta": 2, "schedule": {"steps": 48, "end": None}}}],
        "operators": [{"blur": {"operator": "blur", "std": 2.0}}],
        "noise": {"sigma": 0.1},
        "budget": {"own": True, "calls": [], "seconds": [], "vjp_weight": None},
        "output": ELSEWHERE,
    }
    assert recipe.samplers["bold"].full["schedule"]["steps"] == 100, "what was given is not changed"


def test_a_label_that_the_command_line_cannot_say(recipe: Recipe) -> None:
    odd = "a}: [b"
    recipe = Recipe(**(vars(recipe) | {"samplers": {odd: Named({"zeta": 1}, {})}, "flags": []}))
    assert recipe.of(odd, "blur")["command"] is None
    assert recipe.of(odd, "blur")["config"]["samplers"] == [{odd: {}}]


def test_a_shell_reads_the_line() -> None:
    assert line(["samplers=[{a:{b:1}}]", "x=y z"]) == "invdiff benchmark 'samplers=[{a:{b:1}}]' 'x=y z'"
