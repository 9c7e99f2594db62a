"""Paths in a configuration: those of files and folders that a run reads, and where it writes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Options that hold paths; elsewhere a string counts as one where it has a folder or a suffix, and exists.
_OPTIONS = (
    "input",
    "measurement",
    "truth",
    "mask",
    "kernel",
    "maps",
    "angles",
    "path",
    "file",
    "weights",
    "calibration",
    "data",
)


def absolute(config: Any) -> Any:
    """The same plain values with absolute paths: the file of a configuration works in every folder.

    `my_camera.py:Camera` keeps what follows the colon.
    """
    made = _mapped(config, lambda path, rest: f"{path.resolve()}{rest}")
    if isinstance(made, dict) and isinstance(made.get("output"), str):
        made["output"] = str(Path(made["output"]).resolve())
    return made


def inputs(config: Any) -> list[Path]:
    """The files and folders that a run with this configuration reads."""
    found: list[Path] = []
    others = {key: value for key, value in config.items() if key != "output"}
    _mapped(others, lambda path, rest: found.append(path))
    return found


def without_folders(config: Any) -> Any:
    """The same plain values with folders by their name alone: what lies in them has a fingerprint of its own."""
    return _mapped(config, lambda path, rest: {"folder": path.name} if path.is_dir() else f"{path}{rest}")


def _mapped(value: Any, change: Callable[[Path, str], Any], key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _mapped(inner, change, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change, key) for inner in value]
    found = next(_path(value, key), None) if isinstance(value, str) else None
    return value if found is None else change(*found)


def _path(value: str, key: str) -> Iterator[tuple[Path, str]]:
    """The path that an option names, with what follows its colon; nothing where it names none."""
    for name, rest in ((value, ""), (value.rpartition(":")[0], f":{value.rpartition(':')[2]}")):
        path = Path(name)
        likely = key in _OPTIONS or "/" in name or path.suffix
        folder = path.is_dir() and not rest and (key != "weights" or "/" in name)  # weights may have a plain name
        if name and likely and key != "_target_" and (path.is_file() or folder):
            yield path, rest
