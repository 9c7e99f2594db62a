"""Slips in the words of a command, found before torch is imported: names and options that do not exist.

Configurations are read as text and samplers as source. Where a folder, a package or another class may add names, the
command itself decides.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from invdiff.plug_ins import GROUPS as PLUG_INS
from invdiff.plug_ins import offered

_MORE = ("-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path", "hydra", "+hydra", "++", "~")
_WORD = re.compile(r"\+?([a-z][\w.]*)=(.*)", re.DOTALL)
_LISTS = {"samplers": "sampler", "operators": "operator"}


def closest(name: str, known: Sequence[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is like it."""
    inside = [word for word in known if word.rpartition(".")[2] == name]  # an option of a group, without its group
    close = inside or get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown(group: str, name: str, known: Sequence[str]) -> str:
    """A message for a name that a group does not have."""
    hint = closest(name, known)
    listed = f"known: {', '.join(known) or 'none'}" if len(known) <= 50 else "invdiff list shows all"
    return f"unknown {group} {name!r}{hint} ({listed})"


def unknown_option(name: str, known: Sequence[str]) -> str:
    """A message for an option that the chosen groups do not have."""
    head, dot, option = name.rpartition(".")
    beside = [word.removeprefix(f"{head}.") for word in known if word.rpartition(".")[0] == head and word[-1] != "_"]
    if dot and beside:
        close = get_close_matches(option, beside, n=1)
        hint = f"; did you mean {head}.{close[0]}?" if close else f"; {head} has {', '.join(beside)}"
    else:
        hint = closest(name, known)
    return f"unknown option {name!r}{hint} (--cfg job shows all options of the chosen groups)"


def find_slip(command: str, words: Sequence[str]) -> str | None:
    """One line on the first name or option that the command does not have; None where there is none, or no telling."""
    path = _configs() / f"{command.replace('-', '_')}.yaml"
    if not path.is_file() or any(word.startswith(_MORE) for word in words):
        return None
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    defaults = [entry for entry in config.pop("defaults", []) if isinstance(entry, dict)]
    chosen: dict[str, Any] = {key: value for entry in defaults for key, value in entry.items() if " " not in key}
    dashed = next((word for word in words if word.lstrip("-").partition("=")[0] in config and word[0] == "-"), None)
    if dashed is not None:
        return f"options are written without dashes: {dashed.lstrip('-')}, got {dashed}"
    given = [(match[1], match[2]) for word in words if (match := _WORD.fullmatch(word))]
    for key, value in given:
        group = _LISTS.get(key, key if key in chosen and key not in config else "")
        wanted = re.findall(r"[\w/]+", value) if re.fullmatch(r"\[?[\w/]+(,[\w/]+)*]?", value) and group else []
        known = _names(group) if wanted else None
        slip = next((name for name in wanted if known is not None and name not in known), None)
        if slip is not None and known is not None and slip != "null":
            return unknown(group, slip, known)
        if key in chosen:
            chosen[key] = wanted[0] if len(wanted) == 1 else None
    nodes = config | {group: _node(group, str(name)) for group, name in chosen.items() if group not in config}
    if command == "tune":
        nodes["space"] = None  # of the group search
    nodes |= {group: None for group in chosen if f"{group}._target_" in dict(given)}
    if chosen.get("experiment") is not None:  # which may choose any
        nodes |= dict.fromkeys(chosen)
    for key, value in given:
        added = f"+{key}={value}" in words
        # Deeper nodes may hold the arguments of a class that has more than are listed.
        slip = None if added and key.count(".") > 1 else _unknown(key, value, nodes, chosen)
        if slip is None and added and (key in chosen or key in _paths(nodes)):
            slip = f"write {key}={value} without +, which is for options that the command does not have"
        if slip is not None:
            return slip
    return None


def _unknown(key: str, value: str, nodes: Mapping[str, Any], chosen: Mapping[str, Any]) -> str | None:
    group, _, below = key.partition(".")
    if group in ("trust", *chosen) and not below:
        return None
    if group in nodes and (not below or "_target_" in key):
        return None
    here: Any = nodes
    for part in key.split("."):
        if not isinstance(here, Mapping) or not here:
            return None  # a value of any kind, or a node that takes any key
        if part not in here:
            break
        here = here[part]
    else:
        return None
    if chosen.get(group) == "auto":
        return _choose_a_sampler(below, value)
    return unknown_option(key, [*_paths(nodes), *chosen])


def _choose_a_sampler(option: str, value: str) -> str:
    """Options of samplers do not reach `auto`: which sampler has the one that was meant."""
    have = {name: fields for name, fields in sampler_fields().items() if option.partition(".")[0] in fields}
    meant = option
    if not have or option == "steps":  # of a schedule, but for the few without one
        have = {name: fields for name, fields in sampler_fields().items() if "schedule" in fields}
        meant = f"schedule.{option}" if option in ("steps", "sigma_max", "sigma_min", "rho") else ""
    name = "daps" if "daps" in have else next(iter(have))
    example = f"sampler={name} sampler.{meant}={value}" if meant else f"sampler={name}"
    return f"sampler=auto has no option {option!r}; choose a sampler to set its options, for example {example}"


def _paths(node: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found.append(f"{before}{key}")
        if isinstance(value, Mapping):
            found += _paths(value, f"{before}{key}.")
    return found


# -- what there is -----------------------------------------------------------------------------------------------------


def _configs() -> Path:
    return Path(str(files("invdiff.configs")))


def _names(group: str) -> list[str] | None:
    """Names in a group; None where packages may add some under names of their own."""
    if group == "sampler":
        return None if offered("invdiff.samplers") else sorted({"auto", "callable", *sampler_fields()})
    folder = _configs() / group
    plugged = [point.name for point in offered(PLUG_INS[group])] if group in PLUG_INS else []
    own = [str(path.relative_to(folder).with_suffix("").as_posix()) for path in folder.rglob("*.yaml")]
    return sorted({*own, *plugged})


def _node(group: str, name: str) -> Mapping[str, Any] | None:
    """The options of a choice; None where only the command can tell."""
    if group == "sampler":
        fields = {"auto": ["goal"], **sampler_fields()}.get(name)
        return None if fields is None else {"_target_": None, **dict.fromkeys(fields)}
    path = _configs() / group / f"{name}.yaml"
    node = yaml.safe_load(path.read_text()) if path.is_file() else None
    return None if node is None or "defaults" in node else node


@cache
def sampler_fields() -> dict[str, list[str]]:
    """The settings of every sampler of the package by its name, those of its base classes included."""
    bases: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}
    unfinished = {"Auto"}  # a class that leaves a method open is no sampler
    for path in sorted((Path(__file__).parents[1] / "samplers").rglob("*.py")):
        for cls in ast.parse(path.read_text()).body:
            if isinstance(cls, ast.ClassDef):
                fields = [entry for entry in cls.body if isinstance(entry, ast.AnnAssign)]
                settings = [entry for entry in fields if "ClassVar" not in ast.unparse(entry.annotation)]
                own[cls.name] = [ast.unparse(entry.target) for entry in settings]
                bases[cls.name] = [ast.unparse(base) for base in cls.bases]
                methods = [entry for entry in cls.body if isinstance(entry, ast.FunctionDef)]
                if any(ast.unparse(mark) == "abstractmethod" for entry in methods for mark in entry.decorator_list):
                    unfinished.add(cls.name)

    def lineage(name: str) -> list[str]:
        return [name, *(above for base in bases.get(name, []) for above in lineage(base))]

    lines = {name: lineage(name) for name in own}
    samplers = {name: line for name, line in lines.items() if "Sampler" in line[1:] and name not in unfinished}
    return {name.lower(): [f for cls in line for f in own.get(cls, [])] for name, line in sorted(samplers.items())}
