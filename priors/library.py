"""The priors that ship with the package, and loading any other by its file."""

from importlib.resources import files
from pathlib import Path

from .edm import EDMPrior

BUNDLED = {
    "photo": "RGB photographs of any size",
    "brain": "128x128 grey brain MRI slices",
    "digits": "32x32 grey handwritten digits",
}


def bundled() -> dict[str, str]:
    """Names of the bundled priors, with a line on each."""
    return dict(BUNDLED)


def load_prior(name: str = "photo", *, weights: str | Path | None = None) -> EDMPrior:
    """A prior by name, or from a file of weights written by `invdiff train`.

    name     one of `bundled()`
    weights  a `.safetensors` file to load instead of the bundled one

    Raises ValueError, in one line, for an unknown name and for a missing or damaged file.
    """
    if weights is not None:
        return EDMPrior.load(weights)
    if name not in BUNDLED:
        raise ValueError(f"unknown prior {name!r}; bundled are {', '.join(BUNDLED)}; a file goes in weights=")
    return EDMPrior.load(Path(str(files("invdiff.priors"))) / "weights" / f"{name}.safetensors")
