"""Rows of a batch: their values, norms, products and gradients, which never mix; shapes in words; copies of modules."""

import copy
from collections.abc import Callable
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@overload
def per_row(value: Tensor, like: Tensor) -> Tensor: ...


@overload
def per_row(value: float, like: Tensor) -> float: ...


@overload
def per_row(value: Tensor | float, like: Tensor) -> Tensor | float: ...


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
    """Inner product of each row, (B,), of complex numbers as of their two parts."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
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


def row_vjp(
    function: Callable[[Tensor], Tensor], x: Tensor, *, again: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """function(x) without its graph, and v -> J^T v, the product with its transposed Jacobian at x.

    again  allow more than one product, at the price of a graph that lives until the next call
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = function(x)

    def product(v: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value, x, v, retain_graph=again)
        return gradient

    return value.detach(), product


def row_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of function(x), one number per row (B,), with respect to each row; shaped like x."""
    value, product = row_vjp(function, x)
    return product(torch.ones_like(value))


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
