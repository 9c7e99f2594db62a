"""Networks of guided-diffusion: its state dicts in, its denoiser out."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adm_home import home, state_dict
from invdiff.priors import ADMPrior, read_prior

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("adm64", {**PLAIN, "mults": (1, 1, 1, 1), "head": 64, "width": 64, "new_order": True, "noise": "cosine"}),
        ("adm128", {**PLAIN, "mults": (1, 1, 1, 1, 1), "head": None, "heads": 4, "width": 64}),
    ],
)
def test_networks_for_smaller_images_need_their_format(
    format: str, kind: dict, tmp_path: Path, normal: Callable
) -> None:
    """OpenAI's networks for 64 and 128 pixels have other heads or another schedule, which the tensors do not tell."""
    weights, side = state_dict(kind), 16
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"may be adm \(.*linear noise\), {format} \("):
        read_prior(tmp_path / "a.pt")
    prior = read_prior(tmp_path / "a.pt", format=format, settings={"image_size": side})
    abar = torch.tensor(alphas_cumprod(kind.get("noise", "linear"))[500], dtype=torch.float64)
    x, sigma = normal(2, 3, side, side, dtype=torch.float32), float((1 / abar - 1).sqrt())
    with torch.no_grad():
        eps = home(weights, kind, (abar.sqrt() * x).float(), torch.full((2,), 500), None)[:, :3]
    ours = 2 * prior.denoise((x + 1) / 2, sigma / 2) - 1
    assert (ours - (x - sigma * eps)).abs().max() < 1e-5 * max(1, sigma)
