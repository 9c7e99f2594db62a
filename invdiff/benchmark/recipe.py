"""How a run can be asked for again: the command line and the whole configuration that make this one alone."""

import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from invdiff.benchmark.fingerprint import Settings

# Keys that a single run has values of its own for, or that do not matter to its rows.
OWN = ("samplers", "operators", "images", "output", "budget.own", "budget.calls", "budget.seconds")
ELSEWHERE = "runs/again/${now:%Y-%m-%d_%H-%M-%S}"  # in the folder that was, there would be nothing left to compute
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # a word that hydra's grammar reads as itself


@dataclass(frozen=True)
class Named:
    """A sampler or an operator of a grid.

    written  its settings as the user gave them, without what they leave as it is
    full     all of them
    """

    written: Settings
    full: Settings


@dataclass(frozen=True)
class Recipe:
    """What a grid was asked for by.

    flags      of the command line, `--config-dir=mine`
    options    of the command line, as typed, key=value
    config     the configuration, resolved
    samplers   by label
    operators  by label; the noise that comes with one stands in `noises`
    noises     of each operator, by its label
    on         all settings of a sampler on an operator, by both labels, where they are not those in `samplers`
    """

    flags: Sequence[str]
    options: Sequence[str]
    config: Settings
    samplers: Mapping[str, Named]
    operators: Mapping[str, Named]
    noises: Mapping[str, Settings]
    on: Mapping[tuple[str, str], Settings] = field(default_factory=dict)

    def of(self, sampler: str, operator: str, changes: Settings | None = None) -> Settings:
        """`command`, words without the number of images, and `config`, for one run, with its own settings.

        changes  of the sampler's settings: the steps that were fitted to a budget, say

        The command is null where hydra's command line cannot say it: the configuration can.
        """
        one = deepcopy(self.config)
        full = self.on.get((sampler, operator), self.samplers[sampler].full)
        one["samplers"] = [{sampler: _merged(full, changes)}]
        one["operators"] = [{operator: self.operators[operator].full}]
        one["noise"] = self.noises[operator]
        one["budget"] |= {"own": True, "calls": [], "seconds": []}
        one["output"] = ELSEWHERE
        return {"command": self._command(sampler, operator, changes), "config": one}

    def _command(self, sampler: str, operator: str, changes: Settings | None) -> list[str] | None:
        kept = [word for word in self.options if _key(word) not in OWN]
        chosen = {
            "samplers": [_item(sampler, _merged(self.samplers[sampler].written, changes))],
            "operators": [_item(operator, self.operators[operator].written)],
        }
        own = [f"{key}={value_of(value)}" for key, value in chosen.items()]
        if not all(_reads(word, value) for word, value in zip(own, chosen.values(), strict=True)):
            return None
        asked = self.config["budget"]
        own += [f"budget.{kind}=[]" for kind in ("calls", "seconds") if asked[kind] not in (None, [])]
        own += [] if asked["own"] else ["budget.own=true"]
        return [*self.flags, *kept, *own]


def line(words: Sequence[str]) -> str:
    """The command in one line, as a shell takes it."""
    return shlex.join(["invdiff", "benchmark", *words])


def value_of(thing: Any) -> str:
    """JSON as a value of hydra's command line."""
    if thing is None or isinstance(thing, bool):
        return {None: "null", True: "true", False: "false"}[thing]
    if isinstance(thing, Mapping):
        return "{" + ",".join(f"{key}:{value_of(value)}" for key, value in thing.items()) + "}"
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return "[" + ",".join(map(value_of, thing)) + "]"
    if not isinstance(thing, str):
        return str(thing)
    if _PLAIN.fullmatch(thing) and thing.lower() not in ("null", "true", "false", "nan", "inf"):
        return thing
    # A backslash is one, but for those before a quote.
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), thing) + '"'


def _reads(word: str, value: Any) -> bool:
    """Whether hydra reads a word key=value as what was meant; not every label can be the key of a mapping."""
    # Here, for they are slow to import: a grid that nobody typed needs none of it.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return False
    return _plain(override.value()) == value


def _plain(value: Any) -> Any:
    """What hydra's parser gives, as JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return getattr(value, "text", value)  # of a quoted string


def _item(label: str, settings: Settings) -> Any:
    return {label: settings} if settings else label


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _merged(settings: Settings, changes: Settings | None) -> Settings:
    """Settings with others in their place, also inside them."""
    found = deepcopy(settings)
    for key, value in (changes or {}).items():
        inner = found.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict) and "_target_" not in value
        found[key] = _merged(inner or {}, value) if both else value
    return found
