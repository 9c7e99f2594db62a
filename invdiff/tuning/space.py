"""The space of a search: the settings of a sampler that vary, their ranges, and the budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

from invdiff.benchmark.budget import NoFit, fit_calls, network_cost
from invdiff.io import BadInput
from invdiff.ranges import fits, in_words
from invdiff.samplers import Sampler
from invdiff.samplers.settings import as_config, dotted, with_settings

PUBLISHED = "published"  # the name of such settings among the first trials


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: evenly spread over the orders of magnitude."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and not (self.whole and value != int(value))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values; None, truth values, numbers or words."""

    name: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def holds(self, value: Any) -> bool:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.values)


Parameter = Range | Choice


@dataclass(frozen=True, kw_only=True)
class Search:
    """The space and the budget of a search.

    sampler     as given, the first trial
    parameters  the settings that vary
    first       other samplers that are tried first, by name
    calls       network calls of one sample, for all trials alike; None: as many as their settings take
    vjp_weight  cost of a VJP through the network in forwards
    """

    sampler: Sampler
    parameters: Sequence[Parameter]
    first: Mapping[str, Sampler]
    calls: float | None
    vjp_weight: float

    def cost(self, sampler: Sampler) -> float:
        return network_cost(sampler, self.vjp_weight)

    def at_budget(self, sampler: Sampler) -> Sampler:
        """With as many steps as the calls buy; raises ValueError where the sampler cannot be brought to them."""
        if self.calls is None or self.cost(sampler) == self.calls:
            return sampler
        try:
            return fit_calls(sampler, self.calls, self.vjp_weight)
        except NoFit:
            if self.cost(sampler) <= self.calls:
                return sampler
            raise

    def check(self) -> None:
        """Raise BadInput, naming the parameter, where one of its ends is no setting, or breaks the budget."""
        self.at_budget(self.sampler)
        for parameter in self.parameters:
            for end in parameter.ends:
                here = f"space.{parameter.name}"
                try:
                    changed = with_settings(self.sampler, {parameter.name: end})
                except ValueError as error:
                    raise BadInput(f"{here}: {end} is not allowed: {error}") from error
                if self.calls is None or self.cost(changed) == self.cost(self.sampler):
                    continue
                if parameter.name == "schedule.steps":
                    raise BadInput(f"{here} changes the number of network calls; set budget.calls=open to allow it")
                try:
                    self.at_budget(changed)
                except ValueError as error:
                    raise BadInput(
                        f"{here}: {end} changes the number of network calls, and no number of steps compensates "
                        f"({error}); set {here}=null to leave it out, or budget.calls=open"
                    ) from error

    def as_json(self) -> dict[str, Any]:
        """Everything that determines where it looks, and at what price."""
        return {
            "sampler": as_config(self.sampler),
            "space": {p.name: {k: v for k, v in asdict(p).items() if k != "name"} for p in self.parameters},
            "first": {name: as_config(sampler) for name, sampler in self.first.items()},
            "budget": {"calls": self.calls, "vjp_weight": self.vjp_weight},
        }

    def price(self) -> str:
        """The budget in words."""
        if self.calls is None:
            return "budget: open; trials differ in network calls, see the column calls"
        weight = f"a VJP counting {self.vjp_weight:g}"
        return f"budget: at most {self.calls:g} network calls a sample in every trial, {weight}"

    def firsts(self) -> dict[str, Sampler]:
        """The settings that are tried first, at the budget, none twice."""
        found: dict[str, Sampler] = {}
        for name, sampler in {"given": self.sampler, **self.first}.items():
            fitted = self.at_budget(sampler)
            if fitted not in found.values():
                found[name] = fitted
        return found


def make_search(
    sampler: Sampler,
    space: Any,
    first: Mapping[str, Any],
    *,
    calls: float | Literal["open"] | None,
    vjp_weight: float,
) -> tuple[Search, list[str]]:
    """A search from its parts as they are written, and notes for the user.

    space  see `read_space`
    first  samplers to try first, or nested settings by name; `PUBLISHED` ones are left out where no budget reaches them
    calls  of one sample; None: those of the sampler, "open": no limit

    Raises BadInput, naming the entry, for what does not fit.
    """
    limit = None if calls in (None, "open") else float(calls)
    parameters = read_space(space, sampler)
    search = Search(sampler=sampler, parameters=parameters, first={}, calls=limit, vjp_weight=vjp_weight)
    if calls is None:
        search = replace(search, calls=search.cost(sampler))
    search.check()
    search = replace(search, sampler=search.at_budget(sampler))
    made: dict[str, Sampler] = {}
    notes = []
    for name, given in first.items():
        try:
            made[name] = search.at_budget(_first(given, type(sampler)() if name == PUBLISHED else sampler))
        except ValueError as error:
            reason = " ".join(str(error).split())
            if name != PUBLISHED:
                raise BadInput(f"first.{name}: {reason}") from error
            notes.append(f"the published settings are not among the first trials: {reason}")
    return replace(search, first=made), notes


def _first(given: Any, sampler: Sampler) -> Sampler:
    if isinstance(given, Sampler):
        return given
    if not isinstance(given, Mapping):
        raise BadInput(f"it must be settings, {{setting:value}}, got {given}")
    changed: Sampler = with_settings(sampler, dotted(given))
    return changed


# -- reading -----------------------------------------------------------------------------------------------------------


def read_space(space: Any, sampler: Any) -> list[Parameter]:
    """The parameters of a space as it is written, `{zeta: [0.1, 10, log], schedule: {rho: [3, 10]}}`.

    Raises BadInput, naming the entry, for names that are no settings of the sampler and for ranges that do not fit.
    """
    if not isinstance(space, Mapping):
        raise BadInput(f"space must hold a range for each setting, {{zeta:[0.1,10,log]}}, got {space}")
    written = {name: entry for name, entry in dotted(space).items() if entry is not None}
    if not written:
        names = ", ".join(f.name for f in fields(sampler) if not is_dataclass(getattr(sampler, f.name)))
        raise BadInput(f"space is empty; +space.NAME=[low,high,log] searches a setting, one of {names}")
    return [_parameter(name, entry, sampler) for name, entry in written.items()]


def _parameter(name: str, entry: Any, sampler: Any) -> Parameter:
    hint = _hint(name, sampler)
    if isinstance(entry, str) or not isinstance(entry, Sequence):
        raise BadInput(f"space.{name} must be [low,high], [low,high,log] or a list of choices, got {entry}")
    entry = list(entry)
    log = entry[-1:] == ["log"]
    ends = entry[:-1] if log else entry
    if len(ends) == 2 and all(fits(end, float) for end in ends):
        return _range(name, ends, log, hint)
    if log:
        raise BadInput(f"space.{name} must be [low,high,log], two numbers and the word log, got {entry}")
    if len(entry) < 2 or len({str(value) for value in entry}) < len(entry):
        raise BadInput(f"space.{name} must have two choices or more, all different, got {entry}")
    wrong = [value for value in entry if isinstance(value, (list, dict)) or not fits(value, hint)]
    if wrong:
        raise BadInput(f"space.{name}: {wrong[0]} is no choice, the setting must be {in_words(hint)}")
    return Choice(name=name, values=tuple(entry))


def _range(name: str, ends: list[Any], log: bool, hint: Any) -> Range:
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadInput(f"space.{name} is empty: low must be < high, got [{low},{high}]")
    if log and low <= 0:
        raise BadInput(f"space.{name} is over orders of magnitude: low must be > 0, got {low}")
    whole = not fits(0.5, hint)
    if not (fits(int(low), hint) and (not whole or (low == int(low) and high == int(high)))):
        raise BadInput(f"space.{name}: [{low},{high}] is no range of it, the setting must be {in_words(hint)}")
    return Range(name=name, low=low, high=high, log=log, whole=whole)


def _hint(name: str, sampler: Any) -> Any:
    """The type of a setting under its dotted name, without its declared range, which `Search.check` checks."""
    found: Any = sampler
    for part in name.split("."):
        owner, known = type(found), [f.name for f in fields(found)] if is_dataclass(found) else []
        if part not in known:
            names = ", ".join(known) or "none"
            raise BadInput(f"space.{name}: {owner.__name__} has no setting {part!r} (settings: {names})")
        found = getattr(found, part)
    return get_type_hints(owner)[part]
