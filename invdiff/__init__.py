"""Posterior sampling for inverse problems with diffusion priors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff._version import __version__


class _Checkout:
    """Finds operators/, priors/ and configs/ beside this folder, as in a checkout; installed, they lie inside it."""

    rooms = tuple(f"{__name__}.{room}" for room in ("operators", "priors", "configs"))

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in cls.rooms:
            return None
        from importlib.util import spec_from_file_location

        folder = Path(__file__).resolve().parents[1] / name.rpartition(".")[2]
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if not (Path(__file__).parent / "operators").exists():
    sys.meta_path.append(_Checkout)

if TYPE_CHECKING:
    from invdiff.engine.driver import Compute, Interrupted
    from invdiff.job import reconstruct
    from invdiff.posterior import Posterior
    from invdiff.priors import load_prior
    from invdiff.problem import InverseProblem, Unsupported, simulate
    from invdiff.reconstruction import Reconstruction
else:
    # Imported at their first use: the command handles Ctrl-C before torch is imported.
    _HOMES = {
        "Compute": "engine.driver",
        "Interrupted": "engine.driver",
        "InverseProblem": "problem",
        "Posterior": "posterior",
        "Reconstruction": "reconstruction",
        "Unsupported": "problem",
        "load_prior": "priors",
        "reconstruct": "job",
        "simulate": "problem",
    }

    def __getattr__(name: str) -> Any:
        from importlib import import_module
        from importlib.util import find_spec

        if name in _HOMES:
            found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return found
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:  # `invdiff.operators.MRI`
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Compute",
    "Interrupted",
    "InverseProblem",
    "Posterior",
    "Reconstruction",
    "Unsupported",
    "__version__",
    "load_prior",
    "reconstruct",
    "simulate",
]
