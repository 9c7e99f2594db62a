"""Ranges of settings: declared with their types, checked in one place.

steps: Count = 50
eta: Share = 1.0
inner: Literal["auto", "langevin"] = "auto"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from inspect import isclass
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Finite numbers between two ends; an end belongs to the range unless it is open."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) < inf

    def __str__(self) -> str:
        if self.high == inf:
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


Count = Annotated[int, Range(low=1)]
WholeNumber = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(low=0, open_low=True)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}


def check_fields(settings: Any, name: str | None = None) -> None:
    """Check every field of a dataclass against its type: numbers, words, `Literal` choices, declared ranges.

    name  what messages call the dataclass; None: its class in small letters

    Raises ValueError that names the field, what it must be, and its value. NaN is in no range.
    """
    cls: Any = type(settings)
    for field, hint in _hints(cls).items():
        value = getattr(settings, field)
        if not fits(value, hint):
            name = name or type(settings).__name__.lower()
            raise ValueError(f"{name}: {field} must be {in_words(hint)}, got {value!r}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def fits(value: Any, hint: Any) -> bool:
    """True where a value can belong to a field or parameter of this type; True also for types without a rule here."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *ranges = get_args(hint)
        return fits(value, kind) and all(r.holds(value) for r in ranges if isinstance(r, Range))
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if hint in (int, float):
        number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return number and value == value
    return not isclass(hint) or isinstance(value, hint)


def in_words(hint: Any) -> str:
    """What a value of this type must be: "an integer >= 1", "one of a, b or null"."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *ranges = get_args(hint)
        return " ".join([in_words(kind), *(str(r) for r in ranges)])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(in_words(choice) for choice in get_args(hint)))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def can_be(value: Any, hint: Any) -> bool:
    """True where a value of a configuration can be meant for a parameter of this type.

    Lists, tensors and objects are lists or nodes in a configuration.
    """
    for choice in _choices(hint):
        choice = str if choice is Path else choice
        if choice is Any:
            return True
        if _written(choice):
            if fits(value, choice):
                return True
        elif get_origin(choice) is list and _written(get_args(choice)[0]):
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            if listed and all(fits(item, get_args(choice)[0]) for item in value):
                return True
        elif (isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)) or not isclass(
            get_origin(choice) or choice
        ):
            return True
    return False


def in_words_of_config(hint: Any) -> str:
    """What to write; tensors and objects are named only where there is no other choice."""
    choices = [str if choice is Path else choice for choice in _choices(hint)]
    written = [in_words(choice) for choice in choices if _written(choice)]
    lists = ["a list"] if any((get_origin(choice) or choice) in (tuple, list) for choice in choices) else []
    return " or ".join(dict.fromkeys(written + lists)) or in_words(hint)


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _written(hint: Any) -> bool:
    """True for numbers, words and the like; lists, tensors and objects are lists or nodes in a configuration."""
    return hint in (bool, int, float, str, NoneType) or get_origin(hint) in (Annotated, Literal)
