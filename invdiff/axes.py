"""Measurements with the axes that they lack, and the problem that they state."""

import logging
from typing import Any

import torch
from torch import Tensor

from invdiff.checks import check_callable
from invdiff.operators import Noise, Operator, as_operator
from invdiff.operators.core.base import kind_of_measurement
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, as_measurement, as_noise
from invdiff.shapes import describe_shape

log = logging.getLogger("invdiff")


def problem_of(
    y: Any, operator: Any, noise: Noise | float, prior: Prior, image_shape: tuple[int, ...] | None = None
) -> InverseProblem:
    """The problem of measurements (B, ...) on the CPU, with the axes that y lacks where they are clear.

    Arguments and errors as of `invdiff.reconstruct`. An operator of the user's own is tried.
    """
    likelihood, y = as_noise(noise), as_measurement(y).cpu()
    operator = as_operator(operator, image_shape=image_shape or prior.shape)
    if image_shape is None:
        y = with_axes(y, operator, prior)
        if operator.image_shape(tuple(y.shape[1:])) is None:
            image_shape = prior.shape
        problem = InverseProblem(operator, likelihood, y, image_shape=image_shape)
        check_callable(operator, prior, problem.image_shape)
        return problem
    check_callable(operator, prior, image_shape)
    scene = operator.image_shape(tuple(y.shape[1:]))
    if scene is not None and operator.frame(torch.empty(scene, device="meta")).shape == image_shape:
        image_shape = scene  # the truth may be that of the frame
    return InverseProblem(operator, likelihood, y, image_shape=image_shape)


def with_axes(y: Tensor, operator: Operator, prior: Prior) -> Tensor:
    """Measurements (B, ...), with the axis for images, and that for the channel of a grey image, where y has none.

    Arrays of pictures with channels last are moved. An operator of the user's own is tried where the prior tells the
    size of the images.
    """
    if prior.shape is None:  # measurements that are shaped like images
        if y.dim() not in (2, 3, 4):
            raise ValueError(
                f"the measurement is {describe_shape(tuple(y.shape))}; with a prior for images of any size it must be "
                "(H, W), (C, H, W) or (B, C, H, W); give image_shape=(C, H, W) for measurements of other shapes"
            )
        return _channels_first(y.reshape(*[1] * (4 - y.dim()), *y.shape), operator, prior)
    reason = operator.mismatch(prior.shape)
    if reason is not None:
        raise ValueError(reason)
    check_callable(operator, prior, prior.shape)
    expected, _ = kind_of_measurement(operator, prior.shape)
    readings = [y, y[None], y[:, None], y[None, None]] if y.dim() else []
    fitting = [reading for reading in readings if tuple(reading.shape[1:]) == expected]
    if not fitting and len(expected) == 3:
        moved = [reading.movedim(-1, 1) for reading in readings if reading.dim() == 4]
        fitting = [reading.contiguous() for reading in moved if tuple(reading.shape[1:]) == expected]
        if fitting:
            log.info(_MOVED, describe_shape(tuple(y.shape)), describe_shape(expected))
    if not fitting:
        turned = any(tuple(reading.mT.shape[1:]) == expected for reading in readings if reading.dim() > 2)
        swapped = "; its last two axes the other way round it fits: give np.swapaxes(y, -1, -2)" if turned else ""
        raise ValueError(
            f"the measurement is {describe_shape(tuple(y.shape))}; this operator measures {describe_shape(expected)} "
            f"from the prior's {describe_shape(prior.shape)} images, with or without an axis for several in front"
            f"{swapped}"
        )
    return fitting[0]


_MOVED = "y is %s, channels last; it is read as %s, channels first"


def _channels_first(y: Tensor, operator: Operator, prior: Prior) -> Tensor:
    """Image-like measurements (B, C, H, W), from (B, H, W, C) where the prior fits only these."""
    moved = y.movedim(-1, 1)
    for reading in (y, moved):
        found = operator.image_shape(tuple(reading.shape[1:]))
        if prior.channels is None or found is None or found[0] == prior.channels:
            break
    else:
        return y
    if reading is moved:
        log.info(_MOVED, describe_shape(tuple(y.shape[1:])), describe_shape(tuple(moved.shape[1:])))
    return reading.contiguous()
