"""Folders of text-conditional pipelines of `diffusers`: their network, and the embeddings of a prompt.

Reads   `model_index.json` of StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline and
        FluxPipeline, with network, scheduler, text encoders and tokenizers in folders of their names. Classes come from
        a fixed list, and weights of text encoders are `.safetensors`: nothing in a folder runs code.
Text    is encoded once, on the CPU, by the `encode_prompt` of the pipeline; the text encoders are then dropped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .diffusers_files import TEXT_KINDS, TextKind, extra, parts_of, read_config, read_model, scheduler_of
from .diffusers_schedulers import network_time, prediction
from .text import Flux, StableDiffusion, StableDiffusion3, TextNetwork, TextPrior

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")


OPTIONAL = "text_encoder_3"  # the T5 encoder of Stable Diffusion 3, without which its tokens are 0


def read_text_prior(
    folder: Path,
    *,
    codes: int,
    factor: int,
    prompt: str = "",
    negative_prompt: str | None = None,
    guidance: float = 1.0,
    code_range: tuple[float, float] = (-5.0, 5.0),
) -> TextPrior:
    """The network of a pipeline with the embeddings of a prompt.

    codes   channels of codes
    factor  pixels of a side of a code
    The rest as in `LatentPrior.load`. Raises ValueError where the folder does not fit, before it reads a text encoder.
    """
    name = parts_of(folder)["_class_name"]
    kind, scheduler = TEXT_KINDS[name], scheduler_of(folder)
    schedule = network_time(scheduler, steps_of_flow=1 if name == "FluxPipeline" else None)
    config = read_config(folder / kind.folder / "config.json")
    _check_network(folder, kind, config, codes)
    distilled = bool(config.get("guidance_embeds", False))
    if negative_prompt is not None and (guidance == 1 or distilled):
        reason = "the guidance of this network is distilled" if distilled else "guidance=1 does not use it"
        raise ValueError(f"negative_prompt needs guidance with a second output of the network; {reason}")
    network = read_model(folder / kind.folder, kind.network)
    embeddings = encoded(folder, network, prompt, negative_prompt, negative=guidance != 1 and not distilled)
    wrapped: TextNetwork
    if kind.network == "UNet2DConditionModel":
        wrapped, multiple = StableDiffusion(network, factor), 1
    elif kind.network == "SD3Transformer2DModel":
        wrapped, multiple = StableDiffusion3(network), int(config["patch_size"])
    else:
        wrapped, multiple = Flux(network, guidance if distilled else None), 2
    return TextPrior(
        wrapped,
        prediction(scheduler),
        schedule,
        channels=codes,
        guidance=guidance,
        multiple=multiple,
        code_range=code_range,
        **embeddings,
    )


def _check_network(folder: Path, kind: TextKind, config: Mapping[str, Any], codes: int) -> None:
    wanted = 4 * codes if kind.network == "FluxTransformer2DModel" else codes
    if config.get("_class_name") != kind.network:
        raise ValueError(f"{folder / kind.folder} must hold a {kind.network}, got {config.get('_class_name')}")
    channels, out = config.get("in_channels"), config.get("out_channels")
    if channels != wanted or out not in (wanted, None):
        raise ValueError(
            f"the network in {folder / kind.folder} must map {wanted} channels to {wanted}, as its autoencoder has "
            f"codes of {codes}, got {channels} and {out}; networks of inpainting and editing take other images too"
        )
    for name in ("time_cond_proj_dim", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise ValueError(f"{name} of the network in {folder / kind.folder} must be null, got {config[name]!r}")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ValueError(
            f"addition_embed_type of the network in {folder / kind.folder} must be null or text_time, "
            f"got {config['addition_embed_type']!r}"
        )


@torch.no_grad()
def encoded(
    folder: Path, network: nn.Module, prompt: str, negative_prompt: str | None, *, negative: bool
) -> dict[str, Any]:
    """Embeddings of the texts: arguments of `TextPrior` by name; those of the negative one only with `negative`."""
    index = parts_of(folder)
    name = index["_class_name"]
    kind, made = TEXT_KINDS[name], getattr(extra("diffusers"), name)
    found: dict[str, Any] = {part: _part(folder, part, index.get(part)) for part in kind.texts}
    if name == "StableDiffusion3Pipeline":
        found["transformer"] = network  # for the width of its tokens
    elif name == "StableDiffusionPipeline":
        found |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    elif name == "StableDiffusionXLPipeline":
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        found |= {"add_watermarker": False, "force_zeros_for_empty_prompt": zeros}
    pipeline = made(**{"vae": None, kind.folder: None, "scheduler": None} | found)
    if name == "FluxPipeline":
        texts = [prompt, negative_prompt or ""] if negative else [prompt]
        both = [pipeline.encode_prompt(prompt=text, prompt_2=None, device="cpu")[:2] for text in texts]
        tokens, pooled = both[0]
        away, pooled_away = both[1] if negative else (None, None)
    else:
        more = {"prompt_2": None, "prompt_3": None} if name == "StableDiffusion3Pipeline" else {}
        answer = pipeline.encode_prompt(
            prompt=prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=negative,
            negative_prompt=negative_prompt,
            **more,
        )
        tokens, away, pooled, pooled_away = answer if len(answer) == 4 else (*answer, None, None)
    return {"tokens": tokens, "pooled": pooled, "negative_tokens": away, "negative_pooled": pooled_away}


def _part(folder: Path, part: str, entry: Any) -> Any:
    """A text encoder or tokenizer, as the index of the pipeline names it."""
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if kind is None and part.replace("tokenizer", "text_encoder") == OPTIONAL:
        return None
    known = ENCODERS if part.startswith("text_encoder") else TOKENIZERS
    if kind is None or kind not in known:
        raise ValueError(f"{part} of {folder} must be one of {', '.join(known)}, got {kind}")
    if kind in ENCODERS:
        return read_model(folder / part, kind, library="transformers").eval()
    try:
        return getattr(extra("transformers"), kind).from_pretrained(str(folder / part), local_files_only=True)
    except Exception as error:  # tokenizers raise a bare Exception for a damaged file
        raise ValueError(f"cannot read the {kind} in {folder / part}: {' '.join(str(error).split())[:300]}") from error
