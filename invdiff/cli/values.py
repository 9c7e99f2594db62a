"""Values of a configuration, checked against the types and ranges of the parameters that they go to."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

from omegaconf import DictConfig

from invdiff.cli.targets import resolved
from invdiff.io import BadInput
from invdiff.ranges import Count, NotNegative, Positive, Range, WholeNumber, can_be, in_words_of_config
from invdiff.results import Format

Side = Annotated[int, Range(low=8)]

NODES = ("operator", "noise", "prior", "sampler", "data", "compute", "volume", "save", "recipe", "mixture", "learning")
MOST_SAMPLES = 1_000_000  # of an image
OPTIONS: dict[str, Any] = {
    "num_samples": Count,
    "seed": WholeNumber,
    "images": Count | None,
    "size": Side | None,
    "pad_to": Side | None,
    "trials": Count,
    "batch": Count,
    "prune_after": Count | None,
    "grid": WholeNumber,
    "steps": Annotated[int, Range(low=2)],
    "resolution": NotNegative,
    "input": str | None,
    "truth": str | None,
    "calibration": str | None,
    "measurement": str | None,
    "device": str | None,
    "recommended": bool,
    "clouds": bool,
    "fid": bool,
    "contract": bool,
    "evaluation.best_of": bool,
    "overwrite": bool,
    "preview": bool,
    "save.format": Format | list[Format],
    "budget.own": bool,
    "budget.vjp_weight": Positive | None,
    "save.thumbnails": WholeNumber,
}


def check_config(config: DictConfig, options: Mapping[str, Any]) -> None:
    """Check every node with a `_target_` and every option; raises BadInput, naming the first that does not fit.

    options  types of options by dotted name, where this command differs from `OPTIONS`
    """
    for name, hint in {**OPTIONS, **options}.items():
        *above, last = name.split(".")
        node = config.get(above[0]) if above else config
        if (above and above[0] not in config) or (isinstance(node, DictConfig) and last not in node):
            continue  # an option of other commands
        value = node[last] if isinstance(node, DictConfig) else None
        if not can_be(value, hint):
            raise BadInput(f"{name} must be {in_words_of_config(hint)}, got {value}")
    if config.get("num_samples", 0) > MOST_SAMPLES:
        raise BadInput(f"num_samples must be <= {MOST_SAMPLES:,}, got {config.num_samples}")
    for key in NODES:
        value = config.get(key)
        if isinstance(value, DictConfig):
            if key == "noise" and estimates_sigma(config):
                value = value.copy()
                value.sigma = 1.0  # in the place of the estimate
            check_node(value, key)
        elif key in config and key not in ("data", "prior"):  # which are words in some commands
            raise BadInput(f"{key} must be a group of options, given as {key}.NAME=value, got {value}")


def estimates_sigma(config: DictConfig) -> bool:
    """Whether the noise of a real measurement is to be estimated from it."""
    gaussian = str(config.noise.get("_target_")).endswith(".GaussianNoise")
    return gaussian and config.noise.get("sigma") == "auto" and config.get("measurement") is not None


def check_node(node: DictConfig, path: str) -> None:
    """Check the values of a node, which stands at `path`, against the annotations of its `_target_`."""
    hints = _annotations(resolved(node, path)) if "_target_" in node else {}
    for name, value in node.items():
        here = f"{path}.{name!s}"
        if name in hints and not can_be(value, hints[name]):
            estimated = here == "noise.sigma" and value == "auto"
            more = "; only Gaussian noise of a real measurement= is estimated from it" if estimated else ""
            raise BadInput(f"{here} must be {in_words_of_config(hints[name])}, got {value}{more}")
        if isinstance(value, DictConfig):
            check_node(value, here)


def _annotations(called: Any) -> dict[str, Any]:
    try:
        return get_type_hints(called.__init__ if inspect.isclass(called) else called, include_extras=True)
    except NameError:  # names imported for type checkers only
        return {}
