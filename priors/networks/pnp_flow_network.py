"""The U-Net of PnP-Flow, which is DDPM's under names of its own.

Paper       Martin et al., PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, ICLR 2025, arXiv:2410.02423;
            Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, arXiv:2006.11239.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ncsnpp_network import sines


@dataclass(frozen=True)
class PnPFlowSpec:
    """Hyper-parameters of the network; `attention` holds levels, 0 the finest."""

    channels: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "PnPFlowSpec":
        """From the names and shapes of the weights. KeyError or ValueError for another network."""
        levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down_modules."))
        width, channels = weights["begin_conv.weight"].shape[:2]
        firsts = [f"down_modules.{level}.{level}a_0" for level in range(levels)]
        return cls(
            channels=channels,
            width=width,
            mults=tuple(weights[f"{first}a_block.conv1.weight"].shape[0] // width for first in firsts),
            blocks=sum(f"down_modules.0.0a_{k}a_block.conv1.weight" in weights for k in range(100)),
            attention=tuple(level for level in range(levels) if f"{firsts[level]}b_attn.attn_q.weight" in weights),
        )


class PnPFlowNetwork(nn.Module):
    """The U-Net: images (B, C, H, W) and a time (B,) to (B, C, H, W)."""

    def __init__(self, spec: PnPFlowSpec) -> None:
        super().__init__()
        self.spec = spec
        embedded = 4 * spec.width
        self.temb_net = _Time(spec.width, embedded)
        self.begin_conv = nn.Conv2d(spec.channels, spec.width, 3, padding=1)
        width, skips, down = spec.width, [spec.width], []
        for level, mult in enumerate(spec.mults):
            layers, out = nn.ModuleDict(), mult * spec.width
            for k in range(spec.blocks):
                layers[f"{level}a_{k}a_block"] = _Block(width, out, embedded)
                if level in spec.attention:
                    layers[f"{level}a_{k}b_attn"] = _Attention(out)
                width = out
                skips.append(width)
            if level < len(spec.mults) - 1:
                layers[f"{level}b_downsample"] = nn.Conv2d(width, width, 3, stride=2, padding=1)
                skips.append(width)
            down.append(layers)
        middle = [_Block(width, width, embedded), _Attention(width), _Block(width, width, embedded)]
        self.mid_modules = nn.ModuleList(middle)
        up = []
        for level in reversed(range(len(spec.mults))):
            layers, out = nn.ModuleDict(), spec.mults[level] * spec.width
            for k in range(spec.blocks + 1):
                layers[f"{level}a_{k}a_block"] = _Block(width + skips.pop(), out, embedded)
                if level in spec.attention:
                    layers[f"{level}a_{k}b_attn"] = _Attention(out)
                width = out
            if level > 0:
                layers[f"{level}b_upsample"] = _Doubled(width)
            up.append(layers)
        self.down_modules, self.up_modules = nn.ModuleList(down), nn.ModuleList(up)
        self.end_conv = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, spec.channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.temb_net(t)
        h = self.begin_conv(x)
        skips = [h]
        for level in self.down_modules:
            for layer in level.values():  # type: ignore[operator]
                h = layer(h, time) if isinstance(layer, _Block) else layer(h)
                if isinstance(layer, _Attention):
                    skips.pop()
                skips.append(h)
        for layer in self.mid_modules:
            h = layer(h, time) if isinstance(layer, _Block) else layer(h)
        for level in self.up_modules:
            for layer in level.values():  # type: ignore[operator]
                h = layer(torch.cat([h, skips.pop()], 1), time) if isinstance(layer, _Block) else layer(h)
        return self.end_conv(h)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class _Time(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.width = width
        self.main = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, t: Tensor) -> Tensor:
        return self.main(sines(t, self.width))


class _Block(nn.Module):
    def __init__(self, into: int, out: int, embedded: int) -> None:
        super().__init__()
        self.temb_proj = nn.Linear(embedded, out)
        self.norm1, self.conv1 = _norm(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_q, self.attn_k, self.attn_v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))
        self.norm = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).mT for part in (self.attn_q, self.attn_k, self.attn_v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class _Doubled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_conv(F.interpolate(x, scale_factor=2, mode="nearest"))
