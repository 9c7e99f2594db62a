"""A prior behind the interface of `deepinv`; in a file of its own, for a class of deepinv's needs deepinv at import.

It takes any `Prior` and does not import that class, which imports this file."""

from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor


class PriorDenoiser(Denoiser):
    """`denoiser(x, sigma)` on images in [0, 1], or in [-1, 1] with `input_in_minus_one_one`, as deepinv's networks."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: float | Tensor, *, input_in_minus_one_one: bool = False, **_: Any) -> Tensor:
        """x (B, C, H, W); sigma a float, or a tensor with one value or one per image, in the units of x."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
        if len(level) not in (1, len(x)):
            raise ValueError(f"sigma must be one value or one per image, got {len(level)} for {len(x)} images")
        low, high = (-1.0, 1.0) if input_in_minus_one_one else (0.0, 1.0)
        to_low, to_high = self.prior.value_range
        zoom = (to_high - to_low) / (high - low)
        x0 = self.prior.denoise(to_low + zoom * (x - low), zoom * level.expand(len(x)))
        return low + (x0 - to_low) / zoom
