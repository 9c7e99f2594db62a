"""Networks of EDM2: the magnitude-preserving U-Net, written down a second time."""

from collections.abc import Callable
from math import prod, sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import HomeWeights
from invdiff.priors import read_prior

SIDE, WIDTHS, BLOCKS, ATTENTION, CLASSES = 8, (64, 128), 1, (4,), 5


def normalize(x: Tensor, dims: list[int]) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (1e-4 + norm * sqrt(norm.numel() / x.numel()))


def silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    n, m = a.shape[1], b.shape[1]
    c = sqrt((n + m) / 0.5)
    return torch.cat([c / sqrt(n) * 0.5 * a, c / sqrt(m) * 0.5 * b], 1)


def mp(w: HomeWeights, at: str, x: Tensor, out: int, size: int | None, gain: Tensor | float = 1.0) -> Tensor:
    shape = (out, x.shape[1], *([] if size is None else [size, size]))
    weight = normalize(w(f"{at}.weight", *shape, scale=1.0), list(range(1, len(shape)))) * (
        gain / sqrt(prod(shape[1:]))
    )
    return x @ weight.T if size is None else F.conv2d(x, weight, padding=size // 2)


def block(w: HomeWeights, at: str, x: Tensor, out: int, emb: Tensor, *, enc: bool, attention: bool) -> Tensor:
    if enc:
        x = x if x.shape[1] == out else mp(w, f"{at}.conv_skip", x, out, 1)
        x = normalize(x, [1])
    y = mp(w, f"{at}.conv_res0", silu(x), out, 3)
    c = mp(w, f"{at}.emb_linear", emb, out, None, w(f"{at}.emb_gain", scale=1.0)) + 1
    y = mp(w, f"{at}.conv_res1", silu(y * c[:, :, None, None]), out, 3)
    if not enc and x.shape[1] != out:
        x = mp(w, f"{at}.conv_skip", x, out, 1)
    x = mp_sum(x, y, 0.3)
    if attention:
        y = mp(w, f"{at}.attn_qkv", x, 3 * out, 1)
        y = y.reshape(len(y), out // 64, -1, 3, y.shape[2] * y.shape[3])
        q, k, v = normalize(y, [2]).unbind(3)
        share = torch.einsum("nhcq,nhck->nhqk", q, k / sqrt(q.shape[2])).softmax(3)
        y = torch.einsum("nhqk,nhck->nhcq", share, v)
        x = mp_sum(x, mp(w, f"{at}.attn_proj", y.reshape(x.shape), out, 1), 0.3)
    return x.clip(-256, 256)


def unet(w: HomeWeights, x: Tensor, noise: Tensor, label: int, channels: int = 3) -> Tensor:
    freqs, phases = w("emb_fourier.freqs", WIDTHS[0], scale=6.0), w("emb_fourier.phases", WIDTHS[0], scale=3.0)
    emb = mp(w, "emb_noise", (noise.ger(freqs) + phases).cos() * sqrt(2), WIDTHS[-1], None)
    one = F.one_hot(torch.tensor([label]), CLASSES).float() * sqrt(CLASSES)
    emb = silu(mp_sum(emb, mp(w, "emb_label", one, WIDTHS[-1], None), 0.5))
    x = mp(w, f"enc.{SIDE}x{SIDE}_conv", torch.cat([x, torch.ones_like(x[:, :1])], 1), WIDTHS[0], 3)
    skips = [x]
    for level, out in enumerate(WIDTHS):
        side = SIDE >> level
        if level:
            x = F.avg_pool2d(x, 2)
            x = block(w, f"enc.{side}x{side}_down", x, x.shape[1], emb, enc=True, attention=False)
            skips.append(x)
        for k in range(BLOCKS):
            x = block(w, f"enc.{side}x{side}_block{k}", x, out, emb, enc=True, attention=side in ATTENTION)
            skips.append(x)
    for level in reversed(range(len(WIDTHS))):
        side, out = SIDE >> level, WIDTHS[level]
        if level == len(WIDTHS) - 1:
            x = block(w, f"dec.{side}x{side}_in0", x, x.shape[1], emb, enc=False, attention=True)
            x = block(w, f"dec.{side}x{side}_in1", x, x.shape[1], emb, enc=False, attention=False)
        else:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = block(w, f"dec.{side}x{side}_up", x, x.shape[1], emb, enc=False, attention=False)
        for k in range(BLOCKS + 1):
            x = mp_cat(x, skips.pop())
            x = block(w, f"dec.{side}x{side}_block{k}", x, out, emb, enc=False, attention=side in ATTENTION)
    return mp(w, "out_conv", x, channels, 3, w("out_gain", scale=1.0))


@pytest.mark.slow
def test_denoiser_of_its_home(tmp_path: Path, normal: Callable) -> None:
    w, s = HomeWeights(), torch.tensor([0.01, 0.3, 2.0, 50.0]).reshape(-1, 1, 1, 1)
    z = normal(4, 3, SIDE, SIDE, dtype=torch.float32).tanh() + s * normal(4, 3, SIDE, SIDE, seed=1, dtype=torch.float32)
    with torch.no_grad():
        out = unet(w, z / (s**2 + 0.25).sqrt(), s.flatten().log() / 4, 3)
    assert out.std() > 0.1
    wanted = 0.25 / (s**2 + 0.25) * z + s * 0.5 / (s**2 + 0.25).sqrt() * out
    named = {f"unet.{name}": tensor for name, tensor in w.tensors.items()}
    uncertainty = {"logvar_fourier.freqs": torch.ones(4), "logvar_linear.weight": torch.ones(1, 4)}
    torch.save({"ema": {**named, **uncertainty}}, tmp_path / "edm2.pt")
    prior = read_prior(tmp_path / "edm2.pt", settings={"class_label": 3})
    assert prior.shape == (3, SIDE, SIDE)
    ours = 2 * prior.denoise((z + 1) / 2, s.flatten() / 2) - 1
    assert ((ours - wanted).abs() / s.clamp(min=1)).max() < 1e-5
    with pytest.raises(ValueError, match="class_label must be an integer from 0 to 4"):
        read_prior(tmp_path / "edm2.pt")


@pytest.mark.slow
def test_networks_of_codes_are_refused(tmp_path: Path) -> None:
    w = HomeWeights()
    unet(w, torch.zeros(1, 4, SIDE, SIDE), torch.zeros(1), 0, channels=4)
    torch.save({f"unet.{name}": tensor for name, tensor in w.tensors.items()}, tmp_path / "edm2.pt")
    with pytest.raises(ValueError, match="codes of Stable Diffusion's autoencoder"):
        read_prior(tmp_path / "edm2.pt")
