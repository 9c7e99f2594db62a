"""A prior from a Python file, without a package or a configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.user_module import bind, load_module

from . import Prior, as_prior


def prior_from_file(
    file: str | Path | None,
    *,
    parameters: Mapping[str, Any] | None = None,
    shape: Sequence[int] | None = None,
    channels: int | None = None,
    sigma_range: Sequence[float] | None = None,
    value_range: Sequence[float] = (0.0, 1.0),
) -> Prior:
    """The prior of this name in a Python file; the file is executed.

    file        with the name behind a colon, `my_network.py:denoise`: a `Prior`, a `deepinv` denoiser, a function
                (x, sigma) -> clean images, or a class of one of them, made with `parameters`
    parameters  by name: of the class, or of the function, behind its images and levels
    shape ...   of a denoiser or a function, as in `as_prior`; not for a `Prior`, which declares them

    Raises ValueError if the file holds no such prior.
    """
    path, _, name = str(file or "").rpartition(":")
    if not path.endswith(".py") or not name:
        raise ValueError(f"callable: give file=, a Python file and a name in it, my_network.py:denoise, got {file}")
    where = Path(path).expanduser()
    if not where.is_file():
        raise ValueError(f"callable: no such file: {where} (looked for in {where.absolute().parent})")
    module = load_module(where)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == where.stem]
        raise ValueError(f"{where} has no {name!r}; it defines {', '.join(known) or 'nothing'}")
    found = bind(getattr(module, name), parameters or {}, f"{where}: {name}", inputs=2)
    try:
        return as_prior(
            found,
            shape=None if shape is None else tuple(shape),
            channels=channels,
            sigma_range=None if sigma_range is None else (sigma_range[0], sigma_range[1]),
            value_range=(value_range[0], value_range[1]),
        )
    except TypeError as error:
        raise ValueError(f"{where}: {name}: {error}") from error
