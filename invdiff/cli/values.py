"""Values of the wrong kind, found before anything is built from them: a word for a number, half a step."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from invdiff.io import BadInput


def check_kinds(config: DictConfig, *keys: str) -> None:
    """Raise BadInput, naming the option, where a value does not fit the annotation of the parameter it goes to.

    keys  top-level keys to look into; everything below them that has a `_target_` is checked
    """
    for key in keys:
        if isinstance(config[key], DictConfig):
            check_node(config[key], key)


def check_node(node: DictConfig, path: str) -> None:
    """The same for one node, which stands at `path`."""
    hints = _annotations(node["_target_"], path) if "_target_" in node else {}
    for name, value in node.items():
        here = f"{path}.{name!s}"
        if name in hints and not fits(value, hints[name]):
            raise BadInput(f"{here} must be {in_words(hints[name])}, got {value}")
        if isinstance(value, DictConfig):
            check_node(value, here)


def _annotations(target: str, path: str) -> dict[str, Any]:
    try:
        called = get_object(target)
    except ImportError as error:
        raise BadInput(f"{path}._target_={target} cannot be loaded: {' '.join(str(error).split())}") from error
    try:
        return get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except NameError:  # names imported for type checkers only
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a config can be meant for a parameter with this annotation; in doubt it can."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in (bool, NoneType):
        return isinstance(value, hint)
    if isinstance(value, bool):
        return False
    if hint is int:
        return isinstance(value, int)
    if hint is float:
        return isinstance(value, (int, float))
    if hint in (str, Path):
        return isinstance(value, str)
    if (origin or hint) in (tuple, list, Sequence):
        return isinstance(value, ListConfig)
    # Any other class is built from a node of its own, or (tensors, arrays) from a list.
    return not inspect.isclass(hint) or isinstance(value, (DictConfig, ListConfig))


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a file",
    NoneType: "null",
}


def _is_foreign(hint: Any) -> bool:
    return inspect.isclass(hint) and get_origin(hint) is None and hint not in (*_WORDS, tuple, list)


def in_words(hint: Any) -> str:
    """What to write for a parameter with this annotation."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        # Tensors and the like cannot be written on a command line: they are named only where nothing else would do.
        choices = [c for c in get_args(hint) if not _is_foreign(c)] or get_args(hint)
        return " or ".join(dict.fromkeys(in_words(choice) for choice in choices))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if hint in _WORDS:
        return _WORDS[hint]
    if (origin or hint) in (tuple, list, Sequence):
        return f"a list of {len(get_args(hint))}" if get_args(hint) and ... not in get_args(hint) else "a list"
    return getattr(hint, "__name__", str(hint))
