"""The U-Net of DDPM in score_sde.

Paper       Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, arXiv:2006.11239.
Network     Written here under the names of score_sde's `models/ddpm.py`: one flat list of layers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ncsnpp_network import PixelAttention, PixelMix, sines


@dataclass(frozen=True)
class DDPMSpec:
    """Hyper-parameters of the network; `attention` holds levels, 0 the finest."""

    channels: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]

    @staticmethod
    def fits(weights: Mapping[str, Tensor]) -> bool:
        """Whether images are halved by a convolution alone, not by a block as in NCSN++."""
        return any(
            name.endswith(".Conv_0.weight")
            and weights[name].shape[-1] == 3
            and f"{name[:-13]}Conv_1.weight" not in weights
            for name in weights
        )

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "DDPMSpec":
        """From the names and shapes of the weights. KeyError, ValueError or IndexError for another network."""
        count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("all_modules."))
        kinds = [_kind(weights, place) for place in range(count)]
        resizes = [place for place, kind in enumerate(kinds) if kind == "resize"]
        down = resizes[: len(resizes) // 2]
        first = [3, *(place + 1 for place in down)]  # the block that opens each level on the way down
        width, channels = weights["all_modules.2.weight"].shape[:2]
        return cls(
            channels=channels,
            width=width,
            mults=tuple(weights[f"all_modules.{place}.Conv_1.weight"].shape[0] // width for place in first),
            blocks=kinds[: down[0]].count("block"),
            attention=tuple(level for level, place in enumerate(first) if kinds[place + 1] == "attention"),
        )


def _kind(weights: Mapping[str, Tensor], place: int) -> str:
    at = f"all_modules.{place}."
    if at + "NIN_3.W" in weights:
        return "attention"
    if at + "Conv_1.weight" in weights:
        return "block"
    return "resize" if at + "Conv_0.weight" in weights else "other"


class DDPMNetwork(nn.Module):
    """The U-Net: images (B, C, H, W) and a time (B,) to (B, C, H, W); `exploding` and `sigmas` as in NCSN++."""

    sigmas: Tensor

    def __init__(self, spec: DDPMSpec, *, exploding: bool, sigmas: Tensor) -> None:
        super().__init__()
        self.spec, self.exploding = spec, exploding
        self.register_buffer("sigmas", sigmas)
        embedded = 4 * spec.width
        widths = [mult * spec.width for mult in spec.mults]
        layers: list[nn.Module] = [nn.Linear(spec.width, embedded), nn.Linear(embedded, embedded)]
        layers.append(nn.Conv2d(spec.channels, spec.width, 3, padding=1))
        width = spec.width
        skips = [width]
        for level, out in enumerate(widths):
            for _ in range(spec.blocks):
                layers += [_Block(width, out, embedded), *([_attention(out)] if level in spec.attention else [])]
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                layers.append(_Resize(width, up=False))
                skips.append(width)
        layers += [_Block(width, width, embedded), _attention(width), _Block(width, width, embedded)]
        for level in range(len(widths) - 1, -1, -1):
            for _ in range(spec.blocks + 1):
                layers.append(_Block(width + skips.pop(), widths[level], embedded))
                width = widths[level]
            layers += [_attention(width)] if level in spec.attention else []
            layers += [_Resize(width, up=True)] if level > 0 else []
        self.all_modules = nn.ModuleList([*layers, _norm(width), nn.Conv2d(width, spec.channels, 3, padding=1)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        spec, coarsest = self.spec, len(self.spec.mults) - 1
        layers: Iterator[Any] = iter(self.all_modules)
        time = next(layers)(sines(t, spec.width))
        time = next(layers)(F.silu(time))
        h = next(layers)(2 * x - 1 if self.exploding else x)
        skips = [h]
        for level in range(coarsest + 1):
            for _ in range(spec.blocks):
                h = next(layers)(h, time)
                h = next(layers)(h) if level in spec.attention else h
                skips.append(h)
            if level < coarsest:
                h = next(layers)(h)
                skips.append(h)
        h = next(layers)(h, time)
        h = next(layers)(h)
        h = next(layers)(h, time)
        for level in range(coarsest, -1, -1):
            for _ in range(spec.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], 1), time)
            h = next(layers)(h) if level in spec.attention else h
            h = next(layers)(h) if level > 0 else h
        out = F.silu(next(layers)(h))
        out = next(layers)(out)
        return -out if self.exploding else out


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class _Block(nn.Module):
    def __init__(self, into: int, out: int, embedded: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(into)
        self.Conv_0 = nn.Conv2d(into, out, 3, padding=1)
        self.Dense_0 = nn.Linear(embedded, out)
        self.GroupNorm_1 = _norm(out)
        self.Conv_1 = nn.Conv2d(out, out, 3, padding=1)
        if into != out:
            self.NIN_0 = PixelMix(into, out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.Conv_0(F.silu(self.GroupNorm_0(x))) + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return h + (self.NIN_0(x.movedim(1, -1)).movedim(-1, 1) if hasattr(self, "NIN_0") else x)


def _attention(width: int) -> PixelAttention:
    return PixelAttention(_norm(width), scale=1.0)


class _Resize(nn.Module):
    def __init__(self, width: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.Conv_0 = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))
