"""Objects of a configuration: the one place that turns a `_target_` into a class and calls it.

A YAML file is data: a `_target_` in it may be a class or function of this package, or a plug-in of an installed one.
Any other one, and every Python file, would run code of the author of the file; the user must name it on the command
line.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from inspect import isclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from invdiff import integrators, operators, priors, samplers, schedules
from invdiff.io import BadInput
from invdiff.operators import Noise, Operator
from invdiff.plug_ins import GROUPS as PLUG_INS
from invdiff.plug_ins import node_of, plug_ins
from invdiff.priors import Prior
from invdiff.priors.networks import network_time
from invdiff.samplers import Sampler

_RUN_A_FILE = (  # which the user must name
    "invdiff.operators.from_file",
    "invdiff.operators.yours.from_file.from_file",
    "invdiff.samplers.from_file.from_file",
    "invdiff.priors.from_file.prior_from_file",
)
_FAMILIES = (Operator, Noise, Prior, Sampler, schedules.Schedule, integrators.Integrator, network_time.NetworkTime)
_FILE = re.compile(r"\.py(:|$)")
_NAMED = re.compile(r"""(?:^|[.{,\s])(?:_target_|file|network|trust)\s*[=:]\s*(\[[^]]*]|"[^"]*"|'[^']*'|[^,}\]\s]+)""")


def make(node: DictConfig, path: str | None = None, /, **given: Any) -> Any:
    """The object of a node, made from its values and from those given by name.

    path  what messages call the node; default: where it stands in its configuration

    Raises BadInput, before anything is loaded, for a `_target_` or a Python file that the user has not named.
    """
    path = path or str(node._get_full_key(None)) or "configuration"
    values = OmegaConf.to_container(node, resolve=True)
    for here, value in _walk(values, path):
        if isinstance(value, str):
            _check_word(value, here)
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, here)
    return instantiate(OmegaConf.create({path: values})[path], **given)


def check_target(node: Mapping[str, Any], path: str) -> None:
    """Raise BadInput for a node whose `_target_` may not run."""
    target = str(node["_target_"])
    if target != "???" and target not in _known() and target not in _typed():
        raise BadInput(
            f"{path}._target_={target} is not of invdiff and may run any code; if you trust it, add trust={target}"
        )


def _check_word(word: str, path: str) -> None:
    if "${" in word:
        raise BadInput(f"{path} must be a plain value, got {word}")
    if _FILE.search(word) and _plain(word) not in map(_plain, _typed()):
        raise BadInput(f"{path}={word} would run this file; if you trust it, add trust={_short(word)}")


def resolved(node: Mapping[str, Any], path: str) -> Any:
    """The class or function of a node. Raises BadInput where it may not run or cannot be loaded."""
    target = str(node["_target_"])  # read once: an interpolation may change
    check_target({**node, "_target_": target}, path)
    try:
        return get_object(target)
    except ImportError as error:
        raise BadInput(f"{path}._target_={target} cannot be loaded: {' '.join(str(error).split())}") from error


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, value
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from _walk(inner, f"{path}.{key}")


def _typed() -> Iterator[str]:
    """Targets and files that stand in the words of the command line."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    for word in words:
        unescaped = re.sub(r"\\([^\w\\])", r"\1", str(word))  # hydra escapes the words of a sweep
        for found in _NAMED.findall(unescaped):
            yield from (name.strip(" \"'") for name in found.strip("[]").split(","))


def _plain(file: str) -> str:
    return str(Path(_short(file)).expanduser().resolve())


def _short(file: str) -> str:
    """Without the name behind the colon."""
    head, colon, _ = file.rpartition(":")
    return head if colon and head.endswith(".py") else file


def _known() -> set[str]:
    """Names of what a configuration may call: all that ours call, and every class of operators, priors, samplers."""
    found = {*_of_ours(), *_RUN_A_FILE}
    classes = {cls for family in _FAMILIES for cls in _below(family)}
    exported = {
        cls: f"{module.__name__}.{name}"
        for module in (integrators, operators, priors, samplers, schedules, network_time)
        for name, cls in vars(module).items()
        if isclass(cls) and cls in classes
    }
    for cls in classes:
        for name in filter(None, (f"{cls.__module__}.{cls.__qualname__}", exported.get(cls))):
            makers = (maker for maker, value in vars(cls).items() if isinstance(value, classmethod) and maker[0] != "_")
            found |= {name, *(f"{name}.{maker}" for maker in makers)}
    return found | {node_of(made)["_target_"] for group in PLUG_INS for made in plug_ins(group).values()}


@cache
def _of_ours() -> frozenset[str]:
    """Every `_target_` in the configurations of the package."""
    folder = Path(str(files("invdiff.configs")))
    found = (re.findall(r"_target_: *([\w.]+)", path.read_text()) for path in folder.rglob("*.yaml"))
    return frozenset(name for names in found for name in names)


def _below(cls: Any) -> Iterator[Any]:
    yield cls
    for inner in cls.__subclasses__():
        yield from _below(inner)
