"""State dicts of guided-diffusion, of improved-diffusion, and of the same U-Net in InverseBench and torchcfm.

Told by the file      widths, blocks, levels with attention, classes, a learned variance.
Not told by the file  attention heads and their order, the noise schedule, and whether the network predicts a velocity.
                      Networks of six or seven levels with residual resizing (256 and 512 pixels, LSUN, FFHQ) all have
                      heads of 64 channels and the linear schedule.
"""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import Prior
from ..networks.adm import ADMPrior, ADMSpec
from ..networks.flow import FlowPrior
from .contents import Candidate, Contents


def guided_diffusion(contents: Contents) -> list[Candidate]:
    plain, path = contents.plain, contents.path
    try:
        spec = ADMSpec.of(plain)
    except (KeyError, ValueError, IndexError):
        return []
    if plain["middle_block.1.qkv.weight"].dim() == 4:
        return []  # of OpenAI's consistency models
    read = partial(ADMPrior.of_tensors, plain, path)
    variance = spec.out_channels == 2 * spec.channels
    if contents.wrapped and variance and contents.entry != "state_dict":
        vp = partial(read, noise="vp")
        return [Candidate("adm_vp", "guided-diffusion inside VPPrecond, as InverseBench has it", vp)]
    found = [Candidate("adm", "guided-diffusion, attention heads of 64 channels, linear noise", read)]
    if len(spec.mults) == 4:
        new = partial(read, new_attention_order=True, noise="cosine")
        found.append(Candidate("adm64", "guided-diffusion's 64x64, new attention order, cosine noise", new))
    if len(spec.mults) == 5:
        four = partial(read, head_channels=None, heads=4)
        found.append(Candidate("adm128", "guided-diffusion's 128x128, four attention heads, linear noise", four))
    if not spec.resblock_updown:
        found.append(Candidate("improved", "improved-diffusion, four attention heads", partial(_improved, plain, path)))
    if not variance:
        flow = partial(_velocity, plain, path)
        found.append(Candidate("flow_unet", "the same U-Net with a velocity on t in [0, 1], as torchcfm has it", flow))
    return found


def _improved(tensors: dict[str, Tensor], path: Path, *, noise: str, **settings: Any) -> Prior:
    """Networks with both schedules are published, so that `noise` must be given."""
    return ADMPrior.of_tensors(tensors, path, noise=noise, head_channels=None, heads=4, **settings)


def _velocity(tensors: dict[str, Tensor], path: Path, *, image_size: int, **settings: Any) -> Prior:
    """The velocity at time t, with the image at 1."""
    prior = ADMPrior.of_tensors(tensors, path, image_size=image_size, **settings)
    assert prior.shape is not None
    return FlowPrior(prior.network, data_at=1, time_scale=1.0, shape=prior.shape)
