"""JiT, the transformer on pixels, written down a second time."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import HomeWeights
from invdiff.priors import read_prior

SIDE, PATCH, WIDTH, HEADS, DEPTH, START, TOKENS, CLASSES, HIDDEN = 8, 2, 32, 2, 3, 1, 4, 5, 42


def rms(w: HomeWeights, at: str, x: Tensor) -> Tensor:
    return w(f"{at}.weight", x.shape[-1], scale=1.0) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rope(x: Tensor, tokens: int) -> Tensor:
    """Of a single image patch after the other; label tokens are not turned."""
    out, half, grid = x.clone(), x.shape[-1] // 2, SIDE // PATCH
    for row in range(grid):
        for column in range(grid):
            for place, at in ((0, row), (half, column)):
                for pair in range(half // 2):
                    angle = at * 10000 ** (-2 * pair / half)
                    i, n = place + 2 * pair, tokens + row * grid + column
                    a, b = x[..., n, i], x[..., n, i + 1]
                    out[..., n, i] = a * math.cos(angle) - b * math.sin(angle)
                    out[..., n, i + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def transformer(w: HomeWeights, x: Tensor, t: Tensor, label: int) -> Tensor:
    rows, grid, head = len(x), SIDE // PATCH, WIDTH // HEADS
    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    args = t[:, None] * freqs
    time = w.linear("t_embedder.mlp.0", torch.cat([args.cos(), args.sin()], -1), WIDTH)
    time = w.linear("t_embedder.mlp.2", F.silu(time), WIDTH)
    y = w("y_embedder.embedding_table.weight", CLASSES + 1, WIDTH, scale=1.0)[torch.full((rows,), label)]
    c = F.silu(time + y)
    x = w.conv("x_embedder.proj2", w.conv("x_embedder.proj1", x, 6, PATCH, bias=False, stride=PATCH), WIDTH, 1)
    x = x.flatten(2).transpose(1, 2) + w("pos_embed", 1, grid**2, WIDTH, scale=1.0)
    tokens = 0
    for i in range(DEPTH):
        at = f"blocks.{i}"
        if i == START:
            tokens = TOKENS
            x = torch.cat([y[:, None].repeat(1, TOKENS, 1) + w("in_context_posemb", 1, TOKENS, WIDTH, scale=1.0), x], 1)
        one, two, three, four, five, six = w.linear(f"{at}.adaLN_modulation.1", c, 6 * WIDTH).unsqueeze(1).chunk(6, -1)
        h = rms(w, f"{at}.norm1", x) * (1 + two) + one
        q, k, v = w.linear(f"{at}.attn.qkv", h, 3 * WIDTH).reshape(rows, -1, 3, HEADS, head).permute(2, 0, 3, 1, 4)
        q, k = rope(rms(w, f"{at}.attn.q_norm", q), tokens), rope(rms(w, f"{at}.attn.k_norm", k), tokens)
        mixed = (q @ k.transpose(-1, -2) / head**0.5).softmax(-1) @ v
        x = x + three * w.linear(f"{at}.attn.proj", mixed.transpose(1, 2).reshape(rows, -1, WIDTH), WIDTH)
        h = rms(w, f"{at}.norm2", x) * (1 + five) + four
        a, b = w.linear(f"{at}.mlp.w12", h, 2 * HIDDEN).chunk(2, -1)
        x = x + six * w.linear(f"{at}.mlp.w3", F.silu(a) * b, WIDTH)
    shift, scale = w.linear("final_layer.adaLN_modulation.1", c, 2 * WIDTH).unsqueeze(1).chunk(2, -1)
    x = rms(w, "final_layer.norm_final", x[:, TOKENS:]) * (1 + scale) + shift
    x = w.linear("final_layer.linear", x, 3 * PATCH**2)
    x = x.reshape(rows, grid, grid, PATCH, PATCH, 3)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(rows, 3, SIDE, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "noise", "label"), [("jit", 1.0, None), ("jit_noise2", 2.0, 3)])
def test_denoiser_of_its_home(format: str, noise: float, label: int | None, tmp_path: Path, normal: Callable) -> None:
    w, t = HomeWeights(), torch.tensor([0.02, 0.3, 0.7, 0.99]).reshape(-1, 1, 1, 1)
    x_t = t * normal(4, 3, SIDE, SIDE, dtype=torch.float32).tanh()
    x_t = x_t + (1 - t) * noise * normal(4, 3, SIDE, SIDE, seed=1, dtype=torch.float32)
    with torch.no_grad():
        wanted = transformer(w, x_t, t.flatten(), CLASSES if label is None else label)
    assert wanted.std() > 0.1
    named = {f"net.{name}": tensor for name, tensor in w.tensors.items()}
    torch.save({"model": {n: torch.zeros_like(x) for n, x in named.items()}, "model_ema1": named}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"may be jit \(JiT, noise scale 1.*\), jit_noise2"):
        read_prior(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a network of 3 blocks does not tell where label tokens enter"):
        read_prior(tmp_path / "a.pth", format=format)
    prior = read_prior(tmp_path / "a.pth", format=format, settings={"start": START, "class_label": label})
    assert prior.shape == (3, SIDE, SIDE)
    ours = 2 * prior.denoise((x_t / t + 1) / 2, (noise * (1 - t) / t).flatten() / 2) - 1
    assert (ours - wanted).abs().max() < 1e-5
