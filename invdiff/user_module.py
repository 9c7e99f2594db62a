"""Python files of the user as modules: no package, no configuration, only a file in a folder."""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn


def load_module(path: Path) -> ModuleType:
    """A Python file as the module of its name; anew where the file has changed.

    It is found again under that name by what it imports, by pickle, and in processes that this one starts: its folder
    goes to the end of `sys.path`, where it hides nothing.
    """
    full, stem = path.resolve(), path.stem
    read = (full, full.stat().st_mtime_ns)
    known = sys.modules.get(stem)
    ours = getattr(known, "_invdiff_read", None)
    if ours == read:
        return known  # type: ignore[return-value]  # it has the mark of a module that was read here
    if ours is None:
        other = known if known is not None else _installed(stem)
        origin = getattr(other, "__file__", None) or getattr(other, "origin", None)
        if known is not None and origin is not None and Path(origin).resolve() == full:
            return known  # the user has imported it
        if other is not None and (origin is None or Path(origin).resolve() != full):
            where = "" if origin is None else f" ({origin})"
            raise ValueError(f"{path} has the name of another module{where}; rename it, for example {stem}_operator.py")
    if str(full.parent) not in sys.path:
        sys.path.append(str(full.parent))
    module = ModuleType(stem)
    module.__file__ = str(full)
    module.__spec__ = importlib.util.spec_from_file_location(stem, full)
    sys.modules[stem] = module
    try:
        # Compiled here: the compiled files that Python keeps do not notice two changes within a second.
        exec(compile(full.read_bytes(), str(full), "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[stem]
        if not isinstance(error, Exception):
            raise
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    module._invdiff_read = read  # type: ignore[attr-defined]
    return module


def named_in(file: str | Path | None, example: str) -> tuple[Path, str, Any]:
    """Path, name and object of `my_network.py:load`; the file is executed.

    example  what messages suggest

    Raises ValueError where there is no such file, or nothing of this name in it.
    """
    path, _, name = str(file or "").rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"{example}: must be a Python file and a name in it, got {file}")
    where = Path(path).expanduser()
    if not where.is_file():
        raise ValueError(f"{example}: no such file: {where} (looked for in {where.absolute().parent})")
    module = load_module(where)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == where.stem]
        raise ValueError(f"{where} has no {name!r}; it defines {', '.join(known) or 'nothing'}")
    return where, name, getattr(module, name)


def file_of(name: str) -> Path | None:
    """The file that `load_module` read the module of this name from; None for other modules."""
    read = getattr(sys.modules.get(name), "_invdiff_read", None)
    return None if read is None else read[0]


def bind(found: Any, parameters: Mapping[str, Any], what: str, *, inputs: int) -> Any:
    """An object of a user's module with its parameters.

    found   a class, which is instantiated; a function, which keeps its first `inputs` arguments open; or anything else,
            which takes no parameters and is returned unchanged
    what    its name in messages

    Raises ValueError where it does not take these parameters.
    """
    if not inspect.isclass(found):
        if parameters and (isinstance(found, nn.Module) or not callable(found)):
            raise ValueError(f"{what} is a {type(found).__name__} and takes no parameters; name a class or a function")
        if not parameters and not inspect.isfunction(found):
            return found
    try:
        inspect.signature(found).bind(*[None] * (0 if inspect.isclass(found) else inputs), **parameters)
    except TypeError as error:
        raise ValueError(f"{what} does not take these parameters: {error}") from error
    if inspect.isclass(found):
        return found(**parameters)
    return partial(found, **parameters) if parameters else found


def _installed(stem: str) -> Any:
    try:
        return importlib.util.find_spec(stem)
    except ValueError:  # a half-made module
        return None
