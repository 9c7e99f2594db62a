"""What can go wrong with a file, in one line that names it."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class BadInput(ValueError):
    """Something a user gave cannot be used; the message is one line that says what and what to do."""


def optional(module: str, path: Path) -> ModuleType:
    """A module of a package that not everybody has installed, to read this file with."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise BadInput(f"{path} takes the package {package} to read: pip install 'invdiff[medical]'") from error


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever stops the reader of a foreign format as one line that names the file; its warnings are kept quiet."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # on damaged files these readers raise almost anything
        words = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise BadInput(f"the {kind} file cannot be read: {path} ({words[:150]})") from error


def must_be_a_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise BadInput(f"a folder, not {kind}: {path}" if path.is_dir() else f"no such file: {path}")
