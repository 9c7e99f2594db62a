"""The contract of codecs: images to codes, on which a latent prior diffuses, and back."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """Images (B, C, H, W) to codes (B, c, h, w) and back, in float32 or the type of its arguments.

    channels     of images
    value_range  of images, in image units
    linear       decode(a z + b w) = a decode(z) + b decode(w): Gaussian codes have exact posteriors
    """

    channels: int
    value_range: tuple[float, float] = (0.0, 1.0)
    linear: bool = False

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Codes of images; of an encoder with a law the mean."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes, differentiable and not clamped, so that gradients are not zero."""

    @abstractmethod
    def code_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(c, h, w) of the codes of images (C, H, W). Raises ValueError for images that have none."""

    @abstractmethod
    def image_shape(self, code_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) of the images of codes (c, h, w)."""

    @classmethod
    @abstractmethod
    def example(cls) -> tuple["Codec", tuple[int, ...]]:
        """A small instance and the shape of its codes, for the tests."""


class BlockCodec(Codec):
    """A codec of square blocks: each code has `code_channels` channels for `factor` x `factor` pixels."""

    code_channels: int
    factor: int

    def code_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *sides = image_shape
        if channels != self.channels:
            raise ValueError(f"codec: images must have {self.channels} channel(s), got {channels}")
        if any(side % self.factor for side in sides):
            fitting = [side - side % self.factor for side in sides]
            raise ValueError(
                f"codec: the sides of images must be multiples of {self.factor}, got {sides[0]}x{sides[1]}; "
                f"{fitting[0]}x{fitting[1]} fits"
            )
        return (self.code_channels, *(side // self.factor for side in sides))

    def image_shape(self, code_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.channels, *(side * self.factor for side in code_shape[1:]))
