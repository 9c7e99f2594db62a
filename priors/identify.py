"""Any checkpoint by its path: `prior=PATH` recognises format and network, or refuses and names the candidates.

What tensors alone do not tell (a network of noise, of a velocity or of a score may have the same names) is never
guessed: such a file needs `format`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .base import Prior
from .codecs.latent import LatentPrior
from .library import load_prior
from .networks.adm import ADMPrior, ADMSpec
from .networks.checkpoint_files import class_name, read_checkpoint, weights_of
from .networks.deepinv_prior import DeepinvPrior
from .networks.diffusers_files import SCHEME, autoencoder_in, local_folder, text_kind
from .networks.diffusers_prior import DiffusersPrior
from .networks.flow import FlowPrior
from .networks.ncsnpp import NCSNppPrior
from .networks.network_time import VPTime
from .networks.nvlabs_edm import CLASSES, NVLabsEDMPrior, stated
from .weights_file import has_header

# Entries of a file that hold its weights, the averaged ones first.
ENTRIES = (
    "ema",
    "model_ema",
    "params_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
)


@dataclass(frozen=True)
class Candidate:
    """A way to read a file.

    name  `format` that chooses it
    what  in words
    read  makes the prior, with settings of the adapter by name
    """

    name: str
    what: str
    read: Callable[..., Prior]


def read_prior(
    path: str | Path,
    *,
    format: str | None = None,
    settings: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance: float | None = None,
) -> Prior:
    """The prior in a file or folder, or in hf://owner/repo.

    format        which reading, where the file fits several; the error names them
    settings      of the adapter by name, such as class_label or image_size
    trust_pickle  read a pickle that holds more than tensors; no code in it is run
    prompt, negative_prompt, guidance  of pipelines with text, as in `LatentPrior.load`

    Raises ValueError, one line, for a file that is missing, damaged, of no known kind, or of several.
    """
    found = candidates(path, trust_pickle=trust_pickle)
    chosen = found if format is None else [candidate for candidate in found if candidate.name == format]
    if len(chosen) != 1:
        fitting = ", ".join(f"{candidate.name} ({candidate.what})" for candidate in found)
        reason = "may be" if format is None else f"is not of format={format}; it may be"
        raise ValueError(f"{path} {reason} {fitting}: give format=, prior.format= on the command line")
    text = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance": guidance}
    text = {name: value for name, value in text.items() if value is not None}
    if text and chosen[0].name != "latent":
        raise ValueError(f"{path} is {chosen[0].what}, which takes no text: {', '.join(text)} must be null")
    try:
        return chosen[0].read(**{**dict(settings or {}), **text})
    except TypeError as error:
        if "keyword" not in str(error):
            raise
        wrong = str(error).partition("() ")[2]
        raise ValueError(f"{path}, {chosen[0].what}: {wrong}; settings= has those of the adapter by name") from error


def candidates(path: str | Path, *, trust_pickle: bool = False) -> list[Candidate]:
    """All readings that the contents of a file or folder allow; see `read_prior` for its errors."""
    place = Path(path).expanduser()
    if str(path).startswith(SCHEME) or place.is_dir():
        return [_pipeline(path)]
    if place.suffix == ".safetensors" and place.is_file() and has_header(place):
        return [Candidate("invdiff", "weights of invdiff train", partial(load_prior, weights=place))]
    content = read_checkpoint(place, trust_pickle=trust_pickle)
    if isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping) and "shadow_params" in content["ema"]:
        entry, named = None, content.get("model", {})  # score_sde lists averaged weights without names
    else:
        entry, named = _weights_in(content)
    tensors = weights_of(named, place)
    names = {name.removeprefix("model.") for name in tensors}
    readers = [
        found
        for recognise in (_guided_diffusion, _nvlabs, _score_sde, _drunet)
        for found in recognise(place, entry, named, tensors, names, trust_pickle)
    ]
    if not readers:
        shown = ", ".join(sorted(names)[:3])
        raise ValueError(
            f"{path} holds no network that is known here (its tensors are {shown}, ...); load it yourself: "
            "prior=parametrised prior.network=my_unet.py:load"
        )
    return readers


def _weights_in(content: Any) -> tuple[str | None, Any]:
    """The entry of a file that holds its weights, and they; None where the file is the weights."""
    if isinstance(content, Mapping) and class_name(content) is None:
        for entry in ENTRIES:
            if isinstance(content.get(entry), Mapping) or class_name(content.get(entry)) is not None:
                return entry, content[entry]
    return None, content


def _pipeline(path: str | Path) -> Candidate:
    folder = local_folder(path, latent=None)
    if text_kind(folder) is not None:
        return Candidate("latent", "a text-conditional pipeline of diffusers", partial(LatentPrior.load, folder))
    if autoencoder_in(folder) is None:
        return Candidate("diffusers", "a UNet2DModel of diffusers", partial(DiffusersPrior.load, folder))
    return Candidate("latent", "a latent model of diffusers", partial(LatentPrior.load, folder))


def _guided_diffusion(
    path: Path, entry: str | None, named: Any, tensors: Mapping[str, Tensor], names: set[str], trust_pickle: bool
) -> list[Candidate]:
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= names:
        return []
    wrapped = "model.out.2.weight" in tensors  # inside InverseBench's VPPrecond
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    try:
        spec = ADMSpec.of(plain)
    except (KeyError, ValueError, IndexError):
        return []
    read: Callable[..., Prior] = partial(ADMPrior.of_tensors, plain, path)
    if len(spec.mults) in SIDES:
        read = partial(read, image_size=SIDES[len(spec.mults)])
    if wrapped:
        vp = partial(read, schedule=VPTime(0.1, 20.0, t_min=1e-5))
        return [Candidate("adm_vp", "guided-diffusion inside VPPrecond, as InverseBench has it", vp)]
    found = [Candidate("adm", "guided-diffusion, attention heads of 64 channels", read)]
    if not spec.resblock_updown:  # heads leave no trace in the tensors
        older = partial(read, head_channels=None, heads=4)
        found.append(Candidate("improved", "improved-diffusion, four attention heads", older))
    if spec.out_channels == spec.channels:
        flow = partial(_velocity, plain, path)
        found.append(Candidate("flow_unet", "the same U-Net with a velocity on t in [0, 1]", flow))
    return found


# Side of the images by the number of levels, as guided-diffusion chooses the levels.
SIDES = {4: 64, 5: 128, 6: 256, 7: 512}


def _velocity(tensors: Mapping[str, Tensor], path: Path, *, image_size: int, **settings: Any) -> Prior:
    """A flow of PnP-Flow (OT-FM): velocity at time t, the image at 1."""
    prior = ADMPrior.of_tensors(tensors, path, image_size=image_size, **settings)
    assert prior.shape is not None
    return FlowPrior(prior.network, data_at=1, time_scale=1.0, shape=prior.shape)


def _nvlabs(
    path: Path, entry: str | None, named: Any, tensors: Mapping[str, Tensor], names: set[str], trust_pickle: bool
) -> list[Candidate]:
    if not {"map_layer0.weight", "map_layer1.weight"} <= names or not any(n.startswith("enc.") for n in names):
        return []
    kind = CLASSES.get(class_name(named) or "") or (stated(path) if path.suffix == ".safetensors" else None)
    kinds = [kind] if kind else ["iddpm"] if "u" in tensors else ["edm", "vp", "ve"]
    read = partial(NVLabsEDMPrior.load, path, key=entry or "ema", trust_pickle=trust_pickle)
    return [
        Candidate(kind, f"NVlabs' EDM code, preconditioning {kind}", partial(read, preconditioning=kind))
        for kind in kinds
    ]


def _score_sde(
    path: Path, entry: str | None, named: Any, tensors: Mapping[str, Tensor], names: set[str], trust_pickle: bool
) -> list[Candidate]:
    if not any(name.startswith("all_modules.") for name in tensors):
        return []
    kind = "ve" if "all_modules.0.W" in tensors else "vp"
    return [
        Candidate("ncsnpp", f"score_sde, {kind}", partial(NCSNppPrior.load, path, trust_pickle=trust_pickle)),
        Candidate("flow", "a rectified flow", partial(FlowPrior.load, path, trust_pickle=trust_pickle)),
    ]


def _drunet(
    path: Path, entry: str | None, named: Any, tensors: Mapping[str, Tensor], names: set[str], trust_pickle: bool
) -> list[Candidate]:
    if not {"m_head.weight", "m_tail.weight"} <= names:
        return []
    channels = tensors["m_tail.weight"].shape[0]
    options = {"in_channels": channels, "out_channels": channels}
    read = partial(DeepinvPrior.load, "DRUNet", path, options=options, channels=channels)
    return [Candidate("deepinv_drunet", "deepinv's DRUNet", read)]
