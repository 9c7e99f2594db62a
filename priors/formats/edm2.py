"""Networks of EDM2 on pixels.

Paper                 Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024,
                      arXiv:2312.02696.
Form                  EDM's preconditioning, sigma_data = 0.5 on [-1, 1].
Told by the file      the network and its classes.
Not told by the file  the class that images belong to.
Refused               four channels: codes of Stable Diffusion's autoencoder, which the file lacks.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ..base import Prior
from ..networks.adm import check_label
from ..networks.checkpoint_files import build
from ..networks.edm2_network import EDM2Network, EDM2Spec
from ..networks.network_time import EDMTime
from ..networks.parametrised import ParametrisedPrior
from .contents import Candidate, Contents


def edm2(contents: Contents) -> list[Candidate]:
    unet = {n.removeprefix("unet."): t for n, t in contents.tensors.items() if n.startswith("unet.")}
    if unet["out_conv.weight"].shape[0] == 4:
        raise ValueError(
            f"{contents.path} is a network of EDM2 on codes of Stable Diffusion's autoencoder, which it lacks; "
            "those on pixels are read"
        )
    return [Candidate("edm2", "NVlabs' EDM2 on pixels", partial(_read, unet, contents.path))]


def _read(tensors: Mapping[str, Tensor], path: Path, *, class_label: int | None = None) -> Prior:
    try:
        spec = EDM2Spec.of(tensors)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} must hold a network of EDM2: {error}") from error
    check_label(class_label, spec.classes)
    return ParametrisedPrior(
        build(lambda: EDM2Network(spec), tensors, path),
        "edm",
        EDMTime(),
        shape=(spec.channels, spec.side, spec.side),
        class_label=class_label,
    )
