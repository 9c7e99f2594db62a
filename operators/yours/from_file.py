"""An operator from a Python file of the user's: no package, no configuration, only a file in a folder."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from invdiff.user_module import load_module

from ..core.base import Operator
from .as_operator import as_operator
from .black_box import BlackBox, LinearBlackBox


def from_file(
    file: str | Path | None,
    name: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    numpy: bool = False,
    linear: bool = False,
    differentiable: bool = True,
    adjoint: str | None = None,
    image_shape: Sequence[int] | None = None,
    batched: bool = False,
    max_batch: int | None = None,
    workers: int = 1,
) -> Operator:
    """The operator of this name in a Python file; the file is executed.

    file        `my_camera.py`, or with the name behind a colon, `my_camera.py:Camera`
    name        a class, made with `parameters`, or an operator, a `deepinv` physics, a matrix, or a function of images,
                which are its forward model. Not needed where the file defines one operator class
    parameters  by name: of the class, or of the function, behind the images

    What follows is about functions; a class of operators says it itself.

    numpy           it takes and gives NumPy arrays: a `BlackBox`, which explains `batched`, `max_batch` and `workers`
    linear          it is linear; its adjoint is taken by autograd unless given
    differentiable  autograd may be sent through it; never through a function of arrays
    adjoint         name of the adjoint in the same file
    image_shape     (C, H, W), needed where it is linear, or does not follow from the prior
    """
    if file is None:
        raise ValueError("callable: give file=, a Python file with your operator, for example file=my_camera.py:Camera")
    path, name = _split(str(file), name)
    module = load_module(path)
    found = getattr(module, name) if name in vars(module) else None
    if name is None:
        found, name = _only_operator(module, path)
    elif found is None:
        raise ValueError(f"{path} has no {name!r}; it defines {', '.join(_defined(module)) or 'nothing'}")
    bound = _bind(found, parameters or {}, f"{path}: {name}")
    if isinstance(bound, Operator):
        return bound
    shape = None if image_shape is None else tuple(image_shape)
    transpose = None
    if adjoint is not None:
        if adjoint not in vars(module):
            raise ValueError(f"{path} has no {adjoint!r} for an adjoint; it defines {', '.join(_defined(module))}")
        transpose = _bind(getattr(module, adjoint), parameters or {}, f"{path}: {adjoint}")
    if numpy and callable(bound):
        if not linear:
            return BlackBox(bound, batched=batched, max_batch=max_batch, workers=workers, image_shape=shape)
        if transpose is None or shape is None:
            raise ValueError(f"{path}: {name} is linear and of arrays: give adjoint= and image_shape= as well")
        return LinearBlackBox(
            bound, transpose, batched=batched, max_batch=max_batch, workers=workers, image_shape=shape
        )
    try:
        return as_operator(bound, linear=linear, differentiable=differentiable, image_shape=shape, adjoint=transpose)
    except TypeError as error:
        raise ValueError(f"{path}: {name}: {error}") from error


def _split(file: str, name: str | None) -> tuple[Path, str | None]:
    """`my_camera.py:Camera` is a file and a name; the colon of a drive is none."""
    head, colon, tail = file.rpartition(":")
    if colon and head.endswith(".py"):
        if name is not None and name != tail:
            raise ValueError(f"callable: file={file} names {tail}, name={name} another one")
        file, name = head, tail
    path = Path(file).expanduser()
    if path.suffix != ".py":
        raise ValueError(f"callable: file is a Python file, my_camera.py or my_camera.py:Camera, got {file}")
    if not path.is_file():
        raise ValueError(f"callable: no such file: {path} (looked for in {path.absolute().parent})")
    return path, name


def _defined(module: ModuleType) -> list[str]:
    """Public names of what the file itself defines and one might mean."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, Operator) or (callable(value) and getattr(value, "__module__", None) == module.__name__))
    ]


def _only_operator(module: ModuleType, path: Path) -> tuple[Any, str]:
    operators = [
        name
        for name in _defined(module)
        if isinstance(value := getattr(module, name), Operator)
        or (inspect.isclass(value) and issubclass(value, Operator) and not inspect.isabstract(value))
    ]
    if len(operators) != 1:
        there = ", ".join(operators or _defined(module)) or "nothing"
        raise ValueError(f"callable: name what is meant, as in {path}:NAME; it defines {there}")
    return getattr(module, operators[0]), operators[0]


def _bind(found: Any, parameters: Mapping[str, Any], what: str) -> Any:
    """A class with its parameters, a function with those behind its images; anything else takes none."""
    if inspect.isclass(found):
        try:
            inspect.signature(found).bind(**parameters)
        except TypeError as error:
            raise ValueError(f"{what} cannot be made with these parameters: {error}") from error
        return found(**parameters)
    if not parameters:
        return found
    if isinstance(found, Operator) or not callable(found):
        raise ValueError(f"{what} is a {type(found).__name__} and takes no parameters; name a class or a function")
    try:
        inspect.signature(found).bind(None, **parameters)
    except TypeError as error:
        raise ValueError(f"{what} cannot be called with these parameters: {error}") from error
    return partial(found, **parameters)
