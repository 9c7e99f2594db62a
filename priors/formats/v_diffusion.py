"""Networks of v-diffusion: v on the path x_t = cos(t pi / 2) z + sin(t pi / 2) eps, on [-1, 1].

Paper                 Salimans and Ho, Progressive Distillation, ICLR 2022, arXiv:2202.00512 (v).
Told by the file      the network, its family and the side of the images: 4 at the coarsest level, as in all of them.
Not told by the file  whether the last block ends with a ReLU (danbooru_128 and wikiart_128) or not (imagenet_128 and
                      wikiart_256).
Refused               cc12m_1, which needs an embedding of CLIP.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ..base import Prior
from ..networks.checkpoint_files import build
from ..networks.network_time import CosineTime
from ..networks.parametrised import ParametrisedPrior
from ..networks.v_diffusion_network import VDiffusionNetwork
from .contents import Candidate, Contents


def v_diffusion(contents: Contents) -> list[Candidate]:
    named, path = contents.tensors, contents.path
    if any(name.startswith("mapping") for name in named):
        raise ValueError(f"{path} is a v-diffusion network that needs embeddings of CLIP; unconditional ones are read")
    plain, relu = partial(_read, named, path, last_relu=False), partial(_read, named, path, last_relu=True)
    if any(name.endswith(".norm.weight") for name in named):
        return [Candidate("v_diffusion", "v-diffusion, yfcc_1 or yfcc_2", plain)]
    return [
        Candidate("v_diffusion", "v-diffusion, last block without a ReLU: imagenet_128, wikiart_256", plain),
        Candidate("v_diffusion_relu", "v-diffusion, last block with a ReLU: danbooru_128, wikiart_128", relu),
    ]


def _read(tensors: Mapping[str, Tensor], path: Path, *, last_relu: bool) -> Prior:
    try:
        network = build(lambda: VDiffusionNetwork(tensors, last_relu=last_relu), tensors, path)
    except KeyError as error:
        raise ValueError(f"{path} must hold a network of v-diffusion: it lacks {error}") from error
    side = 4 * 2 ** (network.levels - 1)
    # Times of the second family are those of DDPM; those of the first reach 0 and 1, where sigma is 0 and infinite.
    time = CosineTime(1e-3, 1e3) if network.normed else CosineTime(1e-2, 148.4, time_input="log_snr")
    return ParametrisedPrior(network, "v", time, shape=(network.channels, side, side))
