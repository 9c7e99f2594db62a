"""The U-Nets of v-diffusion: nested lists of layers, whose names and shapes determine the network.

Source      github.com/crowsonkb/v-diffusion-pytorch, written here under its names. Two families:
            normed     (yfcc_1, yfcc_2) attention with a norm and heads of 64 channels, bilinear doubling, the coarser
                       part before the finer one, t as time
            otherwise  (ports of v-diffusion-jax) attention without a norm, heads of 128 channels, nearest doubling, the
                       finer part first, the logarithm of the signal-to-noise ratio as time
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VDiffusionNetwork(nn.Module):
    """Images (B, C, H, W) and a time (B,) to (B, C, H, W).

    weights    of the network, for their names and shapes
    last_relu  the last block ends with a ReLU as all others
    """

    def __init__(self, weights: Mapping[str, Tensor], *, last_relu: bool) -> None:
        super().__init__()
        self.normed = any(name.endswith(".norm.weight") for name in weights)
        self.timestep_embed = _Features(weights["timestep_embed.weight"].shape[0])
        self.net = _layers(weights, "net", normed=self.normed)
        last = self.net[-1]
        if not isinstance(last, _Block):
            raise ValueError("its last layer is no block of convolutions")
        last.last_relu = last_relu
        self.channels = weights[f"net.{len(self.net) - 1}.main.2.weight"].shape[0]
        into = weights["net.0.main.0.weight"].shape[1]
        if into != self.channels + 2 * len(weights["timestep_embed.weight"]):
            raise ValueError(f"its first layer takes {into} channels, which are not those of image and time")
        self.levels = 1 + sum(isinstance(module, _Nested) for module in self.modules())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        codes = self.timestep_embed(t.to(x.dtype))[..., None, None].expand(-1, -1, *x.shape[2:])
        return self.net(torch.cat([x, codes], 1))


def _layers(weights: Mapping[str, Tensor], at: str, *, normed: bool) -> nn.Sequential:
    """The list of this name; a nested list begins and ends with layers without weights, halving and doubling."""
    places = sorted({int(name[len(at) + 1 :].split(".")[0]) for name in weights if name.startswith(f"{at}.")})
    layers: list[nn.Module] = [] if at == "net" else [nn.AvgPool2d(2)]
    for place in places:
        here = f"{at}.{place}"
        if place != len(layers):
            raise ValueError(f"it lacks {at}.{len(layers)}")
        if f"{here}.qkv_proj.weight" in weights:
            layers.append(_Attention(weights[f"{here}.out_proj.weight"].shape[0], normed=normed))
        elif f"{here}.main.0.weight" in weights:
            shapes = [weights[f"{here}.main.{k}.weight"].shape for k in (0, 2)]
            layers.append(_Block(shapes[0][1], shapes[0][0], shapes[1][0]))
        else:
            layers.append(_Nested(_layers(weights, f"{here}.main", normed=normed), coarser_first=normed))
    if at != "net":
        how = {"mode": "bilinear", "align_corners": False} if normed else {"mode": "nearest"}
        layers.append(nn.Upsample(scale_factor=2, **how))
    return nn.Sequential(*layers)


class _Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1))

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * math.pi * t[:, None] @ self.weight.T
        return torch.cat([angles.cos(), angles.sin()], 1)


class _Block(nn.Module):
    def __init__(self, into: int, middle: int, out: int) -> None:
        super().__init__()
        self.last_relu = True
        first, second = nn.Conv2d(into, middle, 3, padding=1), nn.Conv2d(middle, out, 3, padding=1)
        self.main = nn.Sequential(first, nn.ReLU(), second)
        self.skip = nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.main(x)
        return self.skip(x) + (h.relu() if self.last_relu else h)


class _Attention(nn.Module):
    def __init__(self, width: int, *, normed: bool) -> None:
        super().__init__()
        self.heads = width // (64 if normed else 128)
        self.norm = nn.GroupNorm(1, width) if normed else nn.Identity()
        self.qkv_proj, self.out_proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(self.norm(x)).unflatten(1, (3, self.heads, -1)).flatten(4).mT.unbind(1)
        return x + self.out_proj(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class _Nested(nn.Module):
    def __init__(self, main: nn.Sequential, *, coarser_first: bool) -> None:
        super().__init__()
        self.main, self.coarser_first = main, coarser_first

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.main(x), x] if self.coarser_first else [x, self.main(x)], 1)
