"""A prior from a Python file, without a package or a configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.user_module import bind, named_in

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
    where, name, thing = named_in(file, "callable: give file=my_network.py:denoise")
    found = bind(thing, parameters or {}, f"{where}: {name}", inputs=2)
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
