"""The network of PnP-Flow, written down a second time."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import HomeWeights
from invdiff.priors import read_prior

SIDE, WIDTH, MULTS, BLOCKS, ATTENTION = 8, 32, (1, 2), 2, (1,)


def unet(w: HomeWeights, x: Tensor, t: Tensor) -> Tensor:
    channels = x.shape[1]
    angles = t[:, None] * torch.exp(-math.log(10000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
    time = w.linear("temb_net.main.0", torch.cat([angles.sin(), angles.cos()], 1), 4 * WIDTH)
    time = w.linear("temb_net.main.2", F.silu(time), 4 * WIDTH)

    def block(at: str, h: Tensor, out: int) -> Tensor:
        more = w.conv(f"{at}.conv1", F.silu(w.norm(f"{at}.norm1", h)), out, padding=1)
        more = more + w.linear(f"{at}.temb_proj", F.silu(time), out)[:, :, None, None]
        more = w.conv(f"{at}.conv2", F.silu(w.norm(f"{at}.norm2", more)), out, padding=1)
        return more + (h if h.shape[1] == out else w.conv(f"{at}.shortcut", h, out, 1))

    def attention(at: str, h: Tensor) -> Tensor:
        n, width = w.norm(f"{at}.norm", h), h.shape[1]
        q, k, v = (w.conv(f"{at}.attn_{part}", n, width, 1).flatten(2) for part in "qkv")
        share = (torch.bmm(q.mT, k) * width**-0.5).softmax(-1)
        return h + w.conv(f"{at}.proj_out", torch.bmm(v, share.mT).reshape(h.shape), width, 1)

    h = w.conv("begin_conv", x, WIDTH, padding=1)
    skips = [h]
    for level, mult in enumerate(MULTS):
        for k in range(BLOCKS):
            h = block(f"down_modules.{level}.{level}a_{k}a_block", skips[-1], mult * WIDTH)
            h = attention(f"down_modules.{level}.{level}a_{k}b_attn", h) if level in ATTENTION else h
            skips.append(h)
        if level < len(MULTS) - 1:
            at = f"down_modules.{level}.{level}b_downsample"
            skips.append(w.conv(at, skips[-1], mult * WIDTH, stride=2, padding=1))
    h = block("mid_modules.0", skips[-1], skips[-1].shape[1])
    h = block("mid_modules.2", attention("mid_modules.1", h), h.shape[1])
    for place, level in enumerate(reversed(range(len(MULTS)))):
        for k in range(BLOCKS + 1):
            at = f"up_modules.{place}.{level}a_{k}"
            h = block(f"{at}a_block", torch.cat([h, skips.pop()], 1), MULTS[level] * WIDTH)
            h = attention(f"{at}b_attn", h) if level in ATTENTION else h
        if level:
            h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = w.conv(f"up_modules.{place}.{level}b_upsample.up_conv", h, h.shape[1], padding=1)
    return w.conv("end_conv.2", F.silu(w.norm("end_conv.0", h)), channels, padding=1)


@pytest.mark.slow
def test_denoiser_of_its_home(tmp_path: Path, normal: Callable) -> None:
    """x_t = t z + (1 - t) eps, the network predicts z - eps."""
    w, t = HomeWeights(), torch.tensor([0.02, 0.3, 0.7, 0.99]).reshape(-1, 1, 1, 1)
    x_t = t * normal(4, 3, SIDE, SIDE, dtype=torch.float32).tanh()
    x_t = x_t + (1 - t) * normal(4, 3, SIDE, SIDE, seed=1, dtype=torch.float32)
    with torch.no_grad():
        velocity = unet(w, x_t, t.flatten())
    assert velocity.std() > 0.1
    torch.save(w.tensors, tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="'image_size'"):
        read_prior(tmp_path / "model_final.pt")
    prior = read_prior(tmp_path / "model_final.pt", settings={"image_size": SIDE})
    sigma = (1 - t) / t
    ours = 2 * prior.denoise((x_t / t + 1) / 2, sigma.flatten() / 2) - 1
    assert ((ours - (x_t + (1 - t) * velocity)).abs()).max() < 1e-5


@pytest.mark.slow
def test_a_grey_network_may_have_no_gaussian_noise(tmp_path: Path) -> None:
    w = HomeWeights()
    unet(w, torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1))
    torch.save(w.tensors, tmp_path / "mnist.pt")
    with pytest.raises(ValueError, match="give noise=gaussian"):
        read_prior(tmp_path / "mnist.pt", settings={"image_size": SIDE})
    prior = read_prior(tmp_path / "mnist.pt", settings={"image_size": SIDE, "noise": "gaussian"})
    assert prior.shape == (1, SIDE, SIDE)
