"""Settings of a sampler by their dotted names, and as a node of a configuration."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from invdiff.io import BadInput


def setting(sampler: Any, name: str) -> Any:
    """The setting of a sampler under a dotted name, `schedule.sigma_max`."""
    for part in name.split("."):
        sampler = getattr(sampler, part)
    return sampler


def with_settings(sampler: Any, settings: Mapping[str, Any]) -> Any:
    """The sampler with other settings under their dotted names; raises ValueError where it cannot have them."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for first, more in inner.items():
        own[first] = with_settings(getattr(sampler, first), more)
    return replace(sampler, **own)


def as_config(thing: Any) -> Any:
    """A sampler, and what is inside it, as a node from which hydra makes it again, every setting included."""
    if is_dataclass(thing) and not isinstance(thing, type):
        target = f"{type(thing).__module__}.{type(thing).__qualname__}"
        return {"_target_": target, **{f.name: as_config(getattr(thing, f.name)) for f in fields(thing)}}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (tuple, list)):
        return [as_config(value) for value in thing]
    raise BadInput(f"a sampler with a setting like {thing!r} cannot be written as a configuration, and so not be tuned")
