"""JiT, transformers on pixels that predict the clean image on the path of a flow.

Paper                 Li and He, Back to Basics: Let Denoising Generative Models Denoise, 2025, arXiv:2511.13720.
Form                  x_t = t z + (1 - t) n eps on [-1, 1], the network predicts z from x_t and t.
Told by the file      the network, its classes, the side of the images.
Not told by the file  the noise scale n: 1 of the published networks for 256 pixels, 2 of those for 512.
Without class_label the network gets its label of no class, with which it was trained as well.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ..base import Prior
from ..networks.adm import check_label
from ..networks.checkpoint_files import build
from ..networks.jit_network import JiTNetwork, JiTSpec
from ..networks.network_time import FlowTime
from ..networks.parametrised import ParametrisedPrior
from .contents import Candidate, Contents


def jit(contents: Contents) -> list[Candidate]:
    named = {name.removeprefix("net."): tensor for name, tensor in contents.tensors.items()}
    fixed = ("feat_rope.", "feat_rope_incontext.")  # rotary angles, which are computed here
    read = partial(_read, {name: t for name, t in named.items() if not name.startswith(fixed)}, contents.path)
    return [
        Candidate("jit", "JiT, noise scale 1, as published for 256 pixels", partial(read, noise=1.0)),
        Candidate("jit_noise2", "JiT, noise scale 2, as published for 512 pixels", partial(read, noise=2.0)),
    ]


def _read(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    noise: float,
    start: int | None = None,
    class_label: int | None = None,
) -> Prior:
    try:
        spec = JiTSpec.of(tensors, start=start)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} must hold a network of JiT: {error}") from error
    if class_label is not None:
        check_label(class_label, spec.classes)
    return ParametrisedPrior(
        build(lambda: JiTNetwork(spec), tensors, path),
        "x0",
        FlowTime(data_at=1, noise=noise),
        shape=(spec.channels, spec.side, spec.side),
        class_label=class_label,
    )
