"""Models of latent-diffusion in one file: its autoencoders and its U-Net, written down a second time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adm_home import home, state_dict
from helpers import HomeWeights
from invdiff.priors import LatentPrior, read_prior

UNET = {"mults": (1, 2), "blocks": 1, "attention": (1,), "width": 32, "channels": 3, "variance": False}
KINDS = {
    "vq": {**UNET, "plain_resize": True, "scale_shift": False, "head": 32},
    "kl": {**UNET, "head": None, "heads": 8},
}
MULTS, BLOCKS, WIDTH = (1, 2), 1, 32


def block(w: HomeWeights, at: str, h: Tensor, out: int) -> Tensor:
    more = w.conv(f"{at}.conv1", F.silu(w.norm(f"{at}.norm1", h)), out, padding=1)
    more = w.conv(f"{at}.conv2", F.silu(w.norm(f"{at}.norm2", more)), out, padding=1)
    return more + (h if h.shape[1] == out else w.conv(f"{at}.nin_shortcut", h, out, 1))


def attention(w: HomeWeights, at: str, h: Tensor) -> Tensor:
    n, width = w.norm(f"{at}.norm", h), h.shape[1]
    q, k, v = (w.conv(f"{at}.{part}", n, width, 1).flatten(2) for part in "qkv")
    share = (torch.einsum("bcs,bct->bst", q, k) * width**-0.5).softmax(-1)
    return h + w.conv(f"{at}.proj_out", torch.einsum("bst,bct->bcs", share, v).reshape(h.shape), width, 1)


def middle(w: HomeWeights, at: str, h: Tensor) -> Tensor:
    h = block(w, f"{at}.mid.block_1", h, h.shape[1])
    return block(w, f"{at}.mid.block_2", attention(w, f"{at}.mid.attn_1", h), h.shape[1])


def encoded(w: HomeWeights, kind: str, x: Tensor) -> Tensor:
    double = 2 if kind == "kl" else 1
    h = w.conv("encoder.conv_in", x, WIDTH, padding=1)
    for level, mult in enumerate(MULTS):
        for k in range(BLOCKS):
            h = block(w, f"encoder.down.{level}.block.{k}", h, mult * WIDTH)
            h = attention(w, f"encoder.down.{level}.attn.{k}", h) if level == 1 and kind == "kl" else h
        if level < len(MULTS) - 1:
            h = w.conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), mult * WIDTH, stride=2)
    h = F.silu(w.norm("encoder.norm_out", middle(w, "encoder", h)))
    return w.conv("quant_conv", w.conv("encoder.conv_out", h, 3 * double, padding=1), 3 * double, 1)[:, :3]


def decoded(w: HomeWeights, kind: str, z: Tensor) -> Tensor:
    if kind == "vq":
        book = w("quantize.embedding.weight", 10, 3)
        far = (z[:, None] - book[None, :, :, None, None]).square().sum(2)
        z = book[far.argmin(1)].movedim(-1, 1)
    h = middle(
        w, "decoder", w.conv("decoder.conv_in", w.conv("post_quant_conv", z, 3, 1), MULTS[-1] * WIDTH, padding=1)
    )
    for level in reversed(range(len(MULTS))):
        for k in range(BLOCKS + 1):
            h = block(w, f"decoder.up.{level}.block.{k}", h, MULTS[level] * WIDTH)
            h = attention(w, f"decoder.up.{level}.attn.{k}", h) if level == 1 and kind == "kl" else h
        if level:
            h = h.repeat_interleave(2, -1).repeat_interleave(2, -2)
            h = w.conv(f"decoder.up.{level}.upsample.conv", h, h.shape[1], padding=1)
    return w.conv("decoder.conv_out", F.silu(w.norm("decoder.norm_out", h)), 1, padding=1)


def checkpoint(kind: str, w: HomeWeights, unet: dict[str, Tensor], abar: Tensor) -> dict[str, Tensor]:
    """As Lightning writes it, with averaged weights whose names have no dots; the last weights are zero."""
    named = {f"model.diffusion_model.{name}": torch.zeros_like(t) for name, t in unet.items()}
    named |= {f"model_ema.diffusion_model{name.replace('.', '')}": t for name, t in unet.items()}
    named |= {f"first_stage_model.{name}": t for name, t in w.tensors.items()}
    named |= {"betas": 1 - abar / torch.cat([torch.ones(1), abar[:-1]]), "alphas_cumprod": abar}
    return {
        **named,
        "model_ema.decay": torch.tensor(0.999),
        **({"scale_factor": torch.tensor(0.2)} if kind == "kl" else {}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_model_of_its_home(kind: str, tmp_path: Path, normal: Callable) -> None:
    w, unet, scale = HomeWeights(), state_dict(KINDS[kind]), 0.2 if kind == "kl" else 1.0
    images, codes = normal(2, 1, 16, 16, dtype=torch.float32).sigmoid(), normal(2, 3, 8, 8, seed=3, dtype=torch.float32)
    with torch.no_grad():
        wanted_codes, wanted_images = scale * encoded(w, kind, 2 * images - 1), decoded(w, kind, codes / scale)
    abar = (1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).cumprod(0)
    torch.save({"state_dict": checkpoint(kind, w, unet, abar), "global_step": 7}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"may be ldm \(.*32 channels.*\), ldm8 \(.*eight heads"):
        read_prior(tmp_path / "model.ckpt")
    prior = read_prior(tmp_path / "model.ckpt", format="ldm" if kind == "vq" else "ldm8")
    assert isinstance(prior, LatentPrior)
    assert prior.codec is not None
    assert prior.codec.code_shape((1, 16, 16)) == (3, 8, 8)
    assert torch.allclose(prior.codec.encode(images), wanted_codes, atol=1e-5)
    assert torch.allclose(2 * prior.codec.decode(codes) - 1, wanted_images, atol=1e-5)
    places = torch.tensor([5, 700])
    mean, std = (a.reshape(-1, 1, 1, 1) for a in (abar[places].sqrt(), (1 - abar[places]).sqrt()))
    with torch.no_grad():
        eps = home(unet, KINDS[kind], mean * codes, places, None)
        ours = prior.diffusion.denoise(codes, (std / mean).flatten())
    assert ((ours - (codes - std / mean * eps)).abs() / (1 + std / mean)).max() < 1e-5
    with pytest.raises(ValueError, match="must be multiples of 2"):
        prior.diffusion.denoise(codes[..., :7, :7], 0.5)
    assert prior.diffusion.unit == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update({"model.diffusion_model.a.transformer_blocks.0.w": torch.ones(1)}), "from_single_file"),
        (lambda c: c.pop("alphas_cumprod"), "must hold the noise levels"),
        (lambda c: c.pop("scale_factor"), "does not tell the scale of its codes: give scale="),
        (lambda c: c.pop("first_stage_model.decoder.norm_out.bias"), "lacks decoder.norm_out.bias"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, said: str, tmp_path: Path) -> None:
    w = HomeWeights()
    decoded(w, "kl", torch.zeros(1, 3, 4, 4))
    encoded(w, "kl", torch.zeros(1, 1, 8, 8))
    content = checkpoint("kl", w, state_dict(KINDS["kl"]), torch.linspace(0.99, 0.01, 1000))
    change(content)
    torch.save({"state_dict": content}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=said) as refusal:
        read_prior(tmp_path / "model.ckpt", format="ldm8")
    assert "\n" not in str(refusal.value)
