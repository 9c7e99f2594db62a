"""Rows of a batch: values, norms and products of each row, and shapes in words; copies of modules. Rows never mix."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def per_row(value: float | Tensor, like: Tensor) -> Tensor | float:
    """One value per row, (B,), shaped to multiply `like`, (B, ...), on its device; floats in its real precision.

    A float, and a tensor of another dimension, comes back as it is.
    """
    if isinstance(value, Tensor) and value.dim() == 1:
        dtype = like.real.dtype if value.is_floating_point() else value.dtype
        return value.to(like.device, dtype).reshape(-1, *[1] * (like.dim() - 1))
    return value


def sigma_per_row(sigma: float | Tensor, like: Tensor) -> Tensor:
    """Noise levels, one for all rows or one per row, (B,), as a tensor that multiplies `like`, (B, ...)."""
    sigma = torch.as_tensor(sigma, dtype=like.dtype if like.is_floating_point() else None, device=like.device)
    return sigma.reshape(-1, *[1] * (like.dim() - 1)) if sigma.dim() else sigma


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row, (B,)."""
    return (a * b).flatten(1).sum(1)


def row_norm(r: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, ...) -> (B,): rows never mix, and the gradient at r = 0 is 0."""
    return torch.linalg.vector_norm(r.flatten(1), dim=1)


def nonzero(norm: Tensor) -> Tensor:
    """A norm to divide by: 1 where it is 0, so that a zero direction stays zero."""
    return norm.where(norm != 0, 1)


def describe_shape(shape: tuple[int, ...]) -> str:
    """(3, 256, 128) as '3x256x128', for messages."""
    return "x".join(str(n) for n in shape) or "scalar"


def shallow_copy(module: Module) -> Module:
    """A copy that shares every tensor: `to` and attributes set on it or its parts leave the original as it is."""
    twin = copy.copy(module)
    # Parameters of its own on the same memory: `to` changes a parameter in place.
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for name, p in module._parameters.items()
    }
    twin._buffers = dict(module._buffers)
    twin._modules = {name: child if child is None else shallow_copy(child) for name, child in module._modules.items()}
    return twin
