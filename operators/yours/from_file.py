"""An operator from a Python file of the user, without package or configuration."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from invdiff.user_module import bind, load_module

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

    file        `my_camera.py`, or with the name after a colon, `my_camera.py:Camera`
    name        an `Operator` or a class of operators, a `deepinv` physics, a matrix, or a function of images. Default:
                the only operator that the file defines
    parameters  arguments of the class, or of the function after the images, by name

    The others are for functions:

    numpy           the function is of NumPy arrays; `batched`, `max_batch` and `workers` as in `BlackBox`
    linear          the function is linear; its adjoint is taken by autograd unless given
    differentiable  autograd works through the function; never through one of arrays
    adjoint         name of the adjoint in the same file
    image_shape     (C, H, W); required for a linear function, or where the prior does not determine it

    Raises ValueError for a file that cannot be loaded, and for a name or parameters that do not fit.
    """
    if file is None:
        raise ValueError("callable: file is required; give file=my_camera.py:Camera, a Python file and a name in it")
    path, name = _split(str(file), name)
    module = load_module(path)
    found = getattr(module, name) if name in vars(module) else None
    if name is None:
        found, name = _only_operator(module, path)
    elif found is None:
        raise ValueError(f"{path} has no {name!r}; the file defines {', '.join(_defined(module)) or 'nothing'}")
    bound = bind(found, parameters or {}, f"{path}: {name}", inputs=1)
    if isinstance(bound, Operator):
        return bound
    shape = None if image_shape is None else tuple(image_shape)
    transpose = None
    if adjoint is not None:
        if adjoint not in vars(module):
            raise ValueError(
                f"{path} has no {adjoint!r} for an adjoint; the file defines {', '.join(_defined(module))}"
            )
        transpose = bind(getattr(module, adjoint), parameters or {}, f"{path}: {adjoint}", inputs=1)
    if numpy and callable(bound):
        if not linear:
            return BlackBox(bound, batched=batched, max_batch=max_batch, workers=workers, image_shape=shape)
        if transpose is None or shape is None:
            raise ValueError(f"{path}: {name} is linear and of arrays, which requires adjoint= and image_shape=")
        return LinearBlackBox(
            bound, transpose, batched=batched, max_batch=max_batch, workers=workers, image_shape=shape
        )
    try:
        return as_operator(bound, linear=linear, differentiable=differentiable, image_shape=shape, adjoint=transpose)
    except TypeError as error:
        raise ValueError(f"{path}: {name}: {error}") from error


def _split(file: str, name: str | None) -> tuple[Path, str | None]:
    """Path and name of `my_camera.py:Camera`; the colon of a Windows drive separates no name."""
    head, colon, tail = file.rpartition(":")
    if colon and head.endswith(".py"):
        if name is not None and name != tail:
            raise ValueError(f"callable: file={file} contradicts name={name}; give one of them")
        file, name = head, tail
    path = Path(file).expanduser()
    if path.suffix != ".py":
        raise ValueError(
            f"callable: file must be a Python file, such as my_camera.py or my_camera.py:Camera, got {file}"
        )
    if not path.is_file():
        raise ValueError(f"callable: no such file: {path} (looked for in {path.absolute().parent})")
    return path, name


def _defined(module: ModuleType) -> list[str]:
    """Public names of operators and callables that the file itself defines."""
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
        raise ValueError(f"callable: the operator must be named, as in {path}:NAME; the file defines {there}")
    return getattr(module, operators[0]), operators[0]
