"""Networks of v-diffusion, written down a second time."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import HomeWeights
from invdiff.priors import read_prior

FAMILIES = {"yfcc": (128, 64), "imagenet": (256, 128), "danbooru": (256, 128)}  # width of attention, channels of a head


def unet(w: HomeWeights, family: str, x: Tensor, t: Tensor) -> Tensor:
    """Two levels: 8 and 4 pixels."""
    width, head = FAMILIES[family]
    channels = x.shape[1]

    def block(at: str, h: Tensor, out: int, relu: bool = True) -> Tensor:
        more = w.conv(f"{at}.main.2", w.conv(f"{at}.main.0", h, 32, padding=1).relu(), out, padding=1)
        skip = h if h.shape[1] == out else w.conv(f"{at}.skip", h, out, 1, bias=False)
        return (more.relu() if relu else more) + skip

    def attention(at: str, h: Tensor) -> Tensor:
        n = w.norm(f"{at}.norm", h, 1, 1e-5) if family == "yfcc" else h
        qkv = w.conv(f"{at}.qkv_proj", n, 3 * width, 1).view(len(h), width // head * 3, head, -1).transpose(2, 3)
        q, k, v = qkv.chunk(3, 1)
        mixed = (q @ k.transpose(2, 3) / head**0.5).softmax(3) @ v
        return h + w.conv(f"{at}.out_proj", mixed.transpose(2, 3).reshape(h.shape), width, 1)

    time = t if family == "yfcc" else torch.log(torch.cos(t * math.pi / 2) ** 2 / torch.sin(t * math.pi / 2) ** 2)
    f = 2 * math.pi * time[:, None] @ w("timestep_embed.weight", 8, 1, scale=0.2).T
    codes = torch.cat([f.cos(), f.sin()], 1)[..., None, None].repeat(1, 1, *x.shape[2:])
    h = block("net.1", block("net.0", torch.cat([x, codes], 1), 32), 32)
    low = attention("net.2.main.2", block("net.2.main.1", F.avg_pool2d(h, 2), width))
    low = block("net.2.main.3", low, 32)
    if family == "yfcc":
        low = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
        h = torch.cat([low, h], 1)
    else:
        h = torch.cat([h, low.repeat_interleave(2, -1).repeat_interleave(2, -2)], 1)
    return block("net.4", block("net.3", h, 32), channels, relu=family == "danbooru")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_denoiser_of_its_home(family: str, tmp_path: Path, normal: Callable) -> None:
    w, t = HomeWeights(), torch.tensor([0.02, 0.3, 0.7, 0.99])
    alpha, sigma = ((f(t * math.pi / 2)).reshape(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    z, eps = (normal(4, 3, 8, 8, seed=seed, dtype=torch.float32) for seed in (0, 1))
    x_t = alpha * z.tanh() + sigma * eps
    with torch.no_grad():
        v = unet(w, family, x_t, t)
    assert v.std() > 0.1
    torch.save(w.tensors, tmp_path / "v.pth")
    if family != "yfcc":
        with pytest.raises(ValueError, match=r"may be v_diffusion \(.*imagenet_128.*\), v_diffusion_relu \(.*danbooru"):
            read_prior(tmp_path / "v.pth")
    formats = {"yfcc": None, "imagenet": "v_diffusion", "danbooru": "v_diffusion_relu"}
    prior = read_prior(tmp_path / "v.pth", format=formats[family])
    assert prior.shape == (3, 8, 8)
    ours = 2 * prior.denoise((x_t / alpha + 1) / 2, (sigma / alpha).flatten() / 2) - 1
    assert (ours - (alpha * x_t - sigma * v)).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.update({"mapping.0.main.0.weight": torch.ones(1)}), "needs embeddings of CLIP"),
        (lambda w: w.pop("net.2.main.3.main.2.bias"), "lacks net.2.main.3.main.2.bias"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("net.1.")], "lacks net.1"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, said: str, tmp_path: Path) -> None:
    w = HomeWeights()
    unet(w, "yfcc", torch.zeros(1, 3, 8, 8), torch.full((1,), 0.5))
    change(w.tensors)
    torch.save(w.tensors, tmp_path / "v.pth")
    with pytest.raises(ValueError, match=said) as refusal:
        read_prior(tmp_path / "v.pth")
    assert "\n" not in str(refusal.value)
