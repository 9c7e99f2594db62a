"""A function of images and their noise level as a prior."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from .base import Prior


class CallablePrior(Prior):
    """Any function (x, sigma) -> clean images: x (B, C, H, W) in image units, sigma (B,) in the same.

    function        a module is put in evaluation mode and its parameters are frozen
    shape           (C, H, W) of the images, None for any size
    channels        where `shape` is None: number of channels, None for any
    sigma_range     noise levels of its training; other levels are clamped to it
    value_range     range of clean images
    differentiable  autograd can differentiate it
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        sigma_range: tuple[float, float] = (0.002, 80.0),
        value_range: tuple[float, float] = (0.0, 1.0),
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= sigma_range[0] < sigma_range[1]:
            raise ValueError(f"sigma_range must be (low, high) with 0 <= low < high, got {tuple(sigma_range)}")
        if not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must be (low, high) with low < high, got {tuple(value_range)}")
        self.function = function
        self.shape = None if shape is None else tuple(shape)
        self.channels = channels if self.shape is None else self.shape[0]
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.differentiable = differentiable
        self.eval().requires_grad_(False)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            return self._checked(self.function(x, self.levels(x, sigma)), x)

    def levels(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Noise levels passed to the function, one per row, (B,), clamped to `sigma_range`."""
        return sigma_per_row(sigma, x).reshape(-1).expand(len(x)).clamp(*self.sigma_range)

    def _checked(self, x0: Any, x: Tensor) -> Tensor:
        """The output of the function, if its shape is that of the images."""
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            given = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ValueError(
                f"the denoiser {name} must return clean images of shape {tuple(x.shape)}, got {given}; wrap a network "
                "that predicts noise, or a variance as well, in ParametrisedPrior"
            )
        return x0.to(x.dtype)

    @classmethod
    def example(cls) -> "CallablePrior":
        return cls(_shrink)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        if cls is not CallablePrior:  # a subclass has arguments of its own
            return super().variants()
        return {
            "example": cls.example(),
            "fixed shape": cls(_shrink, shape=(2, 8, 9), value_range=(-1.0, 2.0)),
            "not differentiable": cls(_shrink, channels=1, differentiable=False),
        }


def _shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of independent pixels of mean 1/2 and standard deviation 1/4."""
    return 0.5 + (x - 0.5) / (1 + 16 * sigma_per_row(sigma, x) ** 2)
