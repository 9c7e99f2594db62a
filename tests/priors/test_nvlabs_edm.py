"""Networks of NVlabs' EDM code: its state dicts and its pickles in, its denoiser out."""

import math
import pickle
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deepinv.models import ADMUNet, NCSNpp
from torch import Tensor, nn

from invdiff import configs
from invdiff.priors import NVLabsEDMPrior, read_prior

SIDE, CHANNELS, CLASSES = 4, 3, 5
KINDS = {
    "edm, ADM": ("edm", "adm", True),
    "edm, DDPM++": ("edm", "ddpm", False),
    "edm, NCSN++": ("edm", "ncsn", False),
    "vp": ("vp", "ddpm", True),
    "ve": ("ve", "ncsn", False),
    "iddpm": ("iddpm", "adm", True),
}
CLASS_NAMES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond"}


def unet(architecture: str, *, classes: int, out: int) -> ADMUNet | NCSNpp:
    """A network of NVlabs: that of deepinv, with groups as NVlabs has them (of four channels or more, 32 at most)."""
    settings: dict[str, Any] = {
        "img_resolution": SIDE,
        "in_channels": CHANNELS,
        "out_channels": out,
        "label_dim": classes,
        "model_channels": 64 if architecture == "adm" else 32,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attn_resolutions": [2],
        "pretrained": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ADMUNet(**settings) if architecture == "adm" else NCSNpp(model_type=architecture, **settings)
        for name, parameter in made.named_parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 10
            nn.init.normal_(parameter, std=0.5 if "norm" in name else fan**-0.5)
    for norm in made.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups = min(32, norm.num_channels // 4)
    return made.eval()


def levels_of_iddpm(m: int = 1000) -> Tensor:
    """u_j of the EDM paper's table 1: u_M = 0 and u_(j-1)^2 = (u_j^2 + 1) / max(abar_(j-1) / abar_j, C_1) - 1."""

    def abar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (m * (0.008 + 1))) ** 2

    u = [0.0]
    for j in range(m, 0, -1):
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(abar(j - 1) / abar(j), 0.001) - 1))
    return torch.tensor(u)


@cache
def checkpoint(kind: str) -> tuple[ADMUNet | NCSNpp, dict[str, Tensor]]:
    """A network and its state dict under the names of NVlabs."""
    preconditioning, architecture, labelled = KINDS[kind]
    iddpm = preconditioning == "iddpm"
    out, classes = CHANNELS * (2 if iddpm else 1), CLASSES if labelled else 0
    network = unet(architecture, classes=classes, out=out)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    return network, weights | ({"u": levels_of_iddpm()} if iddpm else {})


def home(kind: str, z: Tensor, s: Tensor) -> Tensor:
    """D(z, s) as in table 1 of the EDM paper, on [-1, 1], for class 2."""
    preconditioning, _, labelled = KINDS[kind]
    network, weights = checkpoint(kind)
    s = s.reshape(-1, 1, 1, 1)
    c_skip, c_out, c_in, c_noise = {
        "edm": (0.25 / (s**2 + 0.25), s * 0.5 / (0.25 + s**2).sqrt(), 1 / (0.25 + s**2).sqrt(), s.log() / 4),
        "vp": (1, -s, 1 / (s**2 + 1).sqrt(), 999 * ((0.01 + 39.8 * (1 + s**2).log()).sqrt() - 0.1) / 19.9),
        "ve": (1, s, 1, (s / 2).log()),
        "iddpm": (1, -s, 1 / (s**2 + 1).sqrt(), None),
    }[preconditioning]
    if c_noise is None:
        c_noise = 999 - (s.flatten()[:, None] - weights["u"]).abs().argmin(1).float()
    label = torch.eye(CLASSES)[[2] * len(z)] if labelled else None
    with torch.no_grad():
        said = network.forward_unet(c_in * z, c_noise.flatten(), class_labels=label)[:, :CHANNELS]
    assert said.std() > 0.1
    return c_skip * z + c_out * said


def ten_levels(prior: NVLabsEDMPrior) -> Tensor:
    low, high = prior.schedule.sigma_range
    return torch.logspace(math.log10(low) + 1e-3, math.log10(min(high, 100.0)) - 1e-3, 10)


def load(path: Path, kind: str, **settings: Any) -> NVLabsEDMPrior:
    return NVLabsEDMPrior.load(path, **{"class_label": 2 if KINDS[kind][2] else None, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_of_its_home(kind: str, tmp_path: Path, normal: Callable) -> None:
    torch.save(checkpoint(kind)[1], tmp_path / "a.pt")
    prior = load(tmp_path / "a.pt", kind, preconditioning=KINDS[kind][0])
    s = ten_levels(prior)
    z, eps = (normal(10, CHANNELS, SIDE, SIDE, seed=seed, dtype=torch.float32) for seed in (1, 2))
    z = z.tanh() + s.reshape(-1, 1, 1, 1) * eps
    error = (2 * prior.denoise((z + 1) / 2, s / 2) - 1 - home(kind, z, s)).abs().amax((1, 2, 3))
    assert (error < 1e-4 * s.clamp(min=1)).all(), error


# -- files -------------------------------------------------------------------------------------------------------------


class _Persistent:
    """An object that is pickled in the way of NVlabs: by the source of its class, which unpickling would run."""

    def __init__(self, rebuild: Callable, class_name: str, state: dict, mark: Path) -> None:
        source = f"open({str(mark)!r}, 'w')"
        self.reduced = (
            rebuild,
            ({"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state},),
        )

    def __reduce__(self) -> tuple:
        return self.reduced


def write_pickle(path: Path, kind: str, mark: Path) -> None:
    """A network snapshot of NVlabs: every module a persistent one, the averaged network under "ema"."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: dict) -> None: ...

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]

    def persistent(thing: nn.Module, name: str) -> _Persistent:
        state = {**thing.__dict__, "_modules": {k: persistent(m, type(m).__name__) for k, m in thing._modules.items()}}
        return _Persistent(_reconstruct_persistent_obj, name, state, mark)

    network, weights = checkpoint(kind)
    whole = nn.Module()
    whole.model = network  # type: ignore[assignment]
    if "u" in weights:
        whole.register_buffer("u", weights["u"])
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        path.write_bytes(pickle.dumps({"ema": persistent(whole, CLASS_NAMES[KINDS[kind][0]]), "augment_pipe": None}))
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


@pytest.mark.parametrize("kind", ["ve", "iddpm"])
def test_a_pickle_needs_an_opt_in_and_says_its_preconditioning(kind: str, tmp_path: Path, normal: Callable) -> None:
    """None of the code that it brings is run."""
    mark = tmp_path / "mark"
    write_pickle(tmp_path / "a.pkl", kind, mark)
    with pytest.raises(ValueError, match=r"torch_utils\.persistence.*trust_pickle=true"):
        load(tmp_path / "a.pkl", kind)
    pickled = load(tmp_path / "a.pkl", kind, trust_pickle=True)
    assert not mark.exists()
    assert pickled.network.preconditioning == KINDS[kind][0]
    torch.save(checkpoint(kind)[1], tmp_path / "a.pt")
    plain = load(tmp_path / "a.pt", kind, preconditioning=KINDS[kind][0])
    x = normal(2, CHANNELS, SIDE, SIDE, dtype=torch.float32)
    assert torch.equal(pickled.denoise(x, 0.3), plain.denoise(x, 0.3))


def test_round_trip_through_safetensors_is_bit_equal(tmp_path: Path, normal: Callable) -> None:
    kind = "iddpm"
    weights = checkpoint(kind)[1]
    torch.save(weights, tmp_path / "a.pt")
    prior = load(tmp_path / "a.pt", kind)
    prior.save(tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", kind)
    assert again.network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.network.state_dict().items())
    x = normal(2, CHANNELS, SIDE, SIDE, dtype=torch.float32)
    assert torch.equal(prior.denoise(x, 0.3), again.denoise(x, 0.3))


def test_a_network_without_its_preconditioning(tmp_path: Path, normal: Callable) -> None:
    """Names without "model.", as deepinv keeps the weights of NVlabs."""
    network, weights = checkpoint("edm, DDPM++")
    torch.save(weights, tmp_path / "a.pt")
    torch.save(network.state_dict(), tmp_path / "b.pt")
    x = normal(2, CHANNELS, SIDE, SIDE, dtype=torch.float32)
    one, other = (
        load(tmp_path / name, "edm, DDPM++", preconditioning="edm").denoise(x, 0.3) for name in ("a.pt", "b.pt")
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda w: w.pop("model.out_norm.bias"), {}, "lacks model.out_norm.bias"),
        (lambda w: w.pop("model.enc.4x4_conv.weight"), {}, "EDM.*4x4_conv"),
        (lambda w: w.clear() or w.update(weight=torch.ones(2)), {}, "EDM"),
        (lambda w: None, {"class_label": None}, "5 classes"),
        (lambda w: None, {"preconditioning": "iddpm"}, "levels `u`"),
        (lambda w: None, {"preconditioning": "karras"}, "'karras'"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable, settings: dict, words: str, tmp_path: Path) -> None:
    weights = dict(checkpoint("edm, ADM")[1])
    change(weights)
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words) as refusal:
        load(tmp_path / "a.pt", "edm, ADM", **{"preconditioning": "edm", **settings})
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [
        ("blackhole", 0.5, 1.0),
        ("fwi", 1.0, 3.0),
        ("inverse_scattering", 0.5, 1.0),
        ("mri_brain", 1.0, 0.0),
        ("mri_knee", 1.0, 0.0),
        ("navier_stokes", 10.0, 0.0),
    ],
)
def test_files_of_inversebench(
    name: str, scale: float, shift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normal: Callable
) -> None:
    """Its fields are (z + shift) scale of what the network takes; its files do not tell VP from EDM."""
    config = yaml.safe_load((Path(next(iter(configs.__path__))) / "prior" / f"inversebench_{name}.yaml").read_text())
    vp = config["format"] == "vp"
    assert vp == (name == "blackhole")
    network = unet("ddpm" if vp else "adm", classes=0, out=CHANNELS)
    monkeypatch.chdir(tmp_path)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"net": {n: torch.zeros_like(t) for n, t in weights.items()}, "ema": weights}, config["path"])
    with pytest.raises(ValueError, match=r"may be edm .*, vp .*, ve .*: give format="):
        read_prior(config["path"])
    options = {key: value for key, value in config.items() if key != "_target_"}
    prior = read_prior(**options)
    assert prior.unit == scale
    s = torch.tensor([0.02, 0.5, 3.0, 70.0]).reshape(-1, 1, 1, 1)
    z = normal(4, CHANNELS, SIDE, SIDE, dtype=torch.float32) * (1 + s)
    c_skip, c_out, c_in = 0.25 / (s**2 + 0.25), s * 0.5 / (0.25 + s**2).sqrt(), 1 / (0.25 + s**2).sqrt()
    time = s.log() / 4
    if vp:
        c_skip, c_out, c_in = torch.ones(1), -s, 1 / (s**2 + 1).sqrt()
        time = 999 * ((0.01 + 39.8 * (1 + s**2).log()).sqrt() - 0.1) / 19.9
    with torch.no_grad():
        wanted = c_skip * z + c_out * network.forward_unet(c_in * z, time.flatten(), class_labels=None)
    ours = prior.denoise((z + shift) * scale, scale * s.flatten()) / scale - shift
    assert ((ours - wanted).abs() / s.clamp(min=1)).max() < 1e-5
