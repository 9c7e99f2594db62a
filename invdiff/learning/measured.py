"""Operators that measure every image of a training set in its own way."""

import inspect
from collections.abc import Mapping
from typing import Any

from invdiff.operators import Operator


def operator_for_each(cls: Any, settings: Mapping[str, Any], shape: tuple[int, ...], count: int) -> Operator | None:
    """The operator with random choices of its own for each of `count` images (C, H, W).

    A mask that all images share hides the same pixels of all of them, which then cannot be learned. None where the
    class has no `random`, or its settings leave nothing to chance: then all images share the operator.
    """
    if not hasattr(cls, "random"):
        return None
    known = inspect.signature(cls.random).parameters
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    given = {name: value for name, value in settings.items() if value is not None and value != defaults[name]}
    if not set(given) <= set(known):
        return None
    options = {name: value for name, value in settings.items() if name in known and value is not None}
    if "shape" in known:
        options["shape"] = shape
    made: Operator = cls.random(**options, images=count)
    return made
