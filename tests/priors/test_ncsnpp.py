"""Networks of score_sde: its checkpoints in, its denoiser out.

The network is written down here a second time, as functions of a flat list of layers in the names of score_sde.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.priors import NCSNppPrior, read_prior

Layers = list[dict[str, Tensor]]
SIDE = 8
KINDS = {
    "ve, large images": {"fourier": True, "fir": True, "inward": "input_skip", "outward": "output_skip"},
    "ve, CIFAR-10": {"fourier": True, "fir": True, "inward": "residual", "outward": "none"},
    "vp, DDPM++": {"fourier": False, "fir": False, "inward": "none", "outward": "none"},
    "vp, NCSN++": {"fourier": False, "fir": True, "inward": "residual", "outward": "none", "channels": 1},
}
WIDTH, MULTS, BLOCKS, ATTENTION = 16, (1, 2, 2), 1, (1,)
SIGMAS = torch.logspace(math.log10(50), -2, 1000, dtype=torch.float64).float()


def layers_of(kind: dict) -> Layers:
    """Random weights, in the order of score_sde's `all_modules`."""
    random = torch.Generator().manual_seed(0)
    layers: Layers = []

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3)

    def pair(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}weight": draw(*shape), f"{name}bias": draw(shape[0])}

    def block(into: int, out: int, *, resize: bool = False) -> None:
        weights = pair("GroupNorm_0.", into) | pair("Conv_0.", out, into, 3, 3) | pair("Dense_0.", out, 4 * WIDTH)
        weights |= pair("GroupNorm_1.", out) | pair("Conv_1.", out, out, 3, 3)
        layers.append(weights | (pair("Conv_2.", out, into, 1, 1) if into != out or resize else {}))

    def attention(width: int) -> None:
        mixes = [{f"NIN_{i}.W": draw(width, width), f"NIN_{i}.b": draw(width)} for i in range(4)]
        layers.append(pair("GroupNorm_0.", width) | mixes[0] | mixes[1] | mixes[2] | mixes[3])

    channels = pyramid = kind.get("channels", 3)
    if kind["fourier"]:
        layers.append({"W": 16 * torch.randn(WIDTH, generator=random)})
    layers.extend([pair("", 4 * WIDTH, WIDTH * (2 if kind["fourier"] else 1)), pair("", 4 * WIDTH, 4 * WIDTH)])
    layers.append(pair("", WIDTH, channels, 3, 3))
    skips, now = [WIDTH], WIDTH
    for level, mult in enumerate(MULTS):
        for _ in range(BLOCKS):
            block(now, mult * WIDTH)
            now = mult * WIDTH
            if level in ATTENTION:
                attention(now)
            skips.append(now)
        if level < len(MULTS) - 1:
            block(now, now, resize=True)
            if kind["inward"] == "input_skip":
                layers.append(pair("Conv_0.", now, channels, 1, 1))
            elif kind["inward"] == "residual":
                layers.append(pair("Conv2d_0.", now, pyramid, 3, 3))
                pyramid = now
            skips.append(now)
    block(now, now)
    attention(now)
    block(now, now)
    for level in reversed(range(len(MULTS))):
        for _ in range(BLOCKS + 1):
            block(now + skips.pop(), MULTS[level] * WIDTH)
            now = MULTS[level] * WIDTH
        if level in ATTENTION:
            attention(now)
        if kind["outward"] == "output_skip" or level == 0:
            layers.extend([pair("", now), pair("", channels, now, 3, 3)])
        if level:
            block(now, now, resize=True)
    return layers


def checkpoint(kind: dict, layers: Layers) -> dict:
    """As score_sde writes it: the last weights under their names, averaged ones in the order of the parameters."""
    model = {"module.sigmas": SIGMAS}
    averaged = []
    for place, weights in enumerate(layers):
        for name, tensor in weights.items():
            constant = place == 0 and name == "W"
            model[f"module.all_modules.{place}.{name}"] = tensor if constant else torch.zeros_like(tensor)
            averaged += [] if constant else [tensor]
    return {
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
        "model": model,
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": averaged},
        "step": 7,
    }


def upfirdn(x: Tensor, gain: float, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, padding, the filter (1, 3, 3, 1) in both directions, every `down`-th pixel of it."""
    rows, channels, height, width = x.shape
    wide = x.new_zeros(rows, channels, height * up, width * up)
    wide[..., ::up, ::up] = x
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = gain * torch.outer(row, row).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(wide, (*pad, *pad)), kernel, groups=channels)[..., ::down, ::down]


def home(layers: Layers, kind: dict, x: Tensor, t: Tensor) -> Tensor:
    """score_sde's NCSNpp, on images in [-1, 1], before any division by sigma."""
    it = iter(layers)

    def norm(weights: dict[str, Tensor], at: str, h: Tensor) -> Tensor:
        groups = min(h.shape[1] // 4, 32)
        return F.group_norm(h, groups, weights[f"{at}weight"], weights[f"{at}bias"], eps=1e-6)

    def halved(h: Tensor) -> Tensor:
        return upfirdn(h, 1, down=2, pad=(1, 1)) if kind["fir"] else F.avg_pool2d(h, 2)

    def doubled(h: Tensor) -> Tensor:
        if kind["fir"]:
            return upfirdn(h, 4, up=2, pad=(2, 1))
        return h.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def block(h: Tensor, resize: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        w, skip = next(it), resize(h)
        h = F.conv2d(resize(F.silu(norm(w, "GroupNorm_0.", h))), w["Conv_0.weight"], w["Conv_0.bias"], padding=1)
        h = h + F.linear(F.silu(time), w["Dense_0.weight"], w["Dense_0.bias"])[:, :, None, None]
        h = F.conv2d(F.silu(norm(w, "GroupNorm_1.", h)), w["Conv_1.weight"], w["Conv_1.bias"], padding=1)
        skip = F.conv2d(skip, w["Conv_2.weight"], w["Conv_2.bias"]) if "Conv_2.weight" in w else skip
        return (skip + h) / 2**0.5

    def attention(h: Tensor) -> Tensor:
        w, (rows, width, height, _) = next(it), h.shape
        n = norm(w, "GroupNorm_0.", h)
        q, k, v = (torch.einsum("bchw,cd->bdhw", n, w[f"NIN_{i}.W"]) + w[f"NIN_{i}.b"][:, None, None] for i in range(3))
        share = torch.einsum("bchw,bcij->bhwij", q, k) * width**-0.5
        share = share.reshape(rows, height, height, -1).softmax(-1).reshape(share.shape)
        mixed = torch.einsum("bhwij,bcij->bchw", share, v)
        return (h + torch.einsum("bchw,cd->bdhw", mixed, w["NIN_3.W"]) + w["NIN_3.b"][:, None, None]) / 2**0.5

    def plain(h: Tensor, at: str = "", **how: int) -> Tensor:
        w = next(it)
        return (F.linear if h.dim() == 2 else F.conv2d)(h, w[f"{at}weight"], w[f"{at}bias"], **how)

    if kind["fourier"]:
        angles = t.log()[:, None] * next(it)["W"] * 2 * math.pi
    else:
        half = WIDTH // 2
        angles = t[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    time = plain(torch.cat([angles.sin(), angles.cos()], 1))
    time = plain(F.silu(time))

    pyramid, h = x, plain(x, padding=1)
    skips = [h]
    for level in range(len(MULTS)):
        for _ in range(BLOCKS):
            h = block(h)
            h = attention(h) if level in ATTENTION else h
            skips.append(h)
        if level < len(MULTS) - 1:
            h = block(h, halved)
            if kind["inward"] == "input_skip":
                pyramid = halved(pyramid)
                h = plain(pyramid, "Conv_0.") + h
            elif kind["inward"] == "residual":
                pyramid = h = (plain(upfirdn(pyramid, 1, pad=(2, 2)), "Conv2d_0.", stride=2) + h) / 2**0.5
            skips.append(h)
    h = block(attention(block(h)))
    out: Tensor | None = None
    for level in reversed(range(len(MULTS))):
        for _ in range(BLOCKS + 1):
            h = block(torch.cat([h, skips.pop()], 1))
        h = attention(h) if level in ATTENTION else h
        if kind["outward"] == "output_skip" or level == 0:
            detail = plain(F.silu(norm(next(it), "", h)), padding=1)
            out = detail if out is None else doubled(out) + detail
        h = block(h, doubled) if level else h
    assert out is not None
    assert next(it, None) is None
    return out


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict:
    return KINDS[request.param]


def load(path: Path, kind: dict) -> NCSNppPrior:
    return NCSNppPrior.load(path, image_size=SIDE, fir=kind["fir"])


def test_denoiser_of_its_home(kind: dict, tmp_path: Path, normal: Callable) -> None:
    """By the score of score_sde at ten times, and Tweedie's formula."""
    layers, channels = layers_of(kind), kind.get("channels", 3)
    torch.save(checkpoint(kind, layers), tmp_path / "a.pth")
    prior = load(tmp_path / "a.pth", kind)
    assert prior.sigma_range == pytest.approx((0.01, 50.0) if kind["fourier"] else (0.0005, 76.0), rel=1e-2)
    x, eps = (normal(10, channels, SIDE, SIDE, seed=seed) for seed in (1, 2))
    t = torch.linspace(0.01, 1, 10, dtype=torch.float64).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        if kind["fourier"]:  # images on [0, 1], sigma from 0.01 to 50, score h / sigma
            sigma = 0.01 * 5000**t
            x_t = (x.sigmoid() + sigma * eps).float()
            h = home(layers, kind, 2 * x_t - 1, sigma.float().flatten())
            wanted = x_t + sigma**2 * (h / sigma)
            ours = prior.denoise(x_t, sigma.float().flatten())
        else:  # images on [-1, 1], score -h / std, told 999 t
            log_mean = -0.25 * t**2 * 19.9 - 0.05 * t
            mean, std = log_mean.exp(), (1 - (2 * log_mean).exp()).sqrt()
            x_t, sigma = (mean * x.tanh() + std * eps).float(), std / mean
            h = home(layers, kind, x_t, 999 * t.float().flatten())
            wanted = (x_t + std**2 * (-h / std)) / mean
            ours = 2 * prior.denoise(((x_t / mean + 1) / 2).float(), (sigma / 2).float().flatten()) - 1
    assert h.std() > 0.05
    error = (ours - wanted).abs().amax((1, 2, 3)) / sigma.flatten().clamp(min=1)
    assert (error < 1e-4).all(), error


def test_round_trip_through_safetensors_is_bit_equal(tmp_path: Path, normal: Callable) -> None:
    kind = KINDS["vp, NCSN++"]
    layers = layers_of(kind)
    torch.save(checkpoint(kind, layers), tmp_path / "a.pth")
    prior = load(tmp_path / "a.pth", kind)
    prior.save(tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", kind)
    found = again.network.state_dict()
    assert all(torch.equal(found[f"all_modules.{k}.{n}"], w) for k, ws in enumerate(layers) for n, w in ws.items())
    x = normal(2, kind.get("channels", 3), SIDE, SIDE, dtype=torch.float32)
    assert torch.equal(prior.denoise(x, 0.3), again.denoise(x, 0.3))


def test_the_last_weights_instead_of_the_averaged_ones(tmp_path: Path, normal: Callable) -> None:
    kind = KINDS["ve, CIFAR-10"]
    torch.save(checkpoint(kind, layers_of(kind)), tmp_path / "a.pth")
    prior = NCSNppPrior.load(tmp_path / "a.pth", image_size=SIDE, ema=False)
    x = normal(2, 3, SIDE, SIDE, dtype=torch.float32)
    assert torch.equal(prior.denoise(x, 0.3), x), "the last weights of this file are zero"


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda c: c["model"].pop("module.all_modules.3.bias"), {}, "averaged weights"),
        (lambda c: c["ema"]["shadow_params"].pop(), {}, "averaged weights.*ema=false"),
        (lambda c: c["ema"].clear(), {}, "averaged weights"),
        (lambda c: c["model"].pop("module.sigmas"), {"ema": False}, "sigmas"),
        (lambda c: c.update(model={"weight": torch.ones(2)}), {"ema": False}, "NCSN"),
        (lambda c: None, {"sde": "sub"}, "'sub'"),
        (lambda c: None, {"image_size": 10}, "multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, settings: dict, words: str, tmp_path: Path) -> None:
    kind = KINDS["ve, CIFAR-10"]
    content = checkpoint(kind, layers_of(kind))
    change(content)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=words) as refusal:
        NCSNppPrior.load(tmp_path / "a.pth", **{"image_size": SIDE, **settings})
    assert "\n" not in str(refusal.value)


def test_a_network_of_discrete_levels_is_refused(tmp_path: Path) -> None:
    kind = KINDS["vp, DDPM++"]
    torch.save(checkpoint(kind, layers_of(kind)), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="continuous levels"):
        NCSNppPrior.load(tmp_path / "a.pth", image_size=SIDE, sde="ve")


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["subvp", "vp_steps", "ve_steps"])
def test_other_processes_by_their_name(sde: str, tmp_path: Path, normal: Callable) -> None:
    """sub-VP: x_t = alpha z + (1 - alpha^2) eps. Numbered levels: DDPM's chain, and sigmas with the largest first."""
    kind = KINDS["vp, DDPM++"]
    layers = layers_of(kind)
    torch.save(checkpoint(kind, layers), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"may be vp .*, vp_steps .*, subvp .*, ve_steps .*, flow .*: give format="):
        read_prior(tmp_path / "a.pth")
    prior = read_prior(tmp_path / "a.pth", format=sde, settings={"image_size": SIDE})
    z, eps = (normal(8, 3, SIDE, SIDE, seed=seed) for seed in (1, 2))
    place = torch.tensor([0, 1, 10, 100, 400, 700, 900, 999])
    if sde == "ve_steps":
        mean, std, told = torch.ones(8), SIGMAS[place], place
    elif sde == "vp_steps":
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[place]
        mean, std, told = abar.sqrt(), (1 - abar).sqrt(), place
    else:
        t = torch.linspace(0.005, 1, 8, dtype=torch.float64)
        mean = (-0.25 * t**2 * 19.9 - 0.05 * t).exp()
        std, told = 1 - mean**2, 999 * t
    mean, std = mean.double().reshape(-1, 1, 1, 1), std.double().reshape(-1, 1, 1, 1)
    sigma = (std / mean).flatten().float()
    with torch.no_grad():
        if sde == "ve_steps":
            x_t = (z.sigmoid() + std * eps).float()
            h = home(layers, kind, 2 * x_t - 1, told.float())
            wanted, ours = x_t + std**2 * (h / std), prior.denoise(x_t, sigma)
        else:
            x_t = (mean * z.tanh() + std * eps).float()
            h = home(layers, kind, x_t, told.float())
            wanted = (x_t + std**2 * (-h / std)) / mean
            ours = 2 * prior.denoise(((x_t / mean + 1) / 2).float(), sigma / 2) - 1
    error = (ours - wanted).abs().amax((1, 2, 3)) / sigma.clamp(min=1)
    assert (error < 1e-4).all(), error


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp_steps", "ve_steps"])
def test_the_network_of_ddpm(sde: str, tmp_path: Path, normal: Callable) -> None:
    """score_sde's `ddpm`: plain sums, 32 groups, and convolutions that halve and double images."""
    random, layers = torch.Generator().manual_seed(0), []
    width, mults, blocks, attended = 32, (1, 2), 2, (1,)

    def add(**shapes: tuple[int, ...]) -> None:
        layers.append(
            {
                name.replace("__", "."): torch.randn(shape, generator=random) * math.prod(shape[1:]) ** -0.5
                for name, shape in shapes.items()
            }
        )

    def block(into: int, out: int) -> None:
        shapes = {"GroupNorm_0__weight": (into,), "GroupNorm_0__bias": (into,), "Conv_0__weight": (out, into, 3, 3)}
        shapes |= {"Conv_0__bias": (out,), "Dense_0__weight": (out, 4 * width), "Dense_0__bias": (out,)}
        shapes |= {"GroupNorm_1__weight": (out,), "GroupNorm_1__bias": (out,), "Conv_1__weight": (out, out, 3, 3)}
        add(**shapes, Conv_1__bias=(out,), **({} if into == out else {"NIN_0__W": (into, out), "NIN_0__b": (out,)}))

    def attention(out: int) -> None:
        mixes = {f"NIN_{i}__{part}": (out, out)[: 3 - len(part) - (part == "b")] for i in range(4) for part in "Wb"}
        add(GroupNorm_0__weight=(out,), GroupNorm_0__bias=(out,), **mixes)

    add(weight=(4 * width, width), bias=(4 * width,))
    add(weight=(4 * width, 4 * width), bias=(4 * width,))
    add(weight=(width, 3, 3, 3), bias=(width,))
    now, skips = width, [width]
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            block(now, mult * width)
            now = mult * width
            if level in attended:
                attention(now)
            skips.append(now)
        if level < len(mults) - 1:
            add(Conv_0__weight=(now, now, 3, 3), Conv_0__bias=(now,))
            skips.append(now)
    block(now, now)
    attention(now)
    block(now, now)
    for level in reversed(range(len(mults))):
        for _ in range(blocks + 1):
            block(now + skips.pop(), mults[level] * width)
            now = mults[level] * width
        if level in attended:
            attention(now)
        if level:
            add(Conv_0__weight=(now, now, 3, 3), Conv_0__bias=(now,))
    add(weight=(now,), bias=(now,))
    add(weight=(3, now, 3, 3), bias=(3,))

    def ddpm(x: Tensor, t: Tensor) -> Tensor:
        it = iter(layers)

        def norm(w: dict[str, Tensor], at: str, h: Tensor) -> Tensor:
            return F.group_norm(h, 32, w[f"{at}weight"], w[f"{at}bias"], eps=1e-6)

        def mixed(w: dict[str, Tensor], i: int, h: Tensor) -> Tensor:
            return torch.einsum("bchw,cd->bdhw", h, w[f"NIN_{i}.W"]) + w[f"NIN_{i}.b"][:, None, None]

        def residual(h: Tensor) -> Tensor:
            w = next(it)
            more = F.conv2d(F.silu(norm(w, "GroupNorm_0.", h)), w["Conv_0.weight"], w["Conv_0.bias"], padding=1)
            more = more + F.linear(F.silu(time), w["Dense_0.weight"], w["Dense_0.bias"])[:, :, None, None]
            more = F.conv2d(F.silu(norm(w, "GroupNorm_1.", more)), w["Conv_1.weight"], w["Conv_1.bias"], padding=1)
            return more + (mixed(w, 0, h) if "NIN_0.W" in w else h)

        def attend(h: Tensor) -> Tensor:
            w = next(it)
            n = norm(w, "GroupNorm_0.", h)
            q, k, v = (mixed(w, i, n).flatten(2) for i in range(3))
            share = (torch.einsum("bcs,bct->bst", q, k) * h.shape[1] ** -0.5).softmax(-1)
            return h + mixed(w, 3, torch.einsum("bst,bct->bcs", share, v).reshape(h.shape))

        angles = t[:, None] * torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
        w = next(it)
        time = F.linear(torch.cat([angles.sin(), angles.cos()], 1), w["weight"], w["bias"])
        w = next(it)
        time = F.linear(F.silu(time), w["weight"], w["bias"])
        w = next(it)
        h = F.conv2d(x, w["weight"], w["bias"], padding=1)
        kept = [h]
        for level in range(len(mults)):
            for _ in range(blocks):
                h = residual(h)
                h = attend(h) if level in attended else h
                kept.append(h)
            if level < len(mults) - 1:
                w = next(it)
                h = F.conv2d(F.pad(h, (0, 1, 0, 1)), w["Conv_0.weight"], w["Conv_0.bias"], stride=2)
                kept.append(h)
        h = residual(attend(residual(h)))
        for level in reversed(range(len(mults))):
            for _ in range(blocks + 1):
                h = residual(torch.cat([h, kept.pop()], 1))
            h = attend(h) if level in attended else h
            if level:
                w, h = next(it), h.repeat_interleave(2, -1).repeat_interleave(2, -2)
                h = F.conv2d(h, w["Conv_0.weight"], w["Conv_0.bias"], padding=1)
        h = F.silu(norm(next(it), "", h))
        w = next(it)
        return F.conv2d(h, w["weight"], w["bias"], padding=1)

    torch.save(checkpoint({"channels": 3}, layers), tmp_path / "a.pth")
    prior = read_prior(tmp_path / "a.pth", format=sde, settings={"image_size": SIDE})
    x, told = normal(3, 3, SIDE, SIDE, dtype=torch.float32), torch.tensor([3, 400, 990])
    with torch.no_grad():
        if sde == "ve_steps":
            s = SIGMAS[told]
            wanted = x + s.reshape(-1, 1, 1, 1) * ddpm(2 * x - 1, told.float())
            ours = prior.denoise(x, s)
        else:
            abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[told].float()
            s = (1 / abar - 1).sqrt()
            wanted = x - s.reshape(-1, 1, 1, 1) * ddpm(abar.sqrt().reshape(-1, 1, 1, 1) * x, told.float())
            ours = 2 * prior.denoise((x + 1) / 2, s / 2) - 1
    assert ((ours - wanted).abs().amax((1, 2, 3)) / s.clamp(min=1) < 1e-5).all()
