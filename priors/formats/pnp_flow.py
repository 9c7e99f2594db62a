"""Flow-matching networks of PnP-Flow: a velocity at t in [0, 1], the image at 1.

Told by the file      the network.
Not told by the file  the side of the images (128 for CelebA, 256 for AFHQ-Cat), and the noise: a grey network of theirs
                      (MNIST) has a Dirichlet law in its place, which is no noise level here.
Not settled           the range of AFHQ-Cat. The code of its home scales these images to [-1, 1] twice before training,
                      and reads results as [-1, 1]; here it is [-1, 1].
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..base import Prior
from ..networks.checkpoint_files import build
from ..networks.flow import FlowPrior
from ..networks.pnp_flow_network import PnPFlowNetwork, PnPFlowSpec
from .contents import Candidate, Contents


def pnp_flow(contents: Contents) -> list[Candidate]:
    return [Candidate("pnp_flow", "a velocity of PnP-Flow", partial(_read, contents.plain, contents.path))]


def _read(
    tensors: Mapping[str, Tensor], path: Path, *, image_size: int, noise: Literal["gaussian"] | None = None
) -> Prior:
    try:
        spec = PnPFlowSpec.of(tensors)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} must hold a network of PnP-Flow: {error}") from error
    if spec.channels == 1 and noise != "gaussian":
        raise ValueError(f"{path} may have been trained with Dirichlet noise: give noise=gaussian if it was not")
    network = build(lambda: PnPFlowNetwork(spec), tensors, path)
    return FlowPrior(network, data_at=1, shape=(spec.channels, image_size, image_size))
