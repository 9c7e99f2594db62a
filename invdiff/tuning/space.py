"""The space of a search: the settings of a sampler that vary, their ranges, and the budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invdiff.benchmark.budget import NoFit, fit_calls, network_cost
from invdiff.io import BadInput
from invdiff.samplers import Sampler
from invdiff.samplers.settings import with_settings


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

    def firsts(self) -> dict[str, Sampler]:
        """The settings that are tried first, at the budget, none twice."""
        found: dict[str, Sampler] = {}
        for name, sampler in {"given": self.sampler, **self.first}.items():
            fitted = self.at_budget(sampler)
            if fitted not in found.values():
                found[name] = fitted
        return found
