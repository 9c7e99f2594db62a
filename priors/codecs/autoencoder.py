"""Autoencoders of `diffusers` as codecs.

Paper      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv:2112.10752.
Form       Codes are (E(image) - shift) scale, images on [-1, 1]: AutoencoderKL (the mean of its law) or VQModel, whose
           quantisation passes gradients straight through. Where the configuration has mean and standard deviation of
           each channel (`latents_mean`, `latents_std`), these are in scale and shift.
Precision  that of the weights, float32 as they are loaded, and no autocast applies: decoders with `force_upcast`
           overflow in float16.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import BlockCodec

KINDS = ("AutoencoderKL", "VQModel")


class Autoencoder(BlockCodec):
    """An autoencoder of `diffusers`, with its `config`, which holds scale and shift of codes.

    value_range  of the images here, which the network takes on [-1, 1]
    """

    code_scale: Tensor
    code_shift: Tensor

    def __init__(self, network: nn.Module, *, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        low, high = value_range
        if not low < high:
            raise ValueError(f"image_range must be (low, high) with low < high, got ({low}, {high})")
        config: Mapping[str, Any] = network.config  # type: ignore[assignment]  # set by diffusers
        self.network = network.eval().requires_grad_(False)
        self.value_range = (float(low), float(high))
        self.channels, self.code_channels = int(config["in_channels"]), int(config["latent_channels"])
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        scale, shift = torch.tensor(float(config["scaling_factor"])), torch.tensor(config.get("shift_factor") or 0.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            scale, shift = scale / torch.tensor(std).reshape(-1, 1, 1), torch.tensor(mean).reshape(-1, 1, 1)
        self.register_buffer("code_scale", scale, persistent=False)
        self.register_buffer("code_shift", shift, persistent=False)

    @property
    def checkpoint_gradients(self) -> bool:
        return bool(getattr(self.network, "is_gradient_checkpointing", False))

    @checkpoint_gradients.setter
    def checkpoint_gradients(self, on: bool) -> None:
        if on and not getattr(self.network, "_supports_gradient_checkpointing", False):
            raise ValueError(
                f"compute: {type(self.network).__name__} does not support checkpoint=true, set it to false"
            )
        if on != self.checkpoint_gradients:
            switch = self.network.enable_gradient_checkpointing if on else self.network.disable_gradient_checkpointing
            switch()  # type: ignore[operator]

    def encode(self, images: Tensor) -> Tensor:
        low, high = self.value_range
        with torch.autocast(images.device.type, enabled=False):
            found = self.network.encode(2 * (images - low) / (high - low) - 1)  # type: ignore[operator]
        codes = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (codes - self.code_shift) * self.code_scale

    def decode(self, codes: Tensor) -> Tensor:
        low, high = self.value_range
        with torch.autocast(codes.device.type, enabled=False):
            images = self.network.decode(codes / self.code_scale + self.code_shift).sample  # type: ignore[operator]
        return low + (high - low) * (images + 1) / 2

    @classmethod
    def example(cls) -> tuple["Autoencoder", tuple[int, ...]]:
        """With a stand-in, which works without diffusers."""
        return cls(_Unshuffled()), (4, 8, 8)


class _Unshuffled(nn.Module):
    """The interface of an autoencoder used here: four pixels of a grey image are a code."""

    config = {  # noqa: RUF012, as in diffusers
        "in_channels": 1,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "block_out_channels": (4, 4),
    }

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=nn.functional.pixel_unshuffle(x, 2))

    def decode(self, codes: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=nn.functional.pixel_shuffle(codes, 2))
