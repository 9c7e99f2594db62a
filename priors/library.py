"""Loading priors by name: those that ship with the package and those of installed packages; or from a weights file."""

import hashlib
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path

from invdiff.plug_ins import offered

from .base import Prior
from .closed_form.low_rank import KIND, LowRankMixturePrior
from .codecs.latent import KIND as LATENT
from .codecs.latent import LatentPrior
from .networks.edm import EDMPrior
from .weights_file import weights_kind

BUNDLED = {
    "photo": "RGB photographs of any size",
    "brain": "128x128 grey brain MRI slices",
    "brain_small": "128x128 grey brain MRI slices, at a quarter of the cost",
    "brain_latent": "128x128 grey brain MRI slices in codes of 32x32, no finer than its codec",
    "digits": "32x32 grey handwritten digits",
    "brain_mixture": "64x64 grey brain MRI slices, a mixture of Gaussians in closed form",
    "digits_mixture": "32x32 grey handwritten digits, a mixture of Gaussians in closed form",
}


def bundled() -> dict[str, str]:
    """Names of the bundled priors, each with a description."""
    return dict(BUNDLED)


def registered() -> dict[str, EntryPoint]:
    """Priors of installed packages by name: entry points of the group `invdiff.priors`, callables without arguments."""
    return {point.name: point for point in offered("invdiff.priors")}


def load_prior(name: str = "photo", *, weights: str | Path | None = None) -> Prior:
    """A prior by name, or from a weights file of `invdiff train`.

    name     one of `bundled()` or `registered()`; a bundled one comes first
    weights  a `.safetensors` file to load instead, of a network or of a mixture

    Raises ValueError for an unknown name, for a file that is missing or damaged, and where a package gives no prior.
    """
    if weights is not None:
        return _load(Path(weights))
    if name in BUNDLED:
        return _load(Path(str(files("invdiff.priors"))) / "weights" / f"{name}.safetensors")
    others = registered()
    if name not in others:
        known = ", ".join([*BUNDLED, *sorted(others)])
        raise ValueError(f"unknown prior {name!r}; known are {known}; load a file by weights=")
    return _from_package(others[name])


def _load(path: Path) -> Prior:
    readers = {None: EDMPrior.load, KIND: LowRankMixturePrior.load, LATENT: LatentPrior.read}
    kind = weights_kind(path)
    if kind not in readers:
        raise ValueError(
            f"prior weights are of an unknown kind {str(kind)[:40]!r}: {path}; a newer invdiff may read them"
        )
    prior: Prior = readers[kind](path)
    prior.weights_hash = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return prior


def _from_package(point: EntryPoint) -> Prior:
    package = point.dist.name if point.dist is not None else point.module
    try:
        prior = point.load()()
    except Exception as error:  # code of others
        reason = " ".join(str(error).split())
        raise ValueError(f"prior {point.name} of {package} failed to load: {type(error).__name__}: {reason}") from error
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior {point.name} of {package}: {point.value} must return an invdiff Prior, got {type(prior).__name__}"
        )
    return prior
