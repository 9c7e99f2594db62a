"""Autograd for linear maps that it cannot look into: the backward pass is the transpose that is known."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def linear_map(x: Tensor, apply: Map, transpose: Map) -> Tensor:
    """apply(x), differentiable as often as one likes.

    apply      a real-linear map of images to measurements, real or complex
    transpose  its transpose; for complex measurements the real part of A^H y
    """
    return _LinearMap.apply(x, apply, transpose) if torch.is_grad_enabled() and x.requires_grad else apply(x)


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Map, transpose: Map) -> Tensor:
        ctx.maps = apply, transpose
        return apply(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.maps
        return _LinearMap.apply(gradient, transpose, apply), None, None
