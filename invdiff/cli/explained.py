"""What options mean: the comments of the configurations and the parameters in the docstrings of what they make."""

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from textwrap import wrap
from typing import Any

from omegaconf import DictConfig, OmegaConf

from invdiff.cli.targets import resolved

COLUMN, WIDTH = 34, 114
_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)  +(?P<words>\S.*)")
_LINE = re.compile(r"(?P<indent> *)(?P<key>[\w/]+):(?P<value>(?:[^#'\"]|'[^']*'|\"[^\"]*\")*?)(?: +#\s*(?P<note>.*))?$")


def documented(made: Any) -> dict[str, str]:
    """The parameters in the docstring of a class or function: `name  words`, further lines indented."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(made) or "").splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            names = entry["names"].split(", ")
            found |= dict.fromkeys(names, entry["words"])
        elif line.startswith("  ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def options(name: str, *, _root_: DictConfig) -> str:
    """All options of a command, for the text of --help: the resolver `options:NAME` of its configuration."""
    config = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key not in ("hydra", "_values")])
    text = with_notes(config, _root_.hydra.runtime.choices, name)
    return text.replace("$", "$$")  # of interpolations; hydra takes the text for a template


def with_notes(config: DictConfig, choices: Mapping[str, Any], name: str | None = None) -> str:
    """A configuration as YAML, each option with the words that explain it.

    choices  names that were chosen, by group
    name     of the primary configuration
    """
    notes = dict(_comments(_text(f"{name}.yaml"))) if name else {}
    for group, chosen in choices.items():
        node = config.get(group)
        if not isinstance(node, DictConfig):
            continue
        if "_target_" in node and not OmegaConf.is_missing(node, "_target_"):
            notes |= {f"{group}.{key}": words for key, words in documented(resolved(node, group)).items()}
        notes |= {f"{group}.{key}": words for key, words in _comments(_text(f"{group}/{chosen}.yaml"))}
    lines = []
    for path, line in _paths(OmegaConf.to_yaml(config).splitlines()):
        first, *more = wrap(notes.get(path, ""), WIDTH - COLUMN, max_lines=3, placeholder=" ...") or [""]
        lines.append(f"{line:<{COLUMN}}  # {first}" if first else line)
        lines += [f"{'':<{COLUMN}}  # {words}" for words in more]
    return "\n".join(lines)


def _text(path: str) -> str:
    file = files("invdiff.configs").joinpath(path)
    return file.read_text() if file.is_file() else ""


def _comments(text: str) -> Iterator[tuple[str, str]]:
    above: list[str] = []  # comments on lines of their own
    for path, line in _paths(text.splitlines()):
        match = _LINE.fullmatch(line)
        note = (match and match["note"]) or " ".join(above)
        if match is not None and note:
            yield path, note
        above = [*above, line.strip(" #")] if line.lstrip().startswith("#") else []


def _paths(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Lines of YAML with the dotted name that each is about; without a key, with none."""
    above: list[tuple[int, str]] = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            yield "", line
            continue
        indent = len(match["indent"])
        above = [*(entry for entry in above if entry[0] < indent), (indent, match["key"])]
        yield ".".join(key for _, key in above), line
