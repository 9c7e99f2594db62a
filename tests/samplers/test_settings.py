"""Settings: bad values are named, and every configuration that holds settings makes a sampler."""

import math
import re
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any

import pytest
from hydra.utils import instantiate

from helpers import composed
from invdiff.cli.inputs import made_sampler
from invdiff.contracts.toys import WhitePrior
from invdiff.operators import (
    HDR,
    JPEG,
    GaussianNoise,
    Inpainting,
    Noise,
    Operator,
    PhaseRetrieval,
    PoissonNoise,
)
from invdiff.samplers import DPS, all_samplers
from invdiff.samplers.settings import (
    RECOMMENDED,
    as_config,
    sampler_class,
    setting,
    settings_for,
    with_settings,
)
from invdiff.schedules import VP

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
    "mmps": [{"iterations": 0}, {"solver": "lu"}, {"integrator": "rk4"}, {"travel": 0}],
    "pigdm": [{"prior_std": 0.0}, {"weight": "paper"}, {"eta": -0.1}],
    "pnpdm": [
        {"iterations": 0},
        {"rho": math.inf},
        {"rho_min": -0.1},
        {"rho_min": 3.0, "rho": 1.0},
        {"decay": 0.0},
        {"decay": 1.1},
        {"integrator": "rk4"},
        {"chain_steps": 0},
        {"step_size": 0.0},
        {"inner": "mala"},
    ],
    "reddiff": [{"learning_rate": 0.0}, {"lam": -1.0}, {"weighting": "cubic"}, {"data_term": "mean"}],
    "tds": [*FILTER, {"prior_std": 0.0}],
}


def test_bad_settings_are_named() -> None:
    """With the sampler and the value; NaN passes every comparison, and is refused for every number."""
    for name, cls in all_samplers().items():
        sampler = cls()
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


# No paper has settings of these for images in pixels, or none that could be verified.
UNPUBLISHED = {
    "aldi",
    "bffg",
    "dflow",
    "dreamguider",
    "dsd",
    "eki",
    "flowchef",
    "graphla",
    "lgd",
    "lmaps",
    "mgps",
    "momentdraw",
    "myula",
    "rdmc",
    "rsd",
    "sag",
    "scorepriorvi",
    "smc",
    "tmpd",
    "tv",
    "wavelets",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(all_samplers()) - UNPUBLISHED))
def test_experiments_of_the_papers(name: str) -> None:
    """Each makes its sampler, and an operator and a noise for photographs of 256 pixels."""
    experiments = [paper for paper in names("experiment/paper") if paper.partition("_")[0] == name]
    assert experiments, name
    for experiment in experiments:
        config = composed(f"experiment=paper/{experiment}")
        sampler = made_sampler(config.sampler, "sampler")
        operator, noise = instantiate(config.operator), instantiate(config.noise)
        assert type(sampler) is all_samplers()[name], experiment
        assert operator.mismatch((3, 256, 256)) is None, experiment
        assert float(noise.sigma) > 0, experiment


def test_recommended_settings_make_samplers() -> None:
    for name, table in RECOMMENDED.items():
        for where, settings in table.items():
            sampler = with_settings(all_samplers()[name](), settings)
            assert all(setting(sampler, s) == value for s, value in settings.items()), (name, where)


@pytest.mark.parametrize(
    ("name", "operator", "noise", "where"),
    [
        ("daps", Inpainting(keep=0.5), GaussianNoise(0.1), None),
        ("daps", Inpainting(keep=0.5), PoissonNoise(0.1), "not Gaussian"),
        ("daps", PhaseRetrieval(), GaussianNoise(0.1), "ambiguous"),
        ("daps", HDR(), GaussianNoise(0.1), "nonlinear"),
        ("dps", HDR(), GaussianNoise(0.1), "HDR"),
        ("dps", JPEG(), GaussianNoise(0.1), "stepped"),
        ("mmps", Inpainting(keep=0.5), GaussianNoise(0.1), "Inpainting"),
    ],
    ids=repr,
)
def test_one_owner_of_settings(name: str, operator: Operator, noise: Noise, where: str | None) -> None:
    """Defaults, then what is recommended for the operator or its traits, then what is given; each change is named."""
    default = all_samplers()[name]()
    settled = settings_for(name, operator, noise, WhitePrior())
    assert settled.where == where
    assert (settled.sampler == default) == (where is None) == (str(settled) == "")
    for changed, (before, after) in settled.changed.items():
        assert setting(default, changed) == before != after == setting(settled.sampler, changed)
        given = settings_for(name, operator, noise, WhitePrior(), given={changed: before})
        assert setting(given.sampler, changed) == before
        assert changed not in given.changed
    assert settings_for(name, operator, noise, WhitePrior(), recommended=False).sampler == default


def test_a_given_schedule_is_whole() -> None:
    schedule = VP(steps=50)
    settled = settings_for("dps", JPEG(), GaussianNoise(0.1), WhitePrior(), given={"schedule": schedule})
    assert settled.sampler == DPS(schedule=schedule, zeta=1.0)
    assert set(settled.changed) == {"zeta"}


def test_unknown_names_are_explained() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'dasp'; did you mean daps"):
        sampler_class("dasp")
    with pytest.raises(ValueError, match="dps has no setting 'zta'; did you mean zeta"):
        settings_for("dps", HDR(), GaussianNoise(0.1), WhitePrior(), given={"zta": 1.0})


def test_names_and_values_that_are_none() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'reddif'; did you mean reddiff"):
        sampler_class("reddif")
    assert as_config([1, ("a", None)]) == [1, ["a", None]]
    with pytest.raises(ValueError, match="cannot be written as a configuration"):
        as_config({1, 2})
