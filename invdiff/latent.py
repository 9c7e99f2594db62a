"""Inverse problems in the space of a latent prior: samplers work on codes z, y = A(decode(z)) + noise.

The composed operator is nonlinear, and differentiable for every differentiable A, so that it takes a sampler for such
operators; with a linear codec it is as linear as A.
"""

from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor

from invdiff.operators import LinearOperator, Operator
from invdiff.operators.combine.composition import compose
from invdiff.posterior import Cost
from invdiff.priors import Codec, LinearCodec, Prior, as_prior
from invdiff.problem import InverseProblem

# Pixels of images decoded at once.
DECODED = 2**20


class Decoder(Operator):
    """A(z) = decode(z), codes to images."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, x: Tensor) -> Tensor:
        return self.codec.decode(x)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.codec.image_shape(image_shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.codec.code_shape(measurement_shape)

    def first_guess(self, y: Tensor) -> Tensor:
        return self.codec.encode(y)

    @classmethod
    def example(cls) -> tuple["Decoder", tuple[int, ...]]:
        codec, shape = LinearCodec.example()
        return cls(codec), shape


class LinearDecoder(Decoder, LinearOperator):
    """The decoder of a linear codec."""


def in_codes(operator: Operator, codec: Codec | None) -> Operator:
    """The operator that acts on codes; itself where there is no codec."""
    if codec is None:
        return operator
    return compose([(LinearDecoder if codec.linear else Decoder)(codec), operator])


class CodedProblem(InverseProblem):
    """A problem whose unknowns are codes.

    of_images  the same problem with images as unknowns: its operator, and `first_guess`
    codec      of the codes
    """

    def __init__(self, of_images: InverseProblem, codec: Codec) -> None:  # its parts were checked with `of_images`
        self.of_images, self._codec = of_images, codec
        self.operator, self.noise, self.y = in_codes(of_images.operator, codec), of_images.noise, of_images.y
        self.image_shape = codec.code_shape(of_images.image_shape)

    @property
    def codec(self) -> Codec:
        return self._codec

    @cached_property
    def first_guess(self) -> Tensor | None:
        """Codes of the first guess of images."""
        guess = self.of_images.first_guess
        with torch.no_grad():
            return None if guess is None else self.codec.encode(guess)

    def select(self, index: Tensor) -> Self:
        return type(self)(self.of_images.select(index), self.codec)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.of_images.to(device), self.codec.to(device))


def posed(problem: InverseProblem, prior: Prior) -> tuple[InverseProblem, Prior]:
    """What a sampler works on: problem and prior of codes for a latent prior, else both as they are.

    Raises ValueError where images of the problem have no codes.
    """
    if prior.codec is None:
        return problem, prior
    return CodedProblem(problem, prior.codec), prior.diffusion


@torch.no_grad()
def decoded(codes: Tensor, codec: Codec) -> Tensor:
    """Images (..., C, H, W) of codes (..., c, h, w), few at a time."""
    channels, height, width = codec.image_shape(tuple(codes.shape[-3:]))
    at_once = max(1, DECODED // (channels * height * width))
    images = torch.cat([codec.decode(part) for part in codes.flatten(0, -4).split(at_once)])
    return images.unflatten(0, codes.shape[:-3])


def coded(problem: InverseProblem) -> CodedProblem:
    """The problem as one of codes, for samplers that declare `Needs(codec=True)`."""
    return cast(CodedProblem, problem)


def images_of(x: Tensor, prior: Any, cost: Cost) -> Tensor:
    """What a sampler has left of its particles, (..., C, H, W) on the CPU, as images; codes are decoded and counted."""
    codec = as_prior(prior).codec
    if codec is None:
        return x
    cost.decodes += x[..., 0, 0, 0].numel()
    where = next((tensor.device for tensor in [*codec.parameters(), *codec.buffers()]), x.device)
    return decoded(x.to(where), codec).cpu()
