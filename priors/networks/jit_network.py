"""The transformer on pixels of JiT.

Paper       Li and He, Back to Basics: Let Denoising Generative Models Denoise, 2025, arXiv:2511.13720.
Network     Written here under the names of its authors' code, in whose networks of 12, 24 or 32 blocks label tokens
            enter before block 4, 8 or 10.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT_STARTS = {12: 4, 24: 8, 32: 10}  # by the number of blocks


@dataclass(frozen=True)
class JiTSpec:
    """Hyper-parameters of the network.

    bottleneck  channels of the first map of a patch
    tokens      of the label, that enter before block `start`
    classes     without that of no label
    """

    channels: int
    patch: int
    side: int
    width: int
    bottleneck: int
    blocks: int
    heads: int
    hidden: int
    tokens: int
    start: int
    classes: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], *, start: int | None = None) -> "JiTSpec":
        """From the shapes of the weights; `start` for another depth than those of the authors.

        KeyError or ValueError for another network.
        """
        bottleneck, channels, patch, _ = weights["x_embedder.proj1.weight"].shape
        _, places, width = weights["pos_embed"].shape
        blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        if start is None and blocks not in CONTEXT_STARTS:
            raise ValueError(f"a network of {blocks} blocks does not tell where label tokens enter: give start=")
        return cls(
            channels=channels,
            patch=patch,
            side=patch * math.isqrt(places),
            width=width,
            bottleneck=bottleneck,
            blocks=blocks,
            heads=width // weights["blocks.0.attn.q_norm.weight"].shape[0],
            hidden=weights["blocks.0.mlp.w3.weight"].shape[1],
            tokens=weights["in_context_posemb"].shape[1],
            start=CONTEXT_STARTS[blocks] if start is None else start,
            classes=weights["y_embedder.embedding_table.weight"].shape[0] - 1,
        )


class JiTNetwork(nn.Module):
    """Images (B, C, H, W), times (B,) and labels (B,) to clean images; without labels that of no class."""

    def __init__(self, spec: JiTSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.width
        self.t_embedder, self.y_embedder = _Time(width), _Labels(spec.classes + 1, width)
        self.x_embedder = _Patches(spec)
        self.pos_embed = nn.Parameter(torch.zeros(1, (spec.side // spec.patch) ** 2, width))
        self.in_context_posemb = nn.Parameter(torch.zeros(1, spec.tokens, width))
        self.blocks = nn.ModuleList([_Block(spec) for _ in range(spec.blocks)])
        self.final_layer = _Last(width, spec.patch**2 * spec.channels)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        spec = self.spec
        if label is None:
            label = torch.full((len(x),), spec.classes, device=x.device)
        y = self.y_embedder(label)
        condition = self.t_embedder(t.to(x.dtype)) + y
        h = self.x_embedder(x) + self.pos_embed
        angles = _angles(spec, x)
        for place, block in enumerate(self.blocks):
            if place == spec.start:
                h = torch.cat([y[:, None] + self.in_context_posemb, h], 1)
                angles = torch.cat([angles.new_zeros(spec.tokens, angles.shape[1]), angles])
            h = block(h, condition, angles)
        h = self.final_layer(h[:, spec.tokens :], condition)
        grid = spec.side // spec.patch
        h = h.reshape(len(x), grid, grid, spec.patch, spec.patch, spec.channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def _angles(spec: JiTSpec, x: Tensor) -> Tensor:
    """Rotary angles of all patches, (patches, channels of a head): rows in the first half, columns in the second."""
    half = spec.width // spec.heads // 2
    rates = 10000.0 ** (-torch.arange(0, half, 2, device=x.device) / half)
    grid = spec.side // spec.patch
    along = (torch.arange(grid, device=x.device)[:, None] * rates).repeat_interleave(2, 1).to(x.dtype)
    rows, columns = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of neighbouring channels rotated by their angle."""
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


class _Norm(nn.Module):
    """Division by the root mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt())


class _Time(nn.Module):
    def __init__(self, width: int, codes: int = 256) -> None:
        super().__init__()
        self.codes = codes
        self.mlp = nn.Sequential(nn.Linear(codes, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.codes // 2
        angles = t[:, None] * torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1).to(t.dtype))


class _Labels(nn.Module):
    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(labels, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class _Patches(nn.Module):
    def __init__(self, spec: JiTSpec) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(spec.channels, spec.bottleneck, spec.patch, stride=spec.patch, bias=False)
        self.proj2 = nn.Conv2d(spec.bottleneck, spec.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(x)).flatten(2).mT


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm, self.k_norm = _Norm(width // heads), _Norm(width // heads)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _rotated(self.q_norm(q), angles), _rotated(self.k_norm(k), angles)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class _Block(nn.Module):
    def __init__(self, spec: JiTSpec) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(spec.width), _Norm(spec.width)
        self.attn, self.mlp = _Attention(spec.width, spec.heads), _Gated(spec.width, spec.hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(spec.width, 6 * spec.width))

    def forward(self, x: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, angles)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class _Last(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final, self.linear = _Norm(width), nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)
