"""Groups of configurations: YAML files, samplers by their classes, operators and priors of installed packages."""

import inspect
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from invdiff.plug_ins import GROUPS as PLUG_INS
from invdiff.plug_ins import node_of, plug_ins

if TYPE_CHECKING:
    from invdiff.samplers import Sampler

FROM_FILE = "a sampler of your own: sampler.file=mine.py:Mine, its settings as sampler.settings.NAME="


def register() -> None:
    """Give hydra, beside the YAML files, a node for each sampler and for each plug-in of an installed package.

    Raises ValueError for a plug-in that cannot be loaded.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from invdiff.cli.explained import options as options_for_help
    from invdiff.samplers.settings import from_file_node

    store = ConfigStore.instance()
    for name, cls in sampler_classes().items():
        store.store(group="sampler", name=name, node=sampler_node(cls))
    store.store(group="sampler", name="callable", node=from_file_node(None, {}))
    for group in PLUG_INS:
        for name, made in plug_ins(group).items():
            store.store(group=group, name=name, node=node_of(made))
    resolvers: dict[str, Callable[..., Any]] = {
        "groups": _for_help,
        "options": options_for_help,
        "published": lambda: len(described("experiment/paper")),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def sampler_classes() -> dict[str, type["Sampler"]]:
    """Every sampler by name, plug-ins included, `auto` first."""
    from invdiff.samplers import Auto, all_samplers

    return {"auto": Auto, **all_samplers()}


@cache
def sampler_node(cls: type["Sampler"]) -> dict[str, Any]:
    """The defaults of a sampler as a node; the class alone where a default cannot be written as one."""
    from invdiff.samplers.settings import as_config

    try:
        return as_config(cls())
    except ValueError:
        return {"_target_": f"{cls.__module__}.{cls.__qualname__}"}


def described(group: str, folders: tuple[Path, ...] = ()) -> dict[str, str]:
    """Names in a group with a line on each: the first comment of a file, the first line of a docstring.

    folders  of `--config-dir`
    """
    found = {}
    if group == "sampler":
        found = {name: _first_line(cls) for name, cls in sampler_classes().items()} | {"callable": FROM_FILE}
    elif group in PLUG_INS:
        found = {name: _first_line(made) for name, made in plug_ins(group).items()}
    for folder in (files("invdiff.configs"), *folders):
        here = folder.joinpath(group)
        for entry in here.iterdir() if here.is_dir() else ():
            if entry.name.endswith(".yaml"):
                comments = [w.strip("# ") for w in entry.read_text().splitlines() if w.startswith("#")]
                found[entry.name.removesuffix(".yaml")] = next((w for w in comments if not w.startswith("@")), "")
    return dict(sorted(found.items()))


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def options(group: str) -> list[str]:
    """Names in a group that the running command can choose, those of `--config-dir` included."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    found: list[str] = GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG)
    return found


def _for_help(*groups: str) -> str:
    lines = (f"{group}: {', '.join(options(group))}" for group in groups)
    return "\n".join(fill(line, 118, initial_indent="  ", subsequent_indent="      ") for line in lines)


def names() -> list[str]:
    """All groups of the package."""
    folders = (entry.name for entry in files("invdiff.configs").iterdir() if entry.is_dir())
    return sorted({"sampler", *folders} - {"__pycache__"})


def is_choice(word: str) -> bool:
    """True where an option chooses, from a group, a name that the package has."""
    group, _, name = word.partition("=")
    return group in names() and name in described(group)
