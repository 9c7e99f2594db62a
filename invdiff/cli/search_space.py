"""The space of a search as it is written, `space.zeta=[0.1,10,log]`, read and checked against the sampler."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from invdiff.cli.values import fits, in_words
from invdiff.io import BadInput
from invdiff.tuning.space import Choice, Parameter, Range


def read_space(space: Any, sampler: Any) -> list[Parameter]:
    """What is varied; raises BadInput, naming the entry, for what is no setting of the sampler and no range of it."""
    if not isinstance(space, DictConfig):
        raise BadInput(f"space must hold a range for each setting, {{zeta:[0.1,10,log]}}, got {space}")
    found = [_parameter(name, entry, sampler) for name, entry in _entries(OmegaConf.to_container(space, resolve=True))]
    if not found:
        names = ", ".join(f.name for f in fields(sampler) if not is_dataclass(getattr(sampler, f.name)))
        raise BadInput(f"space is empty; +space.NAME=[low,high,log] searches a setting, one of {names}")
    return found


def _entries(space: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The ranges and choices by dotted names; those of null are left out."""
    for key, entry in space.items():
        name = f"{before}{key}"
        if isinstance(entry, Mapping):
            yield from _entries(entry, f"{name}.")
        elif entry is not None:
            yield name, entry


def _parameter(name: str, entry: Any, sampler: Any) -> Parameter:
    hint = _hint(name, sampler)
    if not isinstance(entry, list):
        raise BadInput(f"space.{name} must be [low,high], [low,high,log] or a list of choices, got {entry}")
    log = entry[-1:] == ["log"]
    ends = entry[:-1] if log else entry
    if len(ends) == 2 and all(_number(end) for end in ends):
        return _range(name, ends, log, hint)
    if log:
        raise BadInput(f"space.{name} must be [low,high,log], two numbers and a word, got {entry}")
    if len(entry) < 2 or len({str(value) for value in entry}) < len(entry):
        raise BadInput(f"space.{name} must have two choices or more, all different, got {entry}")
    wrong = [value for value in entry if isinstance(value, (list, dict)) or not fits(value, hint)]
    if wrong:
        raise BadInput(f"space.{name}: {wrong[0]} is no choice, the setting is {in_words(hint)}")
    return Choice(name=name, values=tuple(entry))


def _range(name: str, ends: list[Any], log: bool, hint: Any) -> Range:
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"space.{name} is empty: the first number must be below the second, got [{low},{high}]")
    if log and low <= 0:
        raise BadInput(f"space.{name} is over orders of magnitude: it must begin above 0, got {low}")
    whole = not fits(0.5, hint)
    if not (fits(int(low), hint) and (not whole or (low == int(low) and high == int(high)))):
        raise BadInput(f"space.{name}: [{low},{high}] is no range of it, the setting is {in_words(hint)}")
    return Range(name=name, low=low, high=high, log=log, whole=whole)


def _hint(name: str, sampler: Any) -> Any:
    """The annotation of a setting under its dotted name."""
    owner = sampler
    *outer, last = name.split(".")
    for part in outer:
        _check_setting(owner, part, name)
        owner = getattr(owner, part)
    _check_setting(owner, last, name)
    return get_type_hints(type(owner)).get(last, Any)


def _check_setting(owner: Any, part: str, name: str) -> None:
    known = [f.name for f in fields(owner)] if is_dataclass(owner) else []
    if part not in known:
        raise BadInput(
            f"space.{name}: {type(owner).__name__} has no setting {part!r}; it has {', '.join(known) or 'none'}"
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
