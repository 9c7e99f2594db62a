"""Every class of the packages that keeps a contract, for the tests to walk over. There is no list to extend."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import invdiff.operators
import invdiff.priors
from invdiff.contracts.law import Law
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.samplers import Sampler, all_samplers


def found(package: ModuleType, base: type) -> dict[str, type]:
    """Every class of a package that can be instantiated, by name, exported or not."""
    classes = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                classes[name] = cls
    return dict(sorted(classes.items()))


OPERATORS = found(invdiff.operators, Operator)
PRIORS = found(invdiff.priors, Prior)
SAMPLERS = all_samplers()


def modes(cls: type[Sampler]) -> dict[str, Sampler]:
    """The example of a sampler, and one variation for every other choice and every switch of its settings."""
    example, kinds = cls.example(), get_type_hints(cls)
    found = {"example": example}
    for setting in fields(cls):
        value, kind = getattr(example, setting.name), kinds[setting.name]
        choices = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
        for choice in choices:
            if choice != value:
                found[f"{setting.name}={choice}"] = replace(example, **{setting.name: choice})
    return found


MODES = {f"{name}-{mode}": sampler for name, cls in SAMPLERS.items() for mode, sampler in modes(cls).items()}
# At full strength from the first level on it diverges wherever the data are sharp; see test_afdps.
del MODES["afdps-annealed=False"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with one of these fixtures runs for each class or mode."""
    for fixture, found in (
        ("operator_class", OPERATORS),
        ("prior_class", PRIORS),
        ("sampler_class", SAMPLERS),
        ("sampler_name", {name: name for name in SAMPLERS}),
        ("mode", MODES),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, found.values(), ids=list(found))


@pytest.fixture(scope="session")
def known_laws() -> dict[str, Law]:
    """Recorded laws of biased samplers, by name; an exact sampler has no entry."""
    entries: dict[str, Any] = json.loads((Path(__file__).parent / "bias.json").read_text())
    return {name: Law(**{kind: tuple(values) for kind, values in law.items()}) for name, law in entries.items()}
