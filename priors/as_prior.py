"""Ways in for denoisers that were not written for invdiff: any function of images and their noise level.

Networks that predict something else than the clean image are in `parametrised.py`, denoisers of `deepinv` in
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
    """Whatever the user has, as a `Prior`.

    obj          a `Prior` (returned as it is), a `deepinv` denoiser (one that a prior's `to_deepinv` gave is that prior
                 again), or a function (x, sigma) -> clean images in image units, with one sigma per image, (B,)
    shape ...    as in `CallablePrior` and `DeepinvPrior`; a `Prior` says these itself

    Raises TypeError for anything else.
    """
    if isinstance(obj, Prior):
        if (shape, channels, sigma_range, tuple(value_range)) != (None, None, None, (0.0, 1.0)):
            raise TypeError(f"{type(obj).__name__} is a prior and says itself what it knows; give no shape or ranges")
        return obj
    # A denoiser of deepinv can only exist once deepinv was imported; importing it here would cost seconds for nothing.
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
            f"a prior is an invdiff Prior, a deepinv Denoiser or a function (x, sigma) -> clean images, got {given}"
            + ("; make one of it first" if isinstance(obj, type) else "")
        )
    levels = (0.002, 80.0) if sigma_range is None else sigma_range
    return CallablePrior(obj, shape=shape, channels=channels, sigma_range=levels, value_range=value_range)
