"""Lists of choices from a group, with settings of their own: `[dps,{bold:{sampler:dps,zeta:2}}]`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from invdiff.cli import groups
from invdiff.cli.app import chosen_name
from invdiff.cli.slips import closest, unknown
from invdiff.io import BadInput
from invdiff.samplers.settings import dotted


@dataclass(frozen=True)
class Choice:
    """A node with its settings.

    name    in its group; None where the settings have a `_target_` of their own
    named   dotted names of the settings
    beside  the value of the extra key that stood among the settings
    """

    node: DictConfig
    name: str | None
    named: list[str]
    beside: Any


def chosen(value: Any, key: str, group: str, *, beside: str | None = None) -> dict[str, Choice]:
    """The nodes that a value names, by label.

    value   a name, a list of names and of mappings label -> settings, or one mapping. A label is the name in the group,
            unless the settings give one under the name of the group
    key     what messages call the value
    beside  an extra key among the settings

    Raises BadInput for values of another form, unknown names and settings, and labels that are listed twice.
    """
    found: dict[str, Choice] = {}
    for label, settings in _pairs(value, key, group):
        if label in found:
            raise BadInput(f"{key}: {label} is listed twice; label one: {{{label}_2:{{{group}:{label}}}}}")
        name = None if "_target_" in settings else str(settings.pop(group, label))
        settings.pop(group, None)
        node = OmegaConf.create() if name is None else load(group, name, key)
        more = settings.pop(beside, None) if beside else None
        overrule(node, settings, f"{key}.{label}")
        found[label] = Choice(node, name, list(dotted(settings)), more)
    if not found:
        raise BadInput(f"{key} must name at least one (known: {', '.join(groups.options(group))})")
    return found


def with_settings_of_experiment(config: DictConfig, key: str) -> list[Any]:
    """The entries of a list, where a bare name has the settings that the chosen experiment gives it.

    `{dps:{}}` stands for the defaults of a sampler.
    """
    value = config[key]
    items = list(value) if isinstance(value, ListConfig) else [value]
    experiment = chosen_name("experiment")
    if experiment is None or not any(isinstance(item, str) for item in items):
        return items
    words = [word for word in HydraConfig.get().overrides.task if not re.match(rf"(\+\+_added\.)?{key}=", word)]
    node = compose("benchmark", words)[key]
    listed = OmegaConf.to_container(node, resolve=True) if isinstance(node, ListConfig) else []
    entries = [entry for entry in listed if isinstance(entry, dict)]  # type: ignore[union-attr]
    known = {label: entry for entry in entries for label in entry}
    return [known.get(item, item) if isinstance(item, str) else item for item in items]


def load(group: str, name: str, key: str) -> DictConfig:
    """One node of a group."""
    try:
        node: DictConfig = compose(overrides=[f"+{group}={name}"])[group]
    except MissingConfigException as error:
        raise BadInput(f"{key}: {unknown(group, name, groups.options(group))}") from error
    OmegaConf.set_struct(node, False)
    return node


def overrule(node: DictConfig, settings: Mapping[str, Any], path: str) -> None:
    """Replace settings of a node, which must have them; another class, by its `_target_`, replaces a whole node."""
    known = [str(name) for name in node if not str(name).startswith("_")]
    for key, value in settings.items():
        if key not in node and "_target_" not in settings:
            raise BadInput(
                f"{path} has no setting {key!r}{closest(key, known)} (settings: {', '.join(known) or 'none'})"
            )
        nested = isinstance(value, Mapping) and "_target_" not in value
        if nested and isinstance(node.get(key), DictConfig) and len(node[key]):  # an empty node takes any key
            overrule(node[key], value, f"{path}.{key}")
        else:
            node[key] = value


def _pairs(value: Any, key: str, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, (ListConfig, DictConfig)):
        value = OmegaConf.to_container(value, resolve=True)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item, {}
        elif isinstance(item, Mapping):
            for label, settings in item.items():
                if settings is not None and not isinstance(settings, Mapping):
                    raise BadInput(f"{key}.{label} must be settings, {{{label}:{{setting:value}}}}, got {settings}")
                yield str(label), dict(settings or {})
        else:
            first, second = groups.options(group)[:2]
            raise BadInput(
                f"{key} must be names, with settings or without, as [{first},{{my_{second}:{{{group}:{second}}}}}], "
                f"got {'null' if item is None else item}"
            )
