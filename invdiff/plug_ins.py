"""Operators and priors that installed packages offer by entry point; samplers register themselves, as subclasses."""

import inspect
import sys
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

GROUPS = {"operator": "invdiff.operators", "prior": "invdiff.priors"}  # of entry points


def plug_ins(group: str) -> dict[str, Any]:
    """Classes and functions by name; raises ValueError for one that cannot be loaded."""
    return {point.name: loaded(point, group) for point in offered(GROUPS[group])}


def offered(group: str) -> EntryPoints:
    """The entry points of a group of the packages that are installed."""
    return _on(tuple(sys.path), group)


@cache
def _on(path: tuple[str, ...], group: str) -> EntryPoints:
    """Read once: it takes milliseconds, and one command asks 30 times."""
    return entry_points(group=group)


def loaded(point: EntryPoint, kind: str) -> Any:
    """The object of an entry point; raises ValueError, naming its package, where it cannot be loaded."""
    try:
        return point.load()
    except Exception as error:
        where = point.value if point.dist is None else point.dist.name
        raise ValueError(f"{kind} {point.name!r} of {where} cannot be loaded: {error}") from error


def node_of(made: Any) -> dict[str, Any]:
    """A class or function with its parameters and their defaults, mandatory ones missing."""
    node: dict[str, Any] = {"_target_": f"{made.__module__}.{made.__qualname__}"}
    for name, parameter in inspect.signature(made).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = "???" if parameter.default is parameter.empty else parameter.default
            if default is None or isinstance(default, (bool, int, float, str)):
                node[name] = default
    return node
