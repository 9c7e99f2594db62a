"""Settings: bad values are named, and every configuration that holds settings makes a sampler."""

import math
import re
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any

import pytest
from hydra.utils import instantiate

from helpers import composed
from invdiff.samplers import all_samplers

FILTER: list[dict[str, Any]] = [{"ensemble": 0}, {"particles_at_once": 0}, {"resample_below": 1.5}]
# The first setting of each is the one to be named.
BAD: dict[str, list[dict[str, Any]]] = {
    "afdps": FILTER,
    "daps": [
        {"inner": "mala"},
        {"ode_steps": 0},
        {"tau": 0.0},
        {"prior_std": -1.0},
        {"step_size": 0.0},
        {"momentum": 1.0},
    ],
    "dps": [{"zeta": -1.0}, {"guidance": "nrom"}],
    "enkg": [
        {"ensemble": 0},
        {"updates": 0},
        {"particles_at_once": -1},
        {"ode_sigma_min": 0.0},
        {"ode_steps": 0},
        {"guidance": -1.0},
        {"guidance_end": 1.5},
        {"skip_start": 0.6, "skip_end": 0.4},
        {"skip_end": -0.1},
        {"normaliser": "none"},
    ],
    "fkc": [*FILTER, {"inverse_temperature": -1.0}, {"prior_std": -1.0}, {"curvature": -1.0}],
    "lanpaint": [
        {"inner_steps": -1},
        {"lam": -0.5},
        {"step_size": 0.0},
        {"friction": 0.0},
        {"friction": math.inf},
        {"eta": 1.5},
        {"known": "yes"},
    ],
    "mcg": [{"zeta": -1.0}, {"project_above": -0.1}, {"weight": "fbp"}],
    "mcgdiff": [*FILTER, {"eta": 0.0}, {"eta": 1.1}, {"kappa": 0.0}],
    "mmps": [{"iterations": 0}, {"solver": "lu"}, {"eta": 1.5}],
    "pigdm": [{"prior_std": 0.0}, {"weight": "paper"}, {"eta": -0.1}],
    "pnpdm": [
        {"iterations": 0},
        {"rho": math.inf},
        {"rho_min": -0.1},
        {"rho_min": 3.0, "rho": 1.0},
        {"decay": 0.0},
        {"decay": 1.1},
        {"eta": -0.1},
        {"chain_steps": 0},
        {"step_size": 0.0},
        {"inner": "mala"},
    ],
    "reddiff": [{"learning_rate": 0.0}, {"lam": -1.0}, {"weighting": "cubic"}, {"data_term": "mean"}],
    "tds": [*FILTER, {"prior_std": 0.0}],
}


@pytest.mark.parametrize("name", all_samplers())
def test_bad_settings_are_named(name: str) -> None:
    """With the sampler and the value; NaN passes every comparison, and is refused for every number."""
    sampler = all_samplers()[name]()
    numbers = [f.name for f in fields(sampler) if isinstance(getattr(sampler, f.name), float)]
    for settings in [*BAD.get(name, []), *({number: math.nan} for number in numbers)]:
        field, value = next(iter(settings.items()))
        given = "" if value is math.nan else f".* got .*{re.escape(repr(value))}"
        with pytest.raises(ValueError, match=f"^{name}: .*{field}.*{given}"):
            replace(sampler, **settings)


def names(group: str) -> list[str]:
    """Of the files of a folder of the configuration."""
    folder = files("invdiff.configs").joinpath(group)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize("name", all_samplers())
def test_experiments_of_the_papers(name: str) -> None:
    """Each makes its sampler, and an operator and a noise for photographs of 256 pixels."""
    experiments = [paper for paper in names("experiment/paper") if paper.partition("_")[0] == name]
    assert f"{name}_inpainting" in experiments
    for experiment in experiments:
        config = composed(f"experiment=paper/{experiment}")
        sampler, operator, noise = instantiate(config.sampler), instantiate(config.operator), instantiate(config.noise)
        assert type(sampler) is all_samplers()[name], experiment
        assert operator.mismatch((3, 256, 256)) is None, experiment
        assert float(noise.sigma) > 0, experiment


def test_recommended_settings_make_samplers() -> None:
    """The file name gives the sampler and the operator."""
    for pair in names("recommended"):
        name, _, operator = pair.partition("_")
        sampler = instantiate(composed(f"sampler={name}", f"operator={operator}").sampler)
        assert type(sampler) is all_samplers()[name], pair
