"""A sampler from a Python file: no package, no configuration, only a file in a folder."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invdiff.samplers.base import Sampler
from invdiff.samplers.settings import dotted, with_settings
from invdiff.user_module import load_module


def from_file(file: str | Path | None, settings: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler of a class in a Python file; the file is executed.

    file      `mine.py`, or with the class behind a colon, `mine.py:PlugAndPlay`; needed where there are several
    settings  by name, those of a dataclass inside the sampler nested

    Raises ValueError where there is no such class, and for settings that it does not have or refuses.
    """
    return with_settings(sampler_in(file)(), dotted(settings or {}))


def sampler_in(file: str | Path | None) -> type[Sampler]:
    """The class alone, which `all_samplers` then has as well."""
    if file is None:
        raise ValueError("callable: give file=, a Python file with your sampler, for example file=mine.py:PlugAndPlay")
    head, colon, name = str(file).rpartition(":")
    path = Path(head if colon and head.endswith(".py") else str(file)).expanduser()
    if path.suffix != ".py":
        raise ValueError(f"callable: file must be a Python file, mine.py or mine.py:PlugAndPlay, got {file}")
    if not path.is_file():
        raise ValueError(f"callable: no such file: {path} (looked for in {path.absolute().parent})")
    module = load_module(path)
    samplers = {
        word: thing
        for word, thing in vars(module).items()
        if inspect.isclass(thing) and issubclass(thing, Sampler) and thing.__module__ == module.__name__
    }
    if str(path) == str(file):
        if len(samplers) != 1:
            raise ValueError(
                f"callable: {path} defines {len(samplers)} samplers; name one, as in {path}:NAME "
                f"(samplers: {', '.join(samplers) or 'none'})"
            )
        return next(iter(samplers.values()))
    if name not in samplers:
        raise ValueError(f"{path} has no sampler {name!r} (samplers: {', '.join(samplers) or 'none'})")
    return samplers[name]
