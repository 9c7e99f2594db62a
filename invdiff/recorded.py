"""Objects that remember the arguments they were made with, and these as JSON: the law of an operator or of noise."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from invdiff.fingerprint import of_image, settings_of, with_contents
from invdiff.user_module import file_of

NOT_OF_THE_LAW = ("seed",)  # another draw of the same law
OPAQUE = "opaque"  # key of what has no description by value


class Recorded:
    """Base of objects whose arguments are looked up later; a subclass adds nothing."""

    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        vars(made)["made_with"] = args, kwargs  # a module takes no attributes before its `__init__`
        return made


def description(made: Recorded) -> dict[str, Any]:
    """Class and arguments of an object, defaults included, as JSON that is the same on every machine.

    An argument that was None is stated by the attribute of its name, where there is one: the default that the class
    chose. Tensors and files count by their contents. Functions of a user's file count by name and file; anything else
    without a value gets the key `opaque`, and equal descriptions then prove nothing.
    """
    args, kwargs = made.made_with
    bound = inspect.signature(type(made).__init__).bind(made, *args, **kwargs)
    bound.apply_defaults()
    found = _class(type(made))
    for name, value in list(bound.arguments.items())[1:]:
        if name not in NOT_OF_THE_LAW:
            own = getattr(made, name, None) if value is None else value
            found[name] = _plain(None if inspect.ismethod(own) else own)
    return found


def is_opaque(described: Any) -> bool:
    """Whether a part of a description has no value."""
    if isinstance(described, Mapping):
        return OPAQUE in described or any(is_opaque(value) for value in described.values())
    return isinstance(described, list) and any(is_opaque(value) for value in described)


def response(values: Tensor) -> float:
    """A fixed random projection of an array, to 4 digits: it differs between functions with different results."""
    flat = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    flat = flat.detach().cpu().double().flatten()
    direction = torch.from_numpy(np.random.default_rng(0).standard_normal(flat.numel()))
    return float(f"{float(flat @ direction) / max(1, flat.numel()) ** 0.5:.4g}")


def _plain(value: Any) -> Any:
    if isinstance(value, Recorded):
        return description(value)
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().resolve_conj().numpy() if isinstance(value, Tensor) else value
        if array.size == 1:
            return float(f"{array.item():.6g}") if array.dtype.kind in "fiub" else str(array.item())
        return {"shape": list(array.shape), "sha256": of_image(array)}
    if isinstance(value, (str, Path)):
        return with_contents(str(value))
    if isinstance(value, partial):
        return {"function": _plain(value.func), "settings": [_plain(list(value.args)), _plain(value.keywords)]}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "__dataclass_fields__"):
        return settings_of(value)
    if inspect.isfunction(value) and file_of(value.__module__) is not None:
        return _class(value)
    return {OPAQUE: getattr(value, "__qualname__", type(value).__qualname__)}


def _class(thing: Any) -> dict[str, Any]:
    """Name of a class or function, with the contents of the file of the user's that defines it."""
    file = file_of(thing.__module__)
    code = {} if file is None else {"code": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}
    return {"class": thing.__qualname__, **code}
