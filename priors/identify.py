"""Any checkpoint by its path: `prior=PATH` recognises format and network, or refuses and names the candidates.

What tensors alone do not tell (a network of noise, of a velocity or of a score may have the same names) is never
guessed: such a file needs `format`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .base import Prior
from .codecs.latent import LatentPrior
from .formats.consistency import consistency
from .formats.contents import Candidate, Contents, Reader
from .formats.drunet import drunet
from .formats.edm2 import edm2
from .formats.guided_diffusion import guided_diffusion
from .formats.jit import jit
from .formats.latent_diffusion import latent_diffusion
from .formats.nvlabs import nvlabs
from .formats.pnp_flow import pnp_flow
from .formats.score_sde import score_sde
from .formats.v_diffusion import v_diffusion
from .library import load_prior
from .networks.checkpoint_files import check_hash, class_name, read_checkpoint, weights_of
from .networks.diffusers_files import SCHEME, autoencoder_in, local_folder, text_kind
from .networks.diffusers_prior import DiffusersPrior
from .weights_file import has_header

# Formats of files: tensors that each has, by their names in the bare network, and its reader. docs/formats.md explains.
ADM = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight")
FORMATS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (ADM, guided_diffusion),
    (ADM, consistency),
    (("diffusion_model.out.2.weight", "first_stage_model.post_quant_conv.weight"), latent_diffusion),
    (("map_layer0.weight", "map_layer1.weight"), nvlabs),
    (("unet.emb_fourier.freqs", "unet.out_gain", "unet.out_conv.weight"), edm2),
    (("temb_net.main.0.weight", "begin_conv.weight", "end_conv.2.weight"), pnp_flow),
    (("net.x_embedder.proj1.weight", "net.in_context_posemb", "net.final_layer.norm_final.weight"), jit),
    (("timestep_embed.weight", "net.0.main.0.weight"), v_diffusion),
    (("all_modules.2.weight", "sigmas"), score_sde),
    (("m_head.weight", "m_tail.weight"), drunet),
)

# Entries of a file that hold its weights, the averaged ones first.
ENTRIES = (
    "ema",
    "model_ema",
    "model_ema1",
    "ema_model",
    "params_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
)


def read_prior(
    path: str | Path,
    *,
    format: str | None = None,
    settings: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    trust_pickle: bool = False,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance: float | None = None,
) -> Prior:
    """The prior in a file or folder, or in hf://owner/repo.

    format        which reading, where the file fits several; the error names them
    settings      of the adapter by name, such as class_label or image_size
    sha256        expected hash of a file, None: not checked
    trust_pickle  read a pickle that holds more than tensors; no code in it is run
    prompt, negative_prompt, guidance  of pipelines with text, as in `LatentPrior.load`

    Raises ValueError, one line, for a file that is missing, damaged, of no known kind, or of several.
    """
    found = candidates(path, sha256=sha256, trust_pickle=trust_pickle)
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


def candidates(path: str | Path, *, sha256: str | None = None, trust_pickle: bool = False) -> list[Candidate]:
    """All readings that the contents of a file or folder allow; see `read_prior` for its errors."""
    place = Path(path).expanduser()
    if str(path).startswith(SCHEME) or place.is_dir():
        if sha256 is not None:
            raise ValueError(f"sha256 must be null for a folder or a repository, got {sha256} for {path}")
        return [_pipeline(path)]
    if sha256 is not None and place.is_file():
        check_hash(place, sha256)
    if place.suffix == ".safetensors" and place.is_file() and has_header(place):
        return [Candidate("invdiff", "weights of invdiff train", partial(load_prior, weights=place))]
    content = read_checkpoint(place, trust_pickle=trust_pickle)
    if isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping) and "shadow_params" in content["ema"]:
        entry, named = None, content.get("model", {})  # score_sde lists averaged weights without names
    else:
        entry, named = _weights_in(content)
    contents = Contents(place, weights_of(named, place), entry, class_name(named), trust_pickle)
    found: list[Candidate] = []
    for signature, reader in FORMATS:
        if all(name in contents.plain for name in signature):
            try:
                found += reader(contents)
            except (KeyError, IndexError) as error:
                raise ValueError(f"{path} has names of {reader.__name__} and other tensors: {error}") from error
    if not found:
        shown = ", ".join(sorted(contents.plain)[:3])
        raise ValueError(
            f"{path} holds no network that is known here (its tensors are {shown}, ...); load it yourself: "
            "prior=parametrised prior.network=my_unet.py:load"
        )
    return found


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
