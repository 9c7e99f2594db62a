"""Lists of choices from a group of configurations, with settings of their own: `[dps,{bold:{sampler:dps,zeta:2}}]`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from invdiff.cli.list_command import entries as available
from invdiff.io import BadInput


@dataclass(frozen=True)
class Choice:
    """A configuration with its settings overruled.

    beside   what was said beside them
    written  all that was said, the name of the configuration included where it is not the label
    name     of the configuration
    """

    node: DictConfig
    beside: Any
    written: dict[str, Any]
    name: str


def chosen(value: Any, key: str, group: str, *, beside: str | None = None) -> dict[str, Choice]:
    """The configurations that a value names, by their labels.

    value   a name, a list of names and of mappings label -> settings, or one mapping. A label is the name of a
            configuration unless the settings say which one, under the name of the group
    key     what the value is called, for messages
    group   where the configurations are
    beside  a word among the settings that is none of them

    Raises BadInput, in one line, for what cannot be read, unknown names and settings, and a label that stands twice.
    """
    found: dict[str, Choice] = {}
    for label, settings in _pairs(value, key, group):
        if label in found:
            raise BadInput(f"{key}: {label} stands there twice; give one a label: {{{label}_2:{{{group}:{label}}}}}")
        written = dict(settings)
        name = str(settings.pop(group, label))
        node = OmegaConf.create() if "_target_" in settings else load(group, name, key)  # or it stands for itself
        more = settings.pop(beside, None) if beside else None
        overrule(node, settings, f"{key}.{label}")
        found[label] = Choice(node, more, written, name)
    if not found:
        raise BadInput(f"{key} must name at least one; there are {', '.join(available(group))}")
    return found


def recommended(choice: Choice, operator: str, path: str) -> DictConfig | None:
    """A sampler with the settings of `configs/recommended/` for an operator, what was said overruling them; None where
    there are none."""
    name = f"{choice.name}_{operator}"
    if name not in available("recommended"):
        return None
    node = load("sampler", choice.name, path)
    overrule(node, _plain(compose(overrides=[f"+recommended={name}"]).sampler), path)
    overrule(node, {key: value for key, value in choice.written.items() if key != "sampler"}, path)
    return node


def _plain(node: DictConfig) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node, resolve=True)
    return found


def load(group: str, name: str, key: str) -> DictConfig:
    """One configuration of a group."""
    try:
        node: DictConfig = compose(overrides=[f"+{group}={name}"])[group]
    except MissingConfigException as error:
        raise BadInput(f"{key}: unknown {group} {name!r}; there are {', '.join(available(group))}") from error
    OmegaConf.set_struct(node, False)
    return node


def overrule(node: DictConfig, settings: Mapping[str, Any], path: str) -> None:
    """Put settings in the place of those of a configuration, which must have them."""
    for key, value in settings.items():
        if key not in node and "_target_" not in settings:
            known = ", ".join(str(name) for name in node if name != "_target_")
            raise BadInput(f"{path} has no setting {key!r}; it has {known or 'none'}")
        if isinstance(value, Mapping) and isinstance(node.get(key), DictConfig) and "_target_" not in value:
            overrule(node[key], value, f"{path}.{key}")
        else:  # another class brings settings of its own
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
            first, second = list(available(group))[:2]
            raise BadInput(
                f"{key} must be names, with settings or without, as [{first},{{my_{second}:{{{group}:{second}}}}}], "
                f"got {'null' if item is None else item}"
            )
