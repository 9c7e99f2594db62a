"""Networks of score_sde as priors: NCSN++, DDPM++ and DDPM.

Paper       Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, ICLR 2021,
            arXiv:2011.13456.
Form        ve   x_s = z + s eps on [0, 1]; input s, output h = s times the score: z0 = x_s + s h.
            vp   x_t = alpha_t z + sqrt(1 - alpha_t^2) eps on [-1, 1]; input 999 t, output eps.
            subvp  x_t = alpha_t z + (1 - alpha_t^2) eps, otherwise as vp.
            ve_steps, vp_steps  trained on 1000 levels: input the number of the level, that of the largest is 0 for ve.
Deviates    Between two numbered levels the input is fractional, linear in ln s; see also `ncsnpp_network.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..base import Prior
from .checkpoint_files import build, read_checkpoint, save_network, weights_of
from .ddpm_network import DDPMNetwork, DDPMSpec
from .ncsnpp_network import NCSNppNetwork, NCSNppSpec
from .network_time import DiscreteTime, NetworkTime, SubVPTime, VETime, VPTime
from .parametrised import ParametrisedPrior

SDE = Literal["ve", "vp", "subvp", "ve_steps", "vp_steps"]


class NCSNppPrior(ParametrisedPrior):
    """A denoiser by a network of score_sde; see the module's docstring for its formulas.

    network     the U-Net; `exploding` for `ve` and `ve_steps`
    sde         None: "ve" for an exploding network, otherwise "vp"
    image_size  side of the training images; divisible by 2 for each level but one
    """

    network: NCSNppNetwork | DDPMNetwork

    def __init__(
        self,
        network: NCSNppNetwork | DDPMNetwork,
        *,
        sde: SDE | None = None,
        image_size: int = 256,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_size(image_size, network)
        super().__init__(
            network,
            "epsilon",
            _schedule(sde or ("ve" if network.exploding else "vp"), network.sigmas),
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
        sde: SDE | None = None,
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
        if sde not in (None, *get_args(SDE)):
            raise ValueError(f"sde must be one of {', '.join(get_args(SDE))}, got {sde!r}")
        tensors = score_sde_weights(weights, ema=ema, sha256=sha256, trust_pickle=trust_pickle)
        fourier = "all_modules.0.W" in tensors
        kind: SDE = sde or ("ve" if fourier else "vp")
        if kind == "ve" and not fourier:
            raise ValueError(
                f"sde=ve needs a network trained on continuous levels, {weights} takes steps: give sde=ve_steps"
            )
        network = load_ncsnpp(tensors, weights, exploding=kind in ("ve", "ve_steps"), fir=fir)
        return cls(network, sde=kind, image_size=image_size)

    def save(self, path: str | Path) -> None:
        """Write the weights under their own names to a `.safetensors` file, to be loaded with the same settings."""
        save_network(self.network, path)

    @classmethod
    def example(cls) -> "NCSNppPrior":
        return cls(example_network(exploding=True), image_size=8)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        return {"example": cls.example(), "vp": cls(example_network(exploding=False), image_size=8)}


def _schedule(sde: SDE, sigmas: Tensor) -> NetworkTime:
    if sde == "vp_steps":
        return DiscreteTime.linear()
    if sde in ("vp", "subvp"):
        return VPTime(0.1, 20.0, t_min=1e-5) if sde == "vp" else SubVPTime(0.1, 20.0, t_min=1e-3)
    time: Literal["sigma", "step"] = "sigma" if sde == "ve" else "step"
    return VETime(float(sigmas.min()), float(sigmas.max()), time_input=time, steps=len(sigmas))


def check_size(image_size: int, network: NCSNppNetwork | DDPMNetwork) -> None:
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


def load_ncsnpp(
    tensors: Mapping[str, Tensor], path: str | Path, *, exploding: bool, fir: bool | None
) -> NCSNppNetwork | DDPMNetwork:
    """The network of these weights. ValueError if they belong to another one."""
    try:
        spec = DDPMSpec.of(tensors) if DDPMSpec.fits(tensors) else NCSNppSpec.of(tensors, fir=fir)
        sigmas = tensors["sigmas"]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} must hold a network of NCSN++ or DDPM: {error}") from error
    if isinstance(spec, DDPMSpec):
        return build(lambda: DDPMNetwork(spec, exploding=exploding, sigmas=sigmas), tensors, path)
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
