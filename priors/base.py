"""The `Prior` contract: a denoiser at every noise level.

A prior is a denoiser at every noise level, D(x, sigma) = E[x0 | x0 + sigma * eps = x], in image units and in the
variance-exploding convention. Everything else (score, guidance, sampling) follows from it. Networks trained in another
range or parametrisation are wrapped in their own file, out of sight of samplers.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from .codec import Codec


class Prior(nn.Module, ABC):
    """Base class of every prior.

    shape           (C, H, W) of the images, None for any size
    channels        image channels, None for any number; implied by `shape`
    sigma_range     noise levels of its training, in image units
    value_range     range of clean images in image units, (0, 1) for pictures; for clipping and divergence alone
    differentiable  whether autograd can differentiate `denoise`
    step_variance   whether the network predicts the variance of DDPM's steps, `denoise_and_share`
    bounded_error   whether rounding inside the network stays small in the clean estimate at every noise level
    unit            see there; it may be set
    network_calls   forwards of the network in one call of `denoise`: 2 with classifier-free guidance
    note            what a run says about the prior, one sentence; None: nothing
    weights_hash    of the file that it was loaded from, None for others: tensors that are computed from a file differ
                    in their last digits between machines
    """

    shape: tuple[int, ...] | None = None
    channels: int | None = None
    sigma_range: tuple[float, float] = (0.002, 80.0)
    value_range: tuple[float, float] = (0.0, 1.0)
    differentiable: bool = True
    step_variance: bool = False
    bounded_error: bool = True
    network_calls: int = 1
    note: str | None = None
    weights_hash: str | None = None

    @cached_property
    def unit(self) -> float:
        """Image units per unit of the network's normalised images, [-1, 1] for pictures: half of the value range."""
        low, high = self.value_range
        return (high - low) / 2

    @property
    def codec(self) -> Codec | None:
        """Of a latent prior, which diffuses codes of images; None: images themselves diffuse."""
        return None

    @property
    def diffusion(self) -> "Prior":
        """The prior of what diffuses: of the codes of a latent prior, else itself."""
        return self

    def diffusion_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what diffuses for images (C, H, W). Raises ValueError for images without codes."""
        return tuple(image_shape) if self.codec is None else self.codec.code_shape(image_shape)

    @property
    def scale(self) -> float:
        """What a setting with a unit is multiplied by: settings of samplers are for pictures in [0, 1]."""
        return 2 * self.unit

    @property
    def centre(self) -> Tensor:
        """Mean of the images, broadcastable to (C, H, W); where it is not known, the middle of the value range."""
        return torch.tensor(sum(self.value_range) / 2)

    def start(self, sigma: float | Tensor, noise: Tensor) -> Tensor:
        """Where sampling starts: images of the highest noise level, of which `centre` is all that is known.

        noise  standard normal numbers, (..., C, H, W)
        """
        return self.centre.to(noise) + sigma * noise

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x_sigma = x].

        x      (B, *shape) noisy images, image units
        sigma  noise level in image units, a float or one per image, (B,)

        Returns the estimate of the clean images, (B, *shape).
        """

    def denoise_and_share(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """`denoise`, and the share v of the larger variance in DDPM's step from sigma to s < sigma, shaped like x.

        The step has the variance a^v b^(1 - v), b = s^2 (sigma^2 - s^2) / sigma^2 that of known clean images and
        a = (sigma^2 - s^2) (1 + (s / unit)^2) / (1 + (sigma / unit)^2) (improved DDPM, arXiv:2102.09672, equation 15).

        Raises TypeError unless `step_variance`.
        """
        raise TypeError(f"{type(self).__name__} predicts no variance of steps, see step_variance")

    @property
    def embedding(self) -> Tensor | None:
        """(L, E) embedding of the text on which the network is conditioned; None: it takes no text."""
        return None

    def denoise_with(self, x: Tensor, sigma: float | Tensor, embedding: Tensor) -> Tensor:
        """`denoise` with another embedding of the text for each row, (B, L, E), which autograd can differentiate.

        Raises TypeError without text.
        """
        raise TypeError(f"{type(self).__name__} takes no text, so there is no embedding")

    def forward(self, x: Tensor, sigma: float | Tensor, *unused: Any) -> Tensor:
        """`prior(x, sigma)`: the calling convention of a `deepinv` denoiser."""
        return self.denoise(x, sigma)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of log p_sigma at x, by Tweedie's formula; shapes as in `denoise`."""
        return (self.denoise(x, sigma) - x) / sigma_per_row(sigma, x) ** 2

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        """None if images of this (C, H, W) fit the prior, otherwise the reason why not."""
        if self.shape is not None and tuple(shape) != tuple(self.shape):
            return f"this prior expects images of shape {tuple(self.shape)}, got {tuple(shape)}"
        if self.channels is not None and shape[0] != self.channels:
            return f"this prior expects {self.channels} channel{'s' if self.channels > 1 else ''}, got {shape[0]}"
        return None

    def checkpoint_gradients(self, on: bool) -> None:
        """Switch gradient checkpointing, which takes less memory and more time in VJPs, in all parts that support it.

        Raises ValueError if it is switched on and no part supports it.
        """
        parts = [
            module for module in self.modules() if hasattr(type(module), "checkpoint_gradients") and module is not self
        ]
        if on and not parts:
            raise ValueError(f"compute: {type(self).__name__} does not support checkpoint=true, set it to false")
        for part in parts:
            part.checkpoint_gradients = on  # type: ignore[assignment]

    def to_deepinv(self) -> Any:
        """This prior as a `deepinv.models.Denoiser`, for `deepinv`'s own algorithms: images and sigma as in [0, 1]."""
        from .deepinv_denoiser import PriorDenoiser  # deepinv is slow to import

        return PriorDenoiser(self)

    @classmethod
    def example(cls) -> "Prior":
        """A small instance for the conformance tests."""
        raise NotImplementedError(f"{cls.__name__} defines no example()")

    @classmethod
    def variants(cls) -> dict[str, "Prior"]:
        """Small instances of all modes by name, for the conformance tests."""
        return {"example": cls.example()}
