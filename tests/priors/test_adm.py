"""Networks of guided-diffusion: its state dicts in, its denoiser out.

The network is written down here a second time, as functions of a state dict in the names of guided-diffusion.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from invdiff.priors import ADMPrior, read_prior

Weights = dict[str, Tensor]
STEPS = [0, 1, 10, 50, 100, 250, 500, 750, 900, 999]
SIDE = 8
PLAIN = {"mults": (1, 2), "blocks": 1, "attention": (1,), "head": 16}
KINDS = {
    "ffhq_10m": PLAIN,
    "imagenet, classes": {**PLAIN, "classes": 10, "blocks": 2},
    "128": {**PLAIN, "heads": 4, "head": None},
    "64": {**PLAIN, "new_order": True, "noise": "cosine", "classes": 10},
    "old": {**PLAIN, "plain_resize": True, "scale_shift": False, "variance": False, "channels": 1},
    "512": {**PLAIN, "mults": (0.5, 1, 1), "attention": (1, 2), "width": 64},
}


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


def load(path: Path, kind: dict, **settings: object) -> ADMPrior:
    how = {"head_channels": kind["head"], "new_attention_order": kind.get("new_order", False)}
    how |= {"noise": kind.get("noise", "linear"), "class_label": 3 if kind.get("classes") else None}
    return ADMPrior.load(path, image_size=SIDE, heads=kind.get("heads", 4), **{**how, **settings})  # type: ignore[arg-type]


def alphas_cumprod(noise: str) -> list[float]:
    if noise == "linear":
        return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0).tolist()
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - (1 - f[1:] / f[:-1]).clamp(max=0.999)).cumprod(0).tolist()


@pytest.mark.parametrize("name", KINDS)
def test_denoiser_of_its_home(name: str, tmp_path: Path, normal: Callable) -> None:
    """At ten of its steps, in its own coordinates: x_k on [-1, 1], eps, and pred_xstart of it."""
    kind = KINDS[name]
    weights = state_dict(kind)
    torch.save(weights, tmp_path / "a.pt")
    prior = load(tmp_path / "a.pt", kind)
    channels, rows = kind.get("channels", 3), len(STEPS)
    abar = torch.tensor(alphas_cumprod(kind.get("noise", "linear")))[STEPS].reshape(-1, 1, 1, 1)
    z, eps = (normal(rows, channels, SIDE, SIDE, seed=seed) for seed in (1, 2))
    x_k = (abar.sqrt() * z.tanh() + (1 - abar).sqrt() * eps).float()
    label = torch.full((rows,), 3) if kind.get("classes") else None
    with torch.no_grad():
        said = home(weights, kind, x_k, torch.tensor(STEPS), label)[:, :channels]
    assert said.std() > 0.1
    z0 = x_k / abar.sqrt() - (1 / abar - 1).sqrt() * said
    sigma = (1 / abar - 1).sqrt()
    ours = 2 * prior.denoise((x_k / abar.sqrt() + 1).float() / 2, sigma.flatten().float() / 2) - 1
    error = (ours - z0).abs().amax((1, 2, 3)) / sigma.flatten().clamp(min=1)
    assert (error < 1e-4).all(), error


def test_between_two_steps_the_nearest_can_be_told(tmp_path: Path, normal: Callable) -> None:
    torch.save(state_dict(PLAIN), tmp_path / "a.pt")
    abar = alphas_cumprod("linear")
    at, near = (((1 / abar[500] - 1) ** 0.5) * factor / 2 for factor in (1, 1.001))
    x = normal(2, 3, SIDE, SIDE, dtype=torch.float32)
    told = {}
    for rule in ("nearest", "interpolate"):
        prior = load(tmp_path / "a.pt", PLAIN, rule=rule)
        prior.network.register_forward_pre_hook(lambda _, args, rule=rule: told.setdefault(rule, []).append(args[1]))
        prior.denoise(x, at)
        prior.denoise(x, near)
    assert torch.equal(told["nearest"][0], told["nearest"][1])
    assert 500.01 < told["interpolate"][1][0] < 500.5


def test_round_trip_through_safetensors_is_bit_equal(tmp_path: Path, normal: Callable) -> None:
    weights = state_dict(PLAIN)
    torch.save(weights, tmp_path / "a.pt")
    prior = load(tmp_path / "a.pt", PLAIN)
    prior.save(tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", PLAIN)
    assert {name: (w == weights[name]).all() for name, w in again.network.state_dict().items()} == dict.fromkeys(
        weights, torch.tensor(True)
    )
    x = normal(2, 3, SIDE, SIDE, dtype=torch.float32)
    assert torch.equal(prior.denoise(x, 0.3), again.denoise(x, 0.3))
    save_file(weights, str(tmp_path / "c.safetensors"))
    assert (tmp_path / "b.safetensors").stat().st_size == (tmp_path / "c.safetensors").stat().st_size


def test_range_of_its_levels(tmp_path: Path) -> None:
    """On [0, 1] half of what they are on [-1, 1], where DDPM's are 0.01 to 157."""
    torch.save(state_dict(PLAIN), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt", PLAIN).sigma_range == pytest.approx((0.005, 78.7), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda w: w.pop("out.0.bias"), {}, "lacks out.0.bias"),
        (lambda w: w.pop("time_embed.0.weight"), {}, "time_embed.0.weight"),
        (lambda w: w.clear() or w.update(weight=torch.ones(2)), {}, "guided-diffusion"),
        (
            lambda w: w.update({"out.2.weight": torch.ones(5, 32, 3, 3), "out.2.bias": torch.ones(5)}),
            {},
            "out_channels must be 3 or 6, got 5",
        ),
        (lambda w: None, {"class_label": 1}, "without classes, got 1"),
        (lambda w: None, {"head_channels": 24}, "not divisible|no such network"),
        (lambda w: None, {"noise": "sqrt"}, "'sqrt'"),
        (
            lambda w: w.update({"label_emb.weight": torch.ones(10, 128)}),
            {},
            "class_label must be .* 10 classes, got None",
        ),
        (lambda w: w.update({"label_emb.weight": torch.ones(10, 128)}), {"class_label": 10}, "10 classes.*got 10"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, settings: dict, words: str, tmp_path: Path) -> None:
    weights = state_dict(PLAIN)
    change(weights)
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words) as refusal:
        load(tmp_path / "a.pt", PLAIN, **settings)
    assert "\n" not in str(refusal.value)


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        ADMPrior(ADMPrior.example().network, image_size=15)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["consistency", "edm"])
def test_consistency_models_and_their_teachers(format: str, tmp_path: Path, normal: Callable) -> None:
    """Attention by 1x1 convolutions of images; the tensors do not tell one from the other."""
    kind = {**PLAIN, "head": 64, "width": 64, "classes": 10, "variance": False, "new_order": True}
    weights = state_dict(kind)
    names = [name for name in weights if name.endswith(("qkv.weight", "proj_out.weight"))]
    torch.save({**weights, **{name: weights[name][..., None] for name in names}}, tmp_path / "cd.pt")
    with pytest.raises(ValueError, match=r"may be consistency \(.*\), edm \(its EDM teacher"):
        read_prior(tmp_path / "cd.pt")
    prior = read_prior(tmp_path / "cd.pt", format=format, settings={"image_size": SIDE, "class_label": 3})
    s = torch.tensor([0.002, 0.01, 0.1, 0.5, 1, 5, 20, 80]).reshape(-1, 1, 1, 1)
    z = normal(8, 3, SIDE, SIDE, seed=1).tanh().float() + s * normal(8, 3, SIDE, SIDE, seed=2).float()
    with torch.no_grad():
        scaled, label = z / (s**2 + 0.25).sqrt(), torch.full((8,), 3)
        out = home(weights, kind, scaled, 1000 * 0.25 * (s.flatten() + 1e-44).log(), label)
        low = 0.002 if format == "consistency" else 0
        wanted = 0.25 / ((s - low) ** 2 + 0.25) * z + (s - low) * 0.5 / (s**2 + 0.25).sqrt() * out
        ours = 2 * prior.denoise((z + 1) / 2, s.flatten() / 2) - 1
    assert ((ours - wanted).abs() / s.clamp(min=1)).max() < 1e-5
    assert torch.allclose(prior.denoise(z, 0.0005), z, rtol=1e-6, atol=1e-6) == (format == "consistency")
    assert prior.sigma_range == (0.001, 40)
