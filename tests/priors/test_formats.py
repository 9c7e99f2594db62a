"""Bad files of every format that is read by its path: one line each, and nothing in them runs."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from invdiff.priors import NCSNppPrior, NVLabsEDMPrior, read_prior
from invdiff.priors.codecs.compvis import CompVisNetwork, CompVisSpec
from invdiff.priors.identify import FORMATS
from invdiff.priors.networks.adm import ADMNetwork, ADMSpec
from invdiff.priors.networks.ddpm_network import DDPMNetwork, DDPMSpec
from invdiff.priors.networks.edm2_network import EDM2Network, EDM2Spec
from invdiff.priors.networks.jit_network import JiTNetwork, JiTSpec
from invdiff.priors.networks.pnp_flow_network import PnPFlowNetwork, PnPFlowSpec

Weights = dict[str, Tensor]
ADM = ADMSpec(1, 1, 64, (1, 1), 1, (1,), None, True, True)
SIZE = {"image_size": 8}


def named(network: nn.Module, prefix: str = "") -> Weights:
    return {prefix + name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def consistency() -> Weights:
    weights = named(ADMNetwork(ADM))
    return {n: t[..., None] if n.endswith(("qkv.weight", "proj_out.weight")) else t for n, t in weights.items()}


def latent_diffusion() -> Weights:
    codec = CompVisNetwork(CompVisSpec(1, 1, 1, 32, (1, 1), 1, 4, ((), ()), True))
    levels = {"alphas_cumprod": torch.linspace(0.99, 0.01, 1000)}
    return {**named(ADMNetwork(ADM), "model.diffusion_model."), **named(codec, "first_stage_model."), **levels}


def drunet() -> Weights:
    from deepinv.models import DRUNet

    return named(DRUNet(in_channels=1, out_channels=1, nc=(2, 3, 4, 5), nb=2, pretrained=None))


def v_diffusion() -> Weights:
    blocks = {"net.0": (9, 8), "net.1.main.1": (8, 8), "net.2": (16, 1)}  # channels into a block and out of it
    weights = {"timestep_embed.weight": torch.ones(4, 1)}
    for at, (into, out) in blocks.items():
        weights |= {f"{at}.main.0.weight": torch.ones(8, into, 3, 3), f"{at}.main.0.bias": torch.ones(8)}
        weights |= {f"{at}.main.2.weight": torch.ones(out, 8, 3, 3), f"{at}.main.2.bias": torch.ones(out)}
        weights |= {} if into == out else {f"{at}.skip.weight": torch.ones(out, into, 1, 1)}
    return weights


# Of each reader: a small file, its format, and the settings that it needs.
FILES: dict[str, tuple[Callable[[], Weights], str, dict[str, Any]]] = {
    "guided_diffusion": (lambda: named(ADMNetwork(ADM)), "adm", SIZE),
    "consistency": (consistency, "consistency", SIZE),
    "nvlabs": (lambda: named(NVLabsEDMPrior.example().network), "edm", {"class_label": 1}),
    "score_sde": (lambda: named(NCSNppPrior.example().network), "ve", SIZE),
    "score_sde, DDPM": (
        lambda: named(DDPMNetwork(DDPMSpec(1, 32, (1, 1), 1, ()), exploding=False, sigmas=torch.ones(3))),
        "vp_steps",
        SIZE,
    ),
    "drunet": (drunet, "deepinv_drunet", {}),
    "latent_diffusion": (latent_diffusion, "ldm", {}),
    "edm2": (lambda: named(EDM2Network(EDM2Spec(4, 1, (64, 64), 8, 8, 1, (), None)), "unet."), "edm2", {}),
    "jit": (
        lambda: named(JiTNetwork(JiTSpec(1, 2, 4, 8, 2, 2, 2, 4, 1, 1, 3)), "net."),
        "jit",
        {"start": 1},
    ),
    "pnp_flow": (
        lambda: named(PnPFlowNetwork(PnPFlowSpec(1, 32, (1, 1), 1, ()))),
        "pnp_flow",
        {**SIZE, "noise": "gaussian"},
    ),
    "v_diffusion": (v_diffusion, "v_diffusion", {}),
}


class Evil:
    """A pickle of this writes a file when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


def test_every_reader_has_a_file() -> None:
    assert {reader.__name__ for _, reader in FORMATS} == {name.partition(",")[0] for name in FILES}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    """Malicious, truncated, not finite, with a tensor less, of another shape; and each is of one format alone."""
    make, format, settings = FILES[name]
    weights = make()

    def refused(path: Path, said: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=said) as refusal:
            read_prior(path, format=format, settings=settings, **options)
        assert "\n" not in str(refusal.value)
        assert str(path) in str(refusal.value)

    save_file({n: t.contiguous() for n, t in weights.items()}, str(tmp_path / "good.safetensors"))
    read_prior(tmp_path / "good.safetensors", format=format, settings=settings)
    mark = tmp_path / "mark"
    torch.save({**weights, "more": Evil(mark)}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "more than tensors.*none of its code was run")
    refused(tmp_path / "evil.pt", "holds no weights by name", trust_pickle=True)
    assert not mark.exists()
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    refused(tmp_path / "cut.pt", "may be incomplete")
    last = next(n for n in reversed(weights) if n.endswith("weight") and n not in ("timestep_embed.weight",))
    torch.save({**weights, last: torch.full_like(weights[last], torch.inf)}, tmp_path / "inf.pt")
    refused(tmp_path / "inf.pt", "holds NaN or infinity in")
    words = r"lacks|names of|no network that is known|must hold|is not of|does not (tell|fit)|instead of|of deepinv"
    for left in list(weights)[:: 1 + len(weights) // 8]:
        torch.save({n: t for n, t in weights.items() if n != left}, tmp_path / "less.pt")
        refused(tmp_path / "less.pt", words)
        if left != "sigmas":  # any number of levels
            torch.save({**weights, left: weights[left].flatten().repeat(2)}, tmp_path / "shape.pt")
            refused(tmp_path / "shape.pt", f"{words}|out_channels|can be built|no multiples")
