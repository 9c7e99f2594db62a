"""Networks of NVlabs' EDM code, with its four preconditionings.

Paper       Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
            arXiv:2206.00364, Table 1.
Form        D(z, s) = c_skip z + c_out F(c_in z, c_noise) on [-1, 1], with

            edm     c_in = (s^2 + d^2)^(-1/2), c_skip = (d c_in)^2, c_out = s d c_in, c_noise = ln(s) / 4
            vp      c_in = (s^2 + 1)^(-1/2), c_skip = 1, c_out = -s, c_noise = 999 t(s)
            ve      c_in = 1, c_skip = 1, c_out = s, c_noise = ln(s / 2)
            iddpm   as vp, but c_noise is the step whose level is nearest, and F predicts a variance too
Network     "DDPM++" and "NCSN++" by `deepinv`'s NCSNpp and "ADM" by its ADMUNet, which keep NVlabs' names.
Deviates    The levels of `edm` are those of NVlabs' own sampler, 0.002 to 80, where their network lets any through.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..base import Prior
from .adm import check_label
from .checkpoint_files import build, class_name, metadata_of, read_checkpoint, save_network, weights_of
from .network_time import DiscreteTime, EDMTime, NetworkTime, VETime, VPTime
from .parametrised import ParametrisedPrior

if TYPE_CHECKING:  # `deepinv` takes seconds to load, which a start of the program should not
    from deepinv.models import ADMUNet, NCSNpp

Preconditioning = Literal["edm", "vp", "ve", "iddpm"]
CLASSES = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


class NVLabsNetwork(nn.Module):
    """F under the names of NVlabs: (B, C, H, W), c_noise (B,) and labels (B,) to (B, C, H, W).

    For `ve`, whose output is the negative noise and whose c_noise is that of half the level, this module returns the
    noise and takes ln s. `levels` are the M + 1 levels of `iddpm`, falling to 0.
    """

    u: Tensor | None

    def __init__(
        self, model: "ADMUNet | NCSNpp", preconditioning: Preconditioning, *, levels: Tensor | None = None
    ) -> None:
        super().__init__()
        self.model, self.preconditioning = model, preconditioning
        self.register_buffer("u", levels)
        for norm in model.modules():
            if isinstance(norm, nn.GroupNorm):  # at least four channels in a group, which `deepinv` leaves out
                norm.num_groups = min(32, norm.num_channels // 4)

    @property
    def classes(self) -> int | None:
        return None if self.model.map_label is None else int(self.model.map_label.in_features)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        onehot = None if label is None else nn.functional.one_hot(label, self.classes or 0).to(x.dtype)
        if self.preconditioning == "ve":
            return -self.model.forward_unet(x, c_noise - np.log(2), class_labels=onehot)
        return self.model.forward_unet(x, c_noise.to(x.dtype), class_labels=onehot)


class NVLabsEDMPrior(ParametrisedPrior):
    """A denoiser by a network of NVlabs' EDM code; see the module's docstring for its formulas.

    network      the U-Net
    shape        (C, H, W) it was trained on
    class_label  the class that images belong to, for a network with classes
    sigma_data   d of `edm`, on [-1, 1]
    """

    network: NVLabsNetwork

    def __init__(
        self,
        network: NVLabsNetwork,
        *,
        shape: tuple[int, int, int],
        class_label: int | None = None,
        sigma_data: float = 0.5,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_label(class_label, network.classes)
        kind = network.preconditioning
        super().__init__(
            network,
            "edm" if kind == "edm" else "epsilon",
            _schedule(network, sigma_data),
            shape=shape,
            value_range=value_range,
            learned_variance=kind == "iddpm",
            class_label=class_label,
        )
        self.step_variance = self.learned_variance

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        preconditioning: Preconditioning | None = None,
        sigma_data: float = 0.5,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        key: str = "ema",
        sha256: str | None = None,
        trust_pickle: bool = False,
    ) -> "NVLabsEDMPrior":
        """Read a network of NVlabs: a state dict as `.safetensors` or `.pt`, or, with `trust_pickle`, its `.pkl`.

        The weights determine the network. NVlabs' code is not needed, and no code of the pickle is run.

        preconditioning  None: from the pickle or a file of `save`; refused where neither tells it
        value_range      what [-1, 1] of the network is here: (2, 4) for velocities normalised as v / (1 km/s) - 3
        key              the entry of a file that holds several networks
        sha256           expected hash of the file, None: not checked

        Raises ValueError if the file or the settings do not fit.
        """
        if preconditioning is not None and preconditioning not in get_args(Preconditioning):
            raise ValueError(
                f"preconditioning must be one of {', '.join(get_args(Preconditioning))}, got {preconditioning!r}"
            )
        content = read_checkpoint(weights, sha256=sha256, trust_pickle=trust_pickle)
        if isinstance(content, Mapping) and key in content:
            content = content[key]
        tensors = weights_of(content, weights)
        if not any(name.startswith("model.") for name in tensors):  # the network without its preconditioning
            tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        levels = tensors.get("u")
        found = CLASSES.get(class_name(content) or "") or (None if levels is None else "iddpm") or stated(weights)
        if preconditioning is None and found is None:
            raise ValueError(
                f"{weights} does not tell its preconditioning, and its tensors are alike for edm, vp and ve: give "
                "preconditioning="
            )
        kind: Preconditioning = preconditioning or found  # type: ignore[assignment]
        if (kind == "iddpm") != (levels is not None):
            raise ValueError(
                f"preconditioning={kind} does not fit {weights}: levels `u` belong to iddpm, and only to it"
            )
        try:
            model, settings = _settings(tensors)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{weights} must hold a network of NVlabs' EDM: {error}") from error
        network = build(
            lambda: NVLabsNetwork(model(**settings, pretrained=None), kind, levels=levels), tensors, weights
        )
        side = settings["img_resolution"]
        return cls(
            network,
            shape=(settings["in_channels"], side, side),
            class_label=class_label,
            sigma_data=sigma_data,
            value_range=(value_range[0], value_range[1]),
        )

    def save(self, path: str | Path) -> None:
        """Write the weights under their own names to a `.safetensors` file, to be loaded with the same settings."""
        save_network(self.network, path, {"preconditioning": self.network.preconditioning})

    @classmethod
    def example(cls) -> "NVLabsEDMPrior":
        return cls(_example_network("edm"), shape=(1, 8, 8), class_label=1)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        """Every preconditioning."""
        return {
            "example": cls.example(),
            **{kind: cls(_example_network(kind), shape=(1, 8, 8), class_label=1) for kind in ("vp", "ve", "iddpm")},
        }


def _example_network(preconditioning: Preconditioning) -> NVLabsNetwork:
    from deepinv.models import ADMUNet

    iddpm = preconditioning == "iddpm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ADMUNet(
            img_resolution=8,
            in_channels=1,
            out_channels=2 if iddpm else 1,
            label_dim=3,
            model_channels=32,
            channel_mult=(1, 1),
            num_blocks=1,
            attn_resolutions=(),
            pretrained=None,
        )
        for parameter in model.parameters():  # some are zero at first, which would hide mistakes
            nn.init.normal_(parameter, std=0.05)
    levels = torch.cat([torch.logspace(2, -2, 50), torch.zeros(1)]) if iddpm else None
    return NVLabsNetwork(model, preconditioning, levels=levels)


def stated(path: str | Path) -> str | None:
    """The preconditioning in a file of `save`."""
    if Path(path).suffix != ".safetensors":
        return None
    stated = metadata_of(path).get("preconditioning")
    return stated if stated in CLASSES.values() else None


def _schedule(network: NVLabsNetwork, sigma_data: float) -> NetworkTime:
    if network.preconditioning == "edm":
        return EDMTime(sigma_data)
    if network.preconditioning == "vp":
        return VPTime(0.1, 20.0, t_min=1e-5)
    if network.preconditioning == "ve":
        return VETime(0.02, 100.0, time_input="log")
    assert network.u is not None
    levels = network.u[:-1].flip(0).double()
    return DiscreteTime(tuple((1 / (1 + levels**2)).tolist()), "nearest")


def _settings(tensors: Mapping[str, Tensor]) -> tuple["type[ADMUNet | NCSNpp]", dict[str, Any]]:
    """The class of the network and its arguments, from weights with names like enc.32x32_block0.conv0.weight."""
    from deepinv.models import ADMUNet, NCSNpp

    blocks: dict[int, set[int]] = {}
    attention = set()
    for name in tensors:
        if not name.startswith("model.enc."):
            continue
        size, _, place = name.split(".")[2].partition("_")
        side = int(size.split("x")[0])
        blocks.setdefault(side, set())
        if place.startswith("block"):
            blocks[side].add(int(place.removeprefix("block")))
            if ".qkv." in name:
                attention.add(side)
    if not blocks or not blocks[max(blocks)]:
        raise ValueError("it has no blocks enc.*_block*")
    sides = sorted(blocks, reverse=True)
    adm = "model.out_norm.weight" in tensors
    first = tensors[f"model.enc.{sides[0]}x{sides[0]}_conv.weight"]
    embedded, noise = tensors["model.map_layer0.weight"].shape
    fourier = "model.map_noise.freqs" in tensors
    width = noise // 2 if fourier else noise
    outs = [tensors[f"model.enc.{side}x{side}_block0.conv1.weight"].shape[0] for side in sides]
    if any(out % width for out in outs) or embedded % width:
        raise ValueError(f"its widths {outs} are no multiples of {width}")
    settings: dict[str, Any] = {
        "img_resolution": sides[0],
        "in_channels": first.shape[1],
        "out_channels": first.shape[1] * (2 if "u" in tensors else 1),
        "label_dim": tensors["model.map_label.weight"].shape[1] if "model.map_label.weight" in tensors else 0,
        "augment_dim": tensors["model.map_augment.weight"].shape[1] if "model.map_augment.weight" in tensors else 0,
        "model_channels": width,
        "channel_mult": [out // width for out in outs],
        "channel_mult_emb": embedded // width,
        "num_blocks": len(blocks[sides[0]]),
        "attn_resolutions": sorted(attention),
    }
    if adm:
        return ADMUNet, settings
    return NCSNpp, {**settings, "model_type": "ncsn" if fourier else "ddpm"}
