"""deepinv's DRUNet."""

from functools import partial

from ..networks.deepinv_prior import DeepinvPrior
from .contents import Candidate, Contents


def drunet(contents: Contents) -> list[Candidate]:
    channels = contents.tensors["m_tail.weight"].shape[0]
    options = {"in_channels": channels, "out_channels": channels}
    read = partial(DeepinvPrior.load, "DRUNet", contents.path, options=options, channels=channels)
    return [Candidate("deepinv_drunet", "deepinv's DRUNet", read)]
