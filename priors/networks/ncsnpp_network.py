"""The U-Net of score_sde: NCSN++ and DDPM++.

Paper       Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021,
            arXiv:2011.13456.
Network     Written here: the NCSNpp of `deepinv` is that of NVlabs, with other names, always 32 groups, and without the
            image pyramids of the networks for large images. Names are those of score_sde: its layers are one flat list.
Deviates    Only networks with blocks of the kind "biggan", as all that are "++" have.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NCSNppSpec:
    """Hyper-parameters of the network, in the words of score_sde.

    attention  levels with attention, 0 the finest
    fir        images are halved and doubled with the filter (1, 3, 3, 1), otherwise by means and copies
    fourier    time enters by random Fourier features of its logarithm, otherwise by sines and cosines
    inward     how smaller copies of the image enter on the way down (`progressive_input`)
    outward    how the image comes out on the way up (`progressive`)
    """

    channels: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    fir: bool
    fourier: bool
    inward: Literal["none", "input_skip", "residual"]
    outward: Literal["none", "output_skip"]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], *, fir: bool | None = None) -> "NCSNppSpec":
        """From the names and shapes of the weights. KeyError, ValueError or IndexError for another network.

        fir  None: true of a network with an input pyramid, as in the published ones
        """
        places = [int(name.split(".")[1]) for name in weights if name.startswith("all_modules.")]
        if not places:
            raise ValueError("it has no all_modules")
        count = 1 + max(places)
        kinds = [_kind(weights, place) for place in range(count)]
        resizes = [place for place, kind in enumerate(kinds) if kind == "resize"]
        down = resizes[: len(resizes) // 2]
        # The block that opens each level on the way down.
        first = [kinds.index("block", after) for after in (0, *(place + 1 for place in down))]
        entry = weights[f"all_modules.{kinds.index('convolution')}.weight"]
        width, channels = entry.shape[:2]
        inward: Any = "input_skip" if "combine" in kinds else "residual" if "pyramid" in kinds else "none"
        return cls(
            channels=channels,
            width=width,
            mults=tuple(weights[f"all_modules.{place}.Conv_1.weight"].shape[0] // width for place in first),
            blocks=kinds[: down[0]].count("block"),
            attention=tuple(level for level, place in enumerate(first) if kinds[place + 1] == "attention"),
            fir=inward != "none" if fir is None else fir,
            fourier=kinds[0] == "features",
            inward=inward,
            outward="output_skip" if kinds.count("norm") > 1 else "none",
        )


def _kind(weights: Mapping[str, Tensor], place: int) -> str:
    """The kind of the layer at a place of the flat list, by the names of its weights."""
    at = f"all_modules.{place}."
    if at + "W" in weights:
        return "features"
    if at + "weight" in weights:
        return {1: "norm", 2: "linear", 4: "convolution"}[weights[at + "weight"].dim()]
    if at + "NIN_3.W" in weights:
        return "attention"
    if at + "NIN_0.W" in weights:
        raise ValueError("its blocks are of the kind 'ddpm', not 'biggan'")
    if at + "Conv_1.weight" in weights:
        # A block has a shortcut where its widths differ, or where it changes the size.
        shortcut = weights.get(at + "Conv_2.weight")
        return "resize" if shortcut is not None and shortcut.shape[0] == shortcut.shape[1] else "block"
    return "pyramid" if at + "Conv2d_0.weight" in weights else "combine"


# -- the network -------------------------------------------------------------------------------------------------------


class NCSNppNetwork(nn.Module):
    """The U-Net: images (B, C, H, W) and a time (B,) to (B, C, H, W).

    exploding  for `ve`: images on [0, 1], and the noise as output, which is that of score_sde with its sign turned;
               otherwise images on [-1, 1] and the output as it is
    sigmas     the levels of training, falling; of no use for `vp`
    """

    sigmas: Tensor

    def __init__(self, spec: NCSNppSpec, *, exploding: bool, sigmas: Tensor) -> None:
        super().__init__()
        self.spec, self.exploding = spec, exploding
        self.register_buffer("sigmas", sigmas)
        embedded = 4 * spec.width
        widths = [mult * spec.width for mult in spec.mults]
        coarsest = len(widths) - 1
        layers: list[nn.Module] = [_Features(spec.width)] if spec.fourier else []
        layers += [nn.Linear((2 if spec.fourier else 1) * spec.width, embedded), nn.Linear(embedded, embedded)]

        width, pyramid = spec.width, spec.channels
        layers.append(nn.Conv2d(spec.channels, width, 3, padding=1))
        skips = [width]
        for level, out in enumerate(widths):
            for _ in range(spec.blocks):
                layers += [_Block(width, out, embedded), *([_attention(out)] if level in spec.attention else [])]
                width = out
                skips.append(width)
            if level < coarsest:
                layers.append(_Block(width, width, embedded, resize="down", fir=spec.fir))
                if spec.inward == "input_skip":
                    layers.append(_Combine(pyramid, width))
                elif spec.inward == "residual":
                    layers.append(_Pyramid(pyramid, width))
                    pyramid = width
                skips.append(width)

        layers += [_Block(width, width, embedded), _attention(width), _Block(width, width, embedded)]

        for level in range(coarsest, -1, -1):
            for _ in range(spec.blocks + 1):
                layers.append(_Block(width + skips.pop(), widths[level], embedded))
                width = widths[level]
            if level in spec.attention:
                layers.append(_attention(width))
            if spec.outward == "output_skip" or level == 0:
                layers += [_norm(width), nn.Conv2d(width, spec.channels, 3, padding=1)]
            if level > 0:
                layers.append(_Block(width, width, embedded, resize="up", fir=spec.fir))
        self.all_modules = nn.ModuleList(layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        spec, coarsest = self.spec, len(self.spec.mults) - 1
        layers: Iterator[Any] = iter(self.all_modules)
        time = next(layers)(t.log()) if spec.fourier else sines(t, spec.width)
        time = next(layers)(time)
        time = next(layers)(F.silu(time))

        x = 2 * x - 1 if self.exploding else x
        pyramid, h = x, next(layers)(x)
        skips = [h]
        for level in range(coarsest + 1):
            for _ in range(spec.blocks):
                h = next(layers)(h, time)
                h = next(layers)(h) if level in spec.attention else h
                skips.append(h)
            if level < coarsest:
                h = next(layers)(h, time)
                if spec.inward == "input_skip":
                    pyramid = _halved(pyramid, fir=spec.fir)
                    h = next(layers)(pyramid, h)
                elif spec.inward == "residual":
                    h = pyramid = (next(layers)(pyramid) + h) / math.sqrt(2)
                skips.append(h)

        h = next(layers)(h, time)
        h = next(layers)(h)
        h = next(layers)(h, time)

        image: Tensor | None = None
        for level in range(coarsest, -1, -1):
            for _ in range(spec.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], 1), time)
            h = next(layers)(h) if level in spec.attention else h
            if spec.outward == "output_skip" or level == 0:
                detail = F.silu(next(layers)(h))
                detail = next(layers)(detail)
                image = detail if image is None else _doubled(image, fir=spec.fir) + detail
            if level > 0:
                h = next(layers)(h, time)
        assert image is not None
        return -image if self.exploding else image


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(width // 4, 32), width, eps=1e-6)


def sines(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time (B,), (B, width)."""
    rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2, device=t.device)).to(t.dtype)
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def _filter(x: Tensor) -> Tensor:
    """The filter (1, 3, 3, 1) in both directions, for every channel, (C, 1, 4, 4)."""
    row = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return (row[:, None] * row).expand(x.shape[1], 1, 4, 4)


def _halved(x: Tensor, *, fir: bool) -> Tensor:
    return F.conv2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1]) if fir else F.avg_pool2d(x, 2)


def _doubled(x: Tensor, *, fir: bool) -> Tensor:
    if fir:
        return F.conv_transpose2d(x, 4 * _filter(x), stride=2, padding=1, groups=x.shape[1])
    return F.interpolate(x, scale_factor=2, mode="nearest")


class _Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t[:, None] * self.W
        return torch.cat([angles.sin(), angles.cos()], 1)


class _Block(nn.Module):
    def __init__(
        self, into: int, out: int, embedded: int, *, resize: Literal["up", "down"] | None = None, fir: bool = False
    ) -> None:
        super().__init__()
        self.resize, self.fir = resize, fir
        self.GroupNorm_0 = _norm(into)
        self.Conv_0 = nn.Conv2d(into, out, 3, padding=1)
        self.Dense_0 = nn.Linear(embedded, out)
        self.GroupNorm_1 = _norm(out)
        self.Conv_1 = nn.Conv2d(out, out, 3, padding=1)
        if into != out or resize is not None:
            self.Conv_2 = nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resize is not None:
            change = _doubled if self.resize == "up" else _halved
            h, x = change(h, fir=self.fir), change(x, fir=self.fir)
        h = self.Conv_0(h) + self.Dense_0(F.silu(time))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self.Conv_2(x) if hasattr(self, "Conv_2") else x
        return (x + h) / math.sqrt(2)


class PixelMix(nn.Module):
    """A linear map of the channels of every pixel, (..., C)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(into, out)), nn.Parameter(torch.zeros(out))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels @ self.W + self.b


class PixelAttention(nn.Module):
    """Attention of one head between all pixels; `scale` of its sum with the input."""

    def __init__(self, norm: nn.GroupNorm, *, scale: float) -> None:
        super().__init__()
        width, self.scale = norm.num_channels, scale
        self.GroupNorm_0 = norm
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (PixelMix(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.GroupNorm_0(x).flatten(2).mT
        mixed = F.scaled_dot_product_attention(self.NIN_0(pixels), self.NIN_1(pixels), self.NIN_2(pixels))
        return (x + self.NIN_3(mixed).mT.reshape(x.shape)) * self.scale


def _attention(width: int) -> PixelAttention:
    return PixelAttention(_norm(width), scale=1 / math.sqrt(2))


class _Combine(nn.Module):
    def __init__(self, pyramid: int, width: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(pyramid, width, 1)

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        return self.Conv_0(pyramid) + h


class _Pyramid(nn.Module):
    """Filters the image and takes every second pixel of a convolution of it."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(into, out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(F.conv2d(x, _filter(x), padding=2, groups=x.shape[1]))
