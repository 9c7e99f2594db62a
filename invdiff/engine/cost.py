"""What a run costs, counted where it happens: stand-ins around prior, codec and operator that meter every call."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.operators import Operator
from invdiff.posterior import Cost
from invdiff.priors import Codec, LinearCodec, Prior
from invdiff.priors.precision import autocast


class _CountBackward(torch.autograd.Function):
    """The identity; its backward pass counts a product with the Jacobian of the calls before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: Callable[[], None]) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return gradient, None


class MeteredPrior(Prior):
    """A prior that counts its calls and runs its network under the precision of the cost."""

    def __init__(self, prior: Prior, cost: Cost, *, compile: bool = False) -> None:
        super().__init__()
        self._prior, self._cost = prior, cost
        self._denoise = torch.compile(prior.denoise) if compile else prior.denoise
        # A network computes in the type of its weights, a closed form in that of the images.
        self._dtype = next((p.dtype for p in prior.parameters() if p.is_floating_point()), None)
        self.shape, self.channels = prior.shape, prior.channels
        self.sigma_range, self.value_range = prior.sigma_range, prior.value_range
        self.differentiable, self.unit, self.step_variance = prior.differentiable, prior.unit, prior.step_variance
        self.network_calls = prior.network_calls

    @property
    def centre(self) -> Tensor:
        return self._prior.centre

    @property
    def embedding(self) -> Tensor | None:
        return self._prior.embedding

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self._metered(x, lambda own: (self._denoise(own, sigma), own))[0]

    def denoise_and_share(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        return self._metered(x, lambda own: self._prior.denoise_and_share(own, sigma))

    def denoise_with(self, x: Tensor, sigma: float | Tensor, embedding: Tensor) -> Tensor:
        embedding = embedding.to(self._dtype or embedding.dtype)
        return self._metered(x, lambda own: (self._prior.denoise_with(own, sigma, embedding), own))[0]

    def _metered(self, x: Tensor, call: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The call on x in the type of the network, its forwards counted; its first result carries VJPs."""
        rows = x.shape[0] * self.network_calls
        self._cost.forwards += rows
        with autocast(self._cost.precision, x.device):
            x0, more = (result.to(x.dtype) for result in call(x.to(self._dtype or x.dtype)))
        return (_CountBackward.apply(x0, lambda: self._count_vjp(rows)) if x0.requires_grad else x0), more

    def _count_vjp(self, rows: int) -> None:
        self._cost.vjps += rows


class MeteredCodec(Codec):
    """A codec that counts its calls and computes in the type of its weights."""

    def __init__(self, codec: Codec, cost: Cost) -> None:
        super().__init__()
        self._codec, self._cost = codec, cost
        self._dtype = next((p.dtype for p in codec.parameters() if p.is_floating_point()), None)
        self.channels, self.value_range, self.linear = codec.channels, codec.value_range, codec.linear

    def encode(self, images: Tensor) -> Tensor:
        self._cost.encodes += len(images)
        return self._codec.encode(images.to(self._dtype or images.dtype)).to(images.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        rows = len(codes)
        self._cost.decodes += rows
        images = self._codec.decode(codes.to(self._dtype or codes.dtype)).to(codes.dtype)
        return _CountBackward.apply(images, lambda: self._count_vjp(rows)) if images.requires_grad else images

    def _count_vjp(self, rows: int) -> None:
        self._cost.decode_vjps += rows

    def code_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._codec.code_shape(image_shape)

    def image_shape(self, code_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._codec.image_shape(code_shape)

    @classmethod
    def example(cls) -> tuple["MeteredCodec", tuple[int, ...]]:
        codec, shape = LinearCodec.example()
        return cls(codec, Cost()), shape


def metered_operator(operator: Operator, cost: Cost) -> Operator:
    """A shallow copy of an operator that counts its calls, those of its own methods included.

    A closed-form `solve` or `pinv` counts as one call; an iterative one as the calls it makes. What `select` returns is
    metered too.
    """
    metered, plain = copy.copy(operator), type(operator)

    def count(rows: int) -> None:
        cost.operator_calls += rows

    def forward(x: Tensor) -> Tensor:
        count(len(x))
        y = plain.forward(metered, x)
        return _CountBackward.apply(y, lambda: count(len(x))) if y.requires_grad else y

    def counted_once(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(argument: Tensor, *rest: Any, **named: Any) -> Tensor:
            before = cost.operator_calls
            result = method(metered, argument, *rest, **named)
            if cost.operator_calls == before:
                count(len(argument))
            return result

        return call

    # On the instance: its own methods call each other through these.
    names = [name for name in ("vjp", "adjoint", "pinv", "solve") if hasattr(plain, name)]
    methods = {"forward": forward, **{name: counted_once(getattr(plain, name)) for name in names}}
    metered.__dict__.update(methods, select=lambda index: metered_operator(operator.select(index), cost))
    return metered
