"""A linear operator that stands for a nonlinear one near an image, with products by autograd."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from invdiff.operators import LinearOperator, Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.shapes import row_dot

Map = Callable[[Tensor], Tensor]


def twice_differentiable(problem: InverseProblem, prior: Prior) -> bool:
    """Whether the products of `linearised` are those of the operator: of a linear one always.

    A VJP of the user's that leaves autograd, as by numpy, gives none or a part of them. They are compared with a
    difference of A, at one image about the centre of the prior: 3 calls, a VJP and a product.
    """
    if problem.operator.linear:
        return True
    like = problem.y.real.new_empty(1, *problem.image_shape)
    rng = torch.Generator().manual_seed(0)
    x, v = (torch.randn(like.shape, generator=rng).to(like) for _ in range(2))
    x, v = prior.start(0.2 * prior.scale, x), 1e-3 * prior.scale * v
    operator = problem.operator.select(torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        w = (operator(x + v) - operator(x - v)) / 2
    try:
        _, forward, adjoint = linearised(operator, x)
        pushed = row_dot(w, forward(v))
    except RuntimeError:  # autograd's, where nothing of A or of its VJP is in the graph
        return False
    pulled = row_dot(adjoint(w), v)
    return bool((pushed - pulled).abs() <= 1e-2 * pulled.abs())


def linearised(operator: Operator, x: Tensor, shifts: Sequence[Tensor] = ()) -> tuple[Tensor, Map, Map]:
    """A(x), and the products with the Jacobian of A at x and its transpose; of a linear A itself and its adjoint.

    shifts  of x, (R, C, H, W) each, over which value and Jacobian of a nonlinear A are averaged; none: those at x
    """
    if operator.linear:
        return operator(x), operator, cast(LinearOperator, operator).adjoint
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        values = [operator(x + shift) for shift in shifts] or [operator(x)]
        value = torch.stack(values).mean(0)
        weights = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, x, weights, create_graph=True)  # linear in the weights

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, weights, v, retain_graph=True)[0]

    def adjoint(w: Tensor) -> Tensor:
        return torch.autograd.grad(value, x, w, retain_graph=True)[0]

    return value.detach(), forward, adjoint
