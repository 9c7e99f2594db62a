"""Every class of the packages that keeps a contract, for the tests to walk over. There is no list to extend."""

import importlib
import inspect
import json
import os
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
PRIOR_VARIANTS = {
    f"{name}-{variant}": prior for name, cls in PRIORS.items() for variant, prior in cls.variants().items()
}
OPERATOR_VARIANTS = {
    f"{name}-{variant}": case for name, cls in OPERATORS.items() for variant, case in cls.variants().items()
}
SAMPLERS = all_samplers()


MODES = {f"{name}-{mode}": sampler for name, cls in SAMPLERS.items() for mode, sampler in cls.variants().items()}
# At full strength from the first level on it diverges wherever the data are sharp; see test_afdps.
del MODES["afdps-annealed=False"]
del MODES["dreamguider-bounded=False"]  # steps as published, with our constants, leave the toy


def value_of(fixture: str, name: str, value: Any) -> Any:
    """Of a sampler only the example is tried in every run, its other modes with the slow tests."""
    slow = fixture == "mode" and not name.endswith("-example")
    return pytest.param(value, marks=pytest.mark.slow) if slow else value


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with one of these fixtures runs for each class, variant or mode; with a sampler and an operator or prior
    for a sixth of the pairs, each sampler and each operator in its turn, and with INVDIFF_ALL=1 for all of them.
    """
    for other, classes in (("operator_class", OPERATORS), ("prior_class", PRIORS)):
        if {other, "sampler_class"} <= set(metafunc.fixturenames):
            every = 1 if "INVDIFF_ALL" in os.environ else 6
            pairs = {
                f"{a}-{b}": (classes[a], SAMPLERS[b])
                for i, a in enumerate(classes)
                for j, b in enumerate(SAMPLERS)
                if (i + j) % every == 0
            }
            metafunc.parametrize((other, "sampler_class"), pairs.values(), ids=list(pairs))
            return
    for fixture, found in (
        ("operator_class", OPERATORS),
        ("prior_class", PRIORS),
        ("sampler_class", SAMPLERS),
        ("sampler_name", {name: name for name in SAMPLERS}),
        ("mode", MODES),
        ("operator_variant", OPERATOR_VARIANTS),
        ("prior_variant", PRIOR_VARIANTS),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, [value_of(fixture, name, found[name]) for name in found], ids=list(found))


@pytest.fixture(scope="session")
def known_laws() -> dict[str, Law]:
    """Recorded laws of biased samplers, by name; an exact sampler has no entry."""
    entries: dict[str, Any] = json.loads((Path(__file__).parent / "bias.json").read_text())
    return {name: Law(**{kind: tuple(values) for kind, values in law.items()}) for name, law in entries.items()}
