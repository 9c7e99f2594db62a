"""Denoisers that were not written for invdiff, as priors: any function of images and their noise level.

Networks that predict another quantity than the clean image are in `parametrised.py`, denoisers of `deepinv` in
`deepinv_prior.py`, folders of `diffusers` in `diffusers_prior.py`.
"""

import sys
from typing import Any

from .base import Prior
from .callable import CallablePrior


def as_prior(
    obj: Any,
    *,
    shape: tuple[int, ...] | None = None,
    channels: int | None = None,
    sigma_range: tuple[float, float] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Prior:
    """Any denoiser as a `Prior`.

    obj          a `Prior` (returned unchanged), a `deepinv` denoiser (the result of `to_deepinv` becomes its prior
                 again), or a function (x, sigma) -> clean images in image units, with one sigma per image, (B,)
    shape ...    as in `CallablePrior` and `DeepinvPrior`; not for a `Prior`, which declares them

    Raises TypeError for anything else.
    """
    if isinstance(obj, Prior):
        if (shape, channels, sigma_range, tuple(value_range)) != (None, None, None, (0.0, 1.0)):
            raise TypeError(f"{type(obj).__name__} is a prior and declares its shape and ranges; give none here")
        return obj
    # A denoiser of deepinv exists only after an import of deepinv, which takes seconds.
    models = sys.modules.get("deepinv.models")
    if models is not None and isinstance(obj, models.Denoiser):
        from .deepinv_denoiser import PriorDenoiser
        from .networks.deepinv_prior import DeepinvPrior

        if isinstance(obj, PriorDenoiser):
            return as_prior(obj.prior, shape=shape, channels=channels, sigma_range=sigma_range, value_range=value_range)
        return DeepinvPrior(obj, shape=shape, channels=channels, sigma_range=sigma_range, value_range=value_range)
    if isinstance(obj, type) or not callable(obj):
        given = obj.__name__ if isinstance(obj, type) else type(obj).__name__
        raise TypeError(
            f"a prior must be an invdiff Prior, a deepinv Denoiser or a function (x, sigma) -> x0, got {given}"
            + ("; pass an instance" if isinstance(obj, type) else "")
        )
    levels = (0.002, 80.0) if sigma_range is None else sigma_range
    return CallablePrior(obj, shape=shape, channels=channels, sigma_range=levels, value_range=value_range)
