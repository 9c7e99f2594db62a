"""The noise of a measurement, estimated from itself, where it stands out from what the image leaves in y."""

import math

import numpy as np
import torch
from torch import Tensor

from invdiff.checks.level import outermost
from invdiff.estimate import PART, Level, finest, in_parts, level_of
from invdiff.operators import (
    CT,
    CircularBlur,
    Colorization,
    Composition,
    Denoising,
    GaussianBlur,
    Inpainting,
    Operator,
    SpaceVaryingBlur,
    SuperResolution,
)
from invdiff.operators.blur.blur import FramedBlur
from invdiff.operators.mri.kspace import CartesianSampling

PICTURES = (
    Denoising,
    Inpainting,
    Colorization,
    SuperResolution,
    FramedBlur,
    CircularBlur,
    GaussianBlur,
    SpaceVaryingBlur,
)
CORNERS = 0.6  # of half the height and width of k-space: beyond, little is left of an image
MOST_ERROR = 0.1  # relative standard error of an estimate that is worth having


def estimate_sigma(y: Tensor, operator: Operator) -> Level:
    """The standard deviation of the Gaussian noise of measurements (B, ...); of complex numbers, of the whole number.

    A picture shows it in its finest details, a sinogram in second differences along the detector, k-space in its
    corners, each in the calm parts. All of the batch have the same. Raises ValueError where y does not show it.
    """
    parts = _parts(y, operator)
    if parts is None:
        raise ValueError(f"no part of y of {type(operator).__name__} is known to hold noise alone")
    if not len(parts):
        raise ValueError("y holds too few neighbouring numbers to tell its noise")
    level = level_of(parts)
    if level.value == 0:
        raise ValueError("parts of y are constant, without noise; use noise=none for exact data")
    if not level.alone or level.error > MOST_ERROR * level.value:
        raise ValueError(f"no part of y is noise alone, of at most about {level.value:.2g}")
    return level


def _parts(y: Tensor, operator: Operator) -> np.ndarray | None:
    """Numbers that are noise alone where they are calm, (N, PART); None where none are known."""
    mask = operator.measured(tuple(y.shape[1:]))
    there = y.isfinite() if mask is None else mask.cpu() & y.isfinite()
    if isinstance(operator, CartesianSampling):
        if not operator.convention.kspace_centred:
            y, there = (torch.fft.fftshift(part, dim=(-2, -1)) for part in (y, there))
        corners = torch.cat([outermost(*row, CORNERS) for row in zip(y, there.expand_as(y), strict=True)])
        numbers = math.sqrt(2) * torch.view_as_real(corners).double().flatten().numpy()
        return numbers[: len(numbers) // PART * PART].reshape(-1, PART)
    if y.is_complex() or y.dim() < 3:
        return None
    values, kept = y.double().numpy(), (there & (y > y.min()) & (y < y.max())).numpy()  # elsewhere it may be clipped
    if isinstance(operator, CT):
        curved = (values[..., 2:, :] - 2 * values[..., 1:-1, :] + values[..., :-2, :]) / math.sqrt(6)
        return in_parts(curved, kept[..., 2:, :] & kept[..., 1:-1, :] & kept[..., :-2, :])
    steps = operator.operators if isinstance(operator, Composition) else [operator]
    if not all(isinstance(step, PICTURES) for step in steps):
        return None
    return in_parts(*finest(values, kept))
