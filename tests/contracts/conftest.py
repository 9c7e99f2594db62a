"""What the conformance suite finds: every class of the package that keeps a contract. There is no list to extend."""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import invdiff.operators
import invdiff.priors
from invdiff.contracts.law import Law
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.samplers import all_samplers


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `operator_class`, `prior_class` or `sampler_class` runs for each that was found."""
    for fixture, classes in (("operator_class", OPERATORS), ("prior_class", PRIORS), ("sampler_class", SAMPLERS)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, classes.values(), ids=list(classes))


@pytest.fixture(scope="session")
def known_laws() -> dict[str, Law]:
    """What biased samplers are known to draw, by the name of their file; one that is exact has no entry."""
    entries: dict[str, Any] = json.loads((Path(__file__).parent / "bias.json").read_text())
    return {name: Law(**{kind: tuple(values) for kind, values in law.items()}) for name, law in entries.items()}
