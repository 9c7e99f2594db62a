"""The priors that ship with the package, and loading any other by its file."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .closed_form.low_rank import KIND, LowRankMixturePrior
from .networks.edm import EDMPrior

BUNDLED = {
    "photo": "RGB photographs of any size",
    "brain": "128x128 grey brain MRI slices",
    "brain_small": "128x128 grey brain MRI slices, at a quarter of the cost",
    "digits": "32x32 grey handwritten digits",
    "brain_mixture": "64x64 grey brain MRI slices, a mixture of Gaussians in closed form",
    "digits_mixture": "32x32 grey handwritten digits, a mixture of Gaussians in closed form",
}


def bundled() -> dict[str, str]:
    """Names of the bundled priors, with a line on each."""
    return dict(BUNDLED)


def load_prior(name: str = "photo", *, weights: str | Path | None = None) -> EDMPrior | LowRankMixturePrior:
    """A prior by name, or from a file of weights written by `invdiff train`.

    name     one of `bundled()`
    weights  a `.safetensors` file to load instead of the bundled one, of a network or of a mixture

    Raises ValueError, in one line, for an unknown name and for a missing or damaged file.
    """
    if weights is not None:
        return _load(Path(weights))
    if name not in BUNDLED:
        raise ValueError(f"unknown prior {name!r}; bundled are {', '.join(BUNDLED)}; a file goes in weights=")
    return _load(Path(str(files("invdiff.priors"))) / "weights" / f"{name}.safetensors")


def _load(path: Path) -> EDMPrior | LowRankMixturePrior:
    return LowRankMixturePrior.load(path) if _kind(path) == KIND else EDMPrior.load(path)


def _kind(path: Path) -> str | None:
    """What the header calls itself; None for networks, and where it cannot be read: their loader says why."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("invdiff", "null"))
    except (SafetensorError, json.JSONDecodeError, OSError):
        return None
    return header.get("kind") if isinstance(header, Mapping) else None
