"""Checkpoints by their path: each format is read as its own adapter reads it, or the candidates are named."""

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from invdiff.priors import (
    ADMPrior,
    EDMPrior,
    FlowPrior,
    LatentPrior,
    LowRankMixturePrior,
    NCSNppPrior,
    NVLabsEDMPrior,
    Prior,
    load_prior,
    read_prior,
)
from invdiff.priors.networks.adm import ADMNetwork, ADMSpec
from invdiff.priors.networks.network_time import VPTime

SPEC = ADMSpec(1, 2, 32, (1, 1, 1, 1, 1, 2), 1, (), None, True, True)  # as guided-diffusion's networks of 256 pixels
SIDE, SMALL = 32, {"image_size": 32}


def adm(out: int, *, resblock_updown: bool = True) -> ADMNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ADMNetwork(replace(SPEC, out_channels=out, resblock_updown=resblock_updown))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def alike(found: Prior, wanted: Prior, side: int) -> None:
    x = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    for sigma in (0.05, 1.0):
        assert torch.allclose(found.denoise(x, sigma), wanted.denoise(x, sigma), atol=1e-5)


def test_weights_of_invdiff(tmp_path: Path) -> None:
    network, latent = EDMPrior.example(), LatentPrior.variants()["trained here"]
    network.save(tmp_path / "a.safetensors")
    alike(read_prior(tmp_path / "a.safetensors"), load_prior(weights=tmp_path / "a.safetensors"), 16)
    latent.save(tmp_path / "b.safetensors")  # type: ignore[operator]
    assert isinstance(read_prior(tmp_path / "b.safetensors"), LatentPrior)
    mixture = Path(str(files("invdiff.priors"))) / "weights" / "digits_mixture.safetensors"
    assert isinstance(read_prior(mixture), LowRankMixturePrior)


@pytest.mark.parametrize("entry", [None, "ema", "state_dict"])
def test_guided_diffusion_with_a_variance(entry: str | None, tmp_path: Path) -> None:
    """The side of the images follows from the number of levels, the averaged weights are taken."""
    network = adm(2)
    weights = dict(network.state_dict())
    torch.save(weights if entry is None else {entry: weights, "step": 3}, tmp_path / "x.pt")
    found = read_prior(tmp_path / "x.pt")
    assert isinstance(found, ADMPrior)
    assert found.shape == (1, 256, 256)
    alike(read_prior(tmp_path / "x.pt", settings=SMALL), ADMPrior(network, image_size=SIDE), SIDE)


def test_older_networks_may_have_other_heads(tmp_path: Path) -> None:
    """How many heads attention has leaves no trace in the tensors: two readings."""
    network = adm(2, resblock_updown=False)
    torch.save(dict(network.state_dict()), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"may be adm \(guided-diffusion, .*\), improved \(improved-diffusion"):
        read_prior(tmp_path / "x.pt")
    alike(read_prior(tmp_path / "x.pt", format="adm", settings=SMALL), ADMPrior(network, image_size=SIDE), SIDE)
    with pytest.raises(ValueError, match="missing 1 required keyword-only argument: 'noise'"):
        read_prior(tmp_path / "x.pt", format="improved")
    four = read_prior(tmp_path / "x.pt", format="improved", settings={"noise": "cosine"})
    assert isinstance(four, ADMPrior)
    assert (four.network.spec.head_channels, four.network.spec.heads) == (None, 4)


def test_guided_diffusion_inside_vpprecond(tmp_path: Path) -> None:
    network = adm(2)
    torch.save({"ema": {f"model.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "ffhq.pt")
    found = read_prior(tmp_path / "ffhq.pt")
    assert found.shape == (1, 256, 256)
    wanted = ADMPrior(network, image_size=SIDE, schedule=VPTime(0.1, 20.0, t_min=1e-5))
    alike(read_prior(tmp_path / "ffhq.pt", settings=SMALL), wanted, SIDE)


def test_guided_diffusion_that_may_be_a_flow(tmp_path: Path) -> None:
    network = adm(1)
    torch.save(dict(network.state_dict()), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"may be adm .*, flow_unet .*: give format="):
        read_prior(tmp_path / "x.pt")
    alike(read_prior(tmp_path / "x.pt", format="adm", settings=SMALL), ADMPrior(network, image_size=SIDE), SIDE)
    with pytest.raises(ValueError, match="missing 1 required keyword-only argument: 'image_size'"):
        read_prior(tmp_path / "x.pt", format="flow_unet")
    flow = read_prior(tmp_path / "x.pt", format="flow_unet", settings={"image_size": 32})
    assert isinstance(flow, FlowPrior)
    assert flow.shape == (1, 32, 32)


@pytest.mark.parametrize("kind", ["example", "vp", "ve", "iddpm"])
def test_networks_of_nvlabs(kind: str, tmp_path: Path) -> None:
    """Those that tell their preconditioning; the bare tensors of the others are refused, never read as edm."""
    prior = NVLabsEDMPrior.variants()[kind]
    assert isinstance(prior, NVLabsEDMPrior)
    prior.save(tmp_path / "x.safetensors")
    read = partial(read_prior, settings={"class_label": 1})
    alike(read(tmp_path / "x.safetensors"), prior, 8)
    torch.save({"ema": dict(prior.network.state_dict())}, tmp_path / "x.pt")
    if kind == "iddpm":  # its levels are among the tensors
        alike(read(tmp_path / "x.pt"), prior, 8)
        return
    with pytest.raises(ValueError, match=r"may be edm .*, vp .*, ve .*: give format="):
        read(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="does not tell its preconditioning"):
        NVLabsEDMPrior.load(tmp_path / "x.pt", class_label=1)
    alike(read(tmp_path / "x.pt", format=kind.replace("example", "edm")), prior, 8)


def test_score_sde_or_a_rectified_flow(tmp_path: Path) -> None:
    prior = NCSNppPrior.example()
    prior.save(tmp_path / "x.safetensors")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"may be ve \(score_sde, variance exploding\), vp .*, subvp .*, flow"):
        read_prior(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="missing 1 required keyword-only argument: 'image_size'"):
        read_prior(tmp_path / "x.safetensors", format="ve")
    alike(read_prior(tmp_path / "x.safetensors", format="ve", settings={"image_size": 8}), prior, 8)
    assert isinstance(read_prior(tmp_path / "x.safetensors", format="flow", settings={"image_size": 8}), FlowPrior)


def spoiled(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "unknown": {"weight": torch.zeros(3)},
        "nan": {**tensors, "out.2.bias": torch.full_like(tensors["out.2.bias"], torch.nan)},
        "cut": {n: t for n, t in tensors.items() if n != "middle_block.0.in_layers.2.weight"},
    }


@pytest.mark.parametrize(
    ("what", "said"),
    [("unknown", "no network that is known here"), ("nan", "NaN or infinity in out.2.bias"), ("cut", "it lacks")],
)
def test_refused(what: str, said: str, tmp_path: Path) -> None:
    save_file(spoiled(dict(adm(2).state_dict()))[what], str(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match=said) as error:
        read_prior(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


def test_settings_are_those_of_the_adapter(tmp_path: Path) -> None:
    torch.save(dict(adm(2).state_dict()), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"guided-diffusion.*unexpected keyword argument 'colour'"):
        read_prior(tmp_path / "x.pt", settings={"colour": 1})
    with pytest.raises(ValueError, match=r"is not of format=edm; it may be adm"):
        read_prior(tmp_path / "x.pt", format="edm")


def test_a_truncated_file(tmp_path: Path) -> None:
    torch.save(dict(adm(2).state_dict()), tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_prior(tmp_path / "y.pt")
