"""deepinv's DRUNet.

Told by the file  the network, its channels; activations and resizing are deepinv's own.
"""

from functools import partial

from ..networks.deepinv_prior import DeepinvPrior
from .contents import Candidate, Contents


def drunet(contents: Contents) -> list[Candidate]:
    named = contents.tensors
    blocks = sum(name.startswith("m_body.") and name.endswith("res.0.weight") for name in named)
    downs = [f"m_down{level}.{blocks}.weight" for level in (1, 2, 3)]
    if not blocks or any(name not in named for name in downs):
        return []
    channels = named["m_tail.weight"].shape[0]
    widths = [named[name].shape[0] for name in ("m_head.weight", *downs)]
    options = {"in_channels": named["m_head.weight"].shape[1] - 1, "out_channels": channels, "nc": widths, "nb": blocks}
    read = partial(DeepinvPrior.load, "DRUNet", contents.path, options=options, channels=channels)
    return [Candidate("deepinv_drunet", "deepinv's DRUNet", read)]
