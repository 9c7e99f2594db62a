"""Networks of score_sde as priors: NCSN++ and DDPM++.

Paper       Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021,
            arXiv:2011.13456.
Form        ve   x_s = z + s eps on [0, 1]; input s, output h = s times the score: z0 = x_s + s h.
            vp   x_t = alpha_t z + sqrt(1 - alpha_t^2) eps on [-1, 1]; input 999 t, output eps.
Deviates    Only networks trained on continuous times, see also `ncsnpp_network.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..base import Prior
from .checkpoint_files import build, read_checkpoint, save_network, weights_of
from .ncsnpp_network import NCSNppNetwork, NCSNppSpec
from .network_time import NetworkTime, VETime, VPTime
from .parametrised import ParametrisedPrior


class NCSNppPrior(ParametrisedPrior):
    """A denoiser by a network of score_sde; see the module's docstring for its formulas.

    network     the U-Net; `exploding` for `ve`
    image_size  side of the training images; divisible by 2 for each level but one
    """

    network: NCSNppNetwork

    def __init__(
        self, network: NCSNppNetwork, *, image_size: int = 256, value_range: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        check_size(image_size, network)
        levels = network.sigmas
        schedule: NetworkTime = VPTime(0.1, 20.0, t_min=1e-5)
        if network.exploding:
            schedule = VETime(float(levels.min()), float(levels.max()))
        super().__init__(
            network,
            "epsilon",
            schedule,
            shape=(network.spec.channels, image_size, image_size),
            value_range=value_range,
            network_range=(0.0, 1.0) if network.exploding else (-1.0, 1.0),
        )

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        image_size: int = 256,
        sde: Literal["ve", "vp"] | None = None,
        fir: bool | None = None,
        ema: bool = True,
        sha256: str | None = None,
        trust_pickle: bool = False,
    ) -> "NCSNppPrior":
        """Read a checkpoint of score_sde (`checkpoint_N.pth`) or the state dict of its network, also `.safetensors`.

        The network and its noise levels follow from the weights.

        sde     None: "ve" where time enters by Fourier features, otherwise "vp", as in the published networks
        fir     see `NCSNppSpec`; None: true of a network with an input pyramid, as in the published networks
        ema     take the averaged weights if the file holds them
        sha256  expected hash of the file, None: not checked

        Raises ValueError if the file or the settings do not fit.
        """
        if sde not in (None, "ve", "vp"):
            raise ValueError(f"sde must be 've' or 'vp', got {sde!r}")
        tensors = score_sde_weights(weights, ema=ema, sha256=sha256, trust_pickle=trust_pickle)
        fourier = "all_modules.0.W" in tensors
        exploding = fourier if sde is None else sde == "ve"
        if exploding and not fourier:
            raise ValueError(f"sde=ve needs a network trained on continuous levels, {weights} takes steps")
        return cls(load_ncsnpp(tensors, weights, exploding=exploding, fir=fir), image_size=image_size)

    def save(self, path: str | Path) -> None:
        """Write the weights under their own names to a `.safetensors` file, to be loaded with the same settings."""
        save_network(self.network, path)

    @classmethod
    def example(cls) -> "NCSNppPrior":
        return cls(example_network(exploding=True), image_size=8)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        return {"example": cls.example(), "vp": cls(example_network(exploding=False), image_size=8)}


def check_size(image_size: int, network: NCSNppNetwork) -> None:
    """ValueError unless images of this side can be halved as often as the network does."""
    step = 2 ** (len(network.spec.mults) - 1)
    if image_size % step or not image_size > 0:
        raise ValueError(f"image_size must be a multiple of {step} for this network, got {image_size}")


def score_sde_weights(
    path: str | Path, *, ema: bool = True, sha256: str | None = None, trust_pickle: bool = False
) -> dict[str, Tensor]:
    """The weights in a checkpoint of score_sde by their names; see `NCSNppPrior.load`.

    Its averaged weights have no names: they are listed in the order of the trained ones, which leaves out the buffer
    `sigmas` and the Fourier features.
    """
    content = read_checkpoint(path, sha256=sha256, trust_pickle=trust_pickle)
    if not (isinstance(content, Mapping) and "model" in content):
        return weights_of(content, path)
    tensors = weights_of(content["model"], path)
    averaged = content.get("ema")
    if not ema or averaged is None:
        return tensors
    shadow = averaged.get("shadow_params") if isinstance(averaged, Mapping) else None
    trained = [name for name in tensors if name not in ("sigmas", "all_modules.0.W")]
    if not isinstance(shadow, list) or [tuple(tensors[n].shape) for n in trained] != [tuple(w.shape) for w in shadow]:
        raise ValueError(f"{path} holds averaged weights that do not fit its model; ema=false takes the last ones")
    return tensors | weights_of(dict(zip(trained, shadow, strict=True)), path)


def load_ncsnpp(tensors: Mapping[str, Tensor], path: str | Path, *, exploding: bool, fir: bool | None) -> NCSNppNetwork:
    """The network of these weights. ValueError if they belong to another one."""
    try:
        spec, sigmas = NCSNppSpec.of(tensors, fir=fir), tensors["sigmas"]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} must hold a network of NCSN++: {error}") from error
    return build(lambda: NCSNppNetwork(spec, exploding=exploding, sigmas=sigmas), tensors, path)


def example_network(*, exploding: bool) -> NCSNppNetwork:
    """A small network for the conformance tests."""
    spec = NCSNppSpec(1, 8, (1, 2), 1, (1,), True, True, "input_skip", "output_skip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NCSNppNetwork(spec, exploding=exploding, sigmas=torch.logspace(1.7, -2, 10))
        for parameter in network.parameters():  # some are made zero, which would hide mistakes
            nn.init.normal_(parameter, std=0.1)
    return network
