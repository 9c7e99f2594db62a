"""Fingerprints of settings, weights and images. Settings are plain JSON; files count by their contents."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from invdiff.user_module import file_of

Settings = dict[str, Any]


def fingerprint(thing: Any) -> str:
    """16 hexadecimal digits of JSON, whatever the order of its keys, and whether 1 is written as 1.0."""
    return hashlib.sha256(json.dumps(_plain(thing), sort_keys=True).encode()).hexdigest()[:16]


def _plain(thing: Any) -> Any:
    """The same JSON without decimals of whole numbers."""
    if isinstance(thing, Mapping):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_plain(value) for value in thing]
    return int(thing) if isinstance(thing, float) and thing.is_integer() else thing


def settings_of(thing: Any) -> Any:
    """A dataclass, and those inside it, as JSON: the class by name, and every value, defaults included."""
    if is_dataclass(thing):
        name = f"{type(thing).__module__}.{type(thing).__qualname__}"
        file = file_of(type(thing).__module__)  # a sampler of the user's: another one after an edit
        code = {} if file is None else {"code": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}
        return {"class": name, **code, **{f.name: settings_of(getattr(thing, f.name)) for f in fields(thing)}}
    if isinstance(thing, Mapping):
        return {str(key): settings_of(value) for key, value in thing.items()}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [settings_of(value) for value in thing]
    return thing if thing is None or isinstance(thing, (bool, int, float, str)) else repr(thing)


def with_contents(settings: Any) -> Any:
    """Settings, with every path of a file replaced by its name and a hash of its contents.

    `my_camera.py:Camera` names the file before the colon.
    """
    if isinstance(settings, Mapping):
        return {key: with_contents(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_contents(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    for name, rest in ((settings, ""), (settings.rpartition(":")[0], settings.rpartition(":")[2])):
        if name and Path(name).is_file():
            digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
            return {"file": Path(name).name, "sha256": digest} | ({"in it": rest} if rest else {})
    return settings


def of_module(module: nn.Module) -> str:
    """Of the tensors and the class of a module, the same on every device."""
    digest = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def of_image(image: np.ndarray) -> str:
    """Of the values of an image."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:16]
