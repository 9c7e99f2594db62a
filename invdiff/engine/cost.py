"""What a run costs, counted where it happens: stand-ins around the prior and the operator that meter every call."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.operators import Operator
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.priors.precision import autocast


class _CountBackward(torch.autograd.Function):
    """The identity; its backward pass tells that a product with the Jacobian of what lies before it was taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Callable[[], None]) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return gradient, None


class MeteredPrior(Prior):
    """A prior that counts its calls and runs its network under a precision."""

    def __init__(self, prior: Prior, cost: Cost, *, precision: str = "auto", compile: bool = False) -> None:
        super().__init__()
        self._prior, self._cost, self._precision = prior, cost, precision
        self._denoise = torch.compile(prior.denoise) if compile else prior.denoise
        self.shape, self.channels = prior.shape, prior.channels
        self.sigma_range, self.value_range = prior.sigma_range, prior.value_range
        self.differentiable = prior.differentiable

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        rows = x.shape[0]
        self._cost.forwards += rows
        with autocast(self._precision, x.device):
            x0 = self._denoise(x, sigma)
        return _CountBackward.apply(x0, lambda: self._count_vjp(rows)) if x0.requires_grad else x0

    def _count_vjp(self, rows: int) -> None:
        self._cost.vjps += rows


def metered_operator(operator: Operator, cost: Cost) -> Operator:
    """A shallow copy of an operator that counts its calls, those that its own methods make included.

    A closed-form `solve` or `pinv` counts as one call; an iterative one as the calls it makes. What `select` makes of
    the copy is metered too.
    """
    plain = type(operator)

    def forward(self: Operator, x: Tensor) -> Tensor:
        rows = x.shape[0]
        cost.operator_calls += rows
        y = plain.forward(self, x)
        return _CountBackward.apply(y, lambda: _add_calls(cost, rows)) if y.requires_grad else y

    def counted_once(name: str) -> Callable:
        method = getattr(plain, name)

        def call(self: Operator, argument: Tensor, *rest: Any, **named: Any) -> Tensor:
            before = cost.operator_calls
            result = method(self, argument, *rest, **named)
            if cost.operator_calls == before:
                _add_calls(cost, argument.shape[0])
            return result

        return call

    names = [name for name in ("vjp", "adjoint", "pinv", "solve") if hasattr(plain, name)]
    methods = {"forward": forward, **{name: counted_once(name) for name in names}}
    metered = copy.copy(operator)
    # A class and not methods of the instance: those would stay bound to this copy in the copies that `select` makes.
    metered.__class__ = type(plain.__name__, (plain,), {"__module__": plain.__module__, **methods})
    return metered


def _add_calls(cost: Cost, rows: int) -> None:
    cost.operator_calls += rows
