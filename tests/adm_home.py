"""The U-Net of guided-diffusion, written down a second time as functions of a state dict in its names."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def state_dict(kind: dict) -> Weights:
    """Random weights under the names of guided-diffusion."""
    random = torch.Generator().manual_seed(0)
    weights: Weights = {}
    width, channels, mults = kind.get("width", 32), kind.get("channels", 3), kind["mults"]
    wide = [int(m * width) for m in mults]

    def add(name: str, *shape: int) -> None:
        fan = math.prod(shape[1:]) or 1
        weights[f"{name}.weight"] = torch.randn(shape, generator=random) * (0.5 if len(shape) == 1 else fan**-0.5)
        if name != "label_emb":
            weights[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=random)

    def block(at: str, into: int, out: int) -> None:
        add(f"{at}.in_layers.0", into)
        add(f"{at}.in_layers.2", out, into, 3, 3)
        add(f"{at}.emb_layers.1", out * (2 if kind.get("scale_shift", True) else 1), 4 * width)
        add(f"{at}.out_layers.0", out)
        add(f"{at}.out_layers.3", out, out, 3, 3)
        if into != out:
            add(f"{at}.skip_connection", out, into, 1, 1)

    def attention(at: str, out: int) -> None:
        add(f"{at}.norm", out)
        add(f"{at}.qkv", 3 * out, out, 1)
        add(f"{at}.proj_out", out, out, 1)

    add("time_embed.0", 4 * width, width)
    add("time_embed.2", 4 * width, 4 * width)
    if kind.get("classes"):
        add("label_emb", kind["classes"], 4 * width)
    add("input_blocks.0.0", wide[0], channels, 3, 3)
    skips, now, place = [wide[0]], wide[0], 0
    for level, out in enumerate(wide):
        for _ in range(kind["blocks"]):
            place += 1
            block(f"input_blocks.{place}.0", now, out)
            if level in kind["attention"]:
                attention(f"input_blocks.{place}.1", out)
            now = out
            skips.append(now)
        if level < len(wide) - 1:
            place += 1
            if kind.get("plain_resize"):
                add(f"input_blocks.{place}.0.op", now, now, 3, 3)
            else:
                block(f"input_blocks.{place}.0", now, now)
            skips.append(now)
    block("middle_block.0", now, now)
    attention("middle_block.1", now)
    block("middle_block.2", now, now)
    place = -1
    for level in reversed(range(len(wide))):
        for i in range(kind["blocks"] + 1):
            place += 1
            block(f"output_blocks.{place}.0", now + skips.pop(), wide[level])
            now, layer = wide[level], 1
            if level in kind["attention"]:
                attention(f"output_blocks.{place}.1", now)
                layer = 2
            if level and i == kind["blocks"]:
                if kind.get("plain_resize"):
                    add(f"output_blocks.{place}.{layer}.conv", now, now, 3, 3)
                else:
                    block(f"output_blocks.{place}.{layer}", now, now)
    add("out.0", now)
    add("out.2", channels * (2 if kind.get("variance", True) else 1), now, 3, 3)
    return weights


def home(weights: Weights, kind: dict, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """guided-diffusion's U-Net."""

    def norm(at: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, weights[f"{at}.weight"], weights[f"{at}.bias"])

    def conv(at: str, h: Tensor, **how: int) -> Tensor:
        weight = weights[f"{at}.weight"]
        return (F.conv1d if weight.dim() == 3 else F.conv2d)(h, weight, weights[f"{at}.bias"], **how)

    def linear(at: str, h: Tensor) -> Tensor:
        return F.linear(h, weights[f"{at}.weight"], weights[f"{at}.bias"])

    def block(at: str, h: Tensor, resize: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        skip = resize(h)
        h = conv(f"{at}.in_layers.2", resize(F.silu(norm(f"{at}.in_layers.0", h))), padding=1)
        more = linear(f"{at}.emb_layers.1", F.silu(embedding))[:, :, None, None]
        if kind.get("scale_shift", True):
            scale, shift = more.chunk(2, 1)
            h = norm(f"{at}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{at}.out_layers.0", h + more)
        h = conv(f"{at}.out_layers.3", F.silu(h), padding=1)
        return h + (conv(f"{at}.skip_connection", skip) if f"{at}.skip_connection.weight" in weights else skip)

    def attention(at: str, h: Tensor) -> Tensor:
        rows, width, flat = len(h), h.shape[1], h.flatten(2)
        heads = kind["heads"] if kind["head"] is None else width // kind["head"]
        qkv, size = conv(f"{at}.qkv", norm(f"{at}.norm", flat)), width // heads
        if kind.get("new_order"):
            q, k, v = (part.reshape(rows * heads, size, -1) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(rows * heads, 3 * size, -1).split(size, 1)
        share = (torch.einsum("bct,bcs->bts", q, k) / math.sqrt(size)).softmax(-1)
        mixed = torch.einsum("bts,bcs->bct", share, v).reshape(rows, width, -1)
        return (flat + conv(f"{at}.proj_out", mixed)).reshape(h.shape)

    width = weights["time_embed.0.weight"].shape[1]
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    embedding = torch.cat([angles.cos(), angles.sin()], 1)
    embedding = linear("time_embed.2", F.silu(linear("time_embed.0", embedding)))
    if label is not None:
        embedding = embedding + weights["label_emb.weight"][label]

    levels, blocks = len(kind["mults"]), kind["blocks"]
    h = conv("input_blocks.0.0", x, padding=1)
    skips, place = [h], 0
    for level in range(levels):
        for _ in range(blocks):
            place += 1
            h = block(f"input_blocks.{place}.0", h)
            h = attention(f"input_blocks.{place}.1", h) if level in kind["attention"] else h
            skips.append(h)
        if level < levels - 1:
            place += 1
            if kind.get("plain_resize"):
                h = conv(f"input_blocks.{place}.0.op", h, stride=2, padding=1)
            else:
                h = block(f"input_blocks.{place}.0", h, lambda h: F.avg_pool2d(h, 2))
            skips.append(h)
    h = block("middle_block.2", attention("middle_block.1", block("middle_block.0", h)))
    place = -1
    for level in reversed(range(levels)):
        for i in range(blocks + 1):
            place, layer = place + 1, 1
            h = block(f"output_blocks.{place}.0", torch.cat([h, skips.pop()], 1))
            if level in kind["attention"]:
                h, layer = attention(f"output_blocks.{place}.1", h), 2
            if level and i == blocks:
                if kind.get("plain_resize"):
                    h = conv(f"output_blocks.{place}.{layer}.conv", doubled(h), padding=1)
                else:
                    h = block(f"output_blocks.{place}.{layer}", h, doubled)
    return conv("out.2", F.silu(norm("out.0", h)), padding=1)


def doubled(h: Tensor) -> Tensor:
    return h.repeat_interleave(2, -1).repeat_interleave(2, -2)
