"""Unconditional models of latent-diffusion in one file: UNet, autoencoder and noise levels.

Told by the file      both networks, averaged weights, the levels, and the scale of codes where it was measured.
Not told by the file  attention heads of the UNet, and the scale of codes of an autoencoder without codebook where the
                      training was given it (`scale`); sizes of images: any that the levels of the networks allow.
Refused               networks that need text, a class or another image. Stable Diffusion: convert the file.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ..base import Prior
from ..codecs.compvis import CompVisCodec, CompVisNetwork, CompVisSpec
from ..codecs.latent import LatentPrior
from ..networks.adm import ADMNetwork, ADMSpec
from ..networks.checkpoint_files import build
from ..networks.network_time import DiscreteTime
from ..networks.parametrised import ParametrisedPrior
from .contents import Candidate, Contents

UNET, CODEC, AVERAGED = "model.diffusion_model.", "first_stage_model.", "model_ema.diffusion_model"


def latent_diffusion(contents: Contents) -> list[Candidate]:
    named, path = contents.tensors, contents.path
    unet = {name.removeprefix(UNET): tensor for name, tensor in named.items() if name.startswith(UNET)}
    if any(".transformer_blocks." in name for name in unet):
        raise ValueError(
            f"{path} is a model with a condition, such as the text of Stable Diffusion, in one file: convert it by "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) of diffusers, then prior=FOLDER"
        )
    if "alphas_cumprod" not in named:
        raise ValueError(f"{path} must hold the noise levels of latent-diffusion, alphas_cumprod; it lacks them")
    if unet["out.2.weight"].shape[0] != unet["input_blocks.0.0.weight"].shape[1]:
        raise ValueError(f"{path} is a latent model that takes another image as well; only unconditional ones are read")
    unet = {name: named.get(AVERAGED + name.replace(".", ""), tensor) for name, tensor in unet.items()}
    codec = {
        name.removeprefix(CODEC): tensor
        for name, tensor in named.items()
        if name.startswith(CODEC) and not name.startswith(f"{CODEC}loss.")
    }
    measured = named.get("scale_factor")
    scale = 1.0 if measured is None and "quantize.embedding.weight" in codec else measured
    read = partial(_read, path, unet, codec, named["alphas_cumprod"], scale=scale)
    return [
        Candidate("ldm", "latent-diffusion, attention heads of 32 channels (faces, bedrooms)", read),
        Candidate("ldm8", "latent-diffusion, eight heads (churches)", partial(read, head_channels=None, heads=8)),
    ]


def _read(
    path: Path,
    unet: Mapping[str, Tensor],
    codec: Mapping[str, Tensor],
    alphas_cumprod: Tensor,
    *,
    scale: float | Tensor | None,
    head_channels: int | None = 32,
    heads: int = 8,
    code_range: tuple[float, float] = (-5.0, 5.0),
    image_range: tuple[float, float] = (0.0, 1.0),
) -> Prior:
    """`scale` of codes; the ranges as in `LatentPrior.load`."""
    if scale is None:
        raise ValueError(f"{path} does not tell the scale of its codes: give scale=, the scale_factor of its training")
    try:
        spec, inner = ADMSpec.of(unet, head_channels=head_channels, heads=heads), CompVisSpec.of(codec)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} must hold a model of latent-diffusion: {error}") from error
    low, high = code_range
    diffusion = ParametrisedPrior(
        build(lambda: ADMNetwork(spec), unet, path),
        "epsilon",
        DiscreteTime(tuple(alphas_cumprod.double().tolist())),
        channels=spec.channels,
        value_range=(low, high),
        network_range=(low, high),
    )
    diffusion.unit = 1.0
    autoencoder = build(lambda: CompVisNetwork(inner), codec, path)
    pictures = (image_range[0], image_range[1])
    return LatentPrior(diffusion, CompVisCodec(autoencoder, scale=float(scale), value_range=pictures))
