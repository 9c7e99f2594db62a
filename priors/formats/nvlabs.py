"""Networks of NVlabs' EDM code, also those of InverseBench.

Told by the file      the network; the preconditioning in a pickle or a file of invdiff, and of iDDPM by its levels `u`.
Not told by the file  the preconditioning of a bare state dict, a class, and the unit of fields (`value_range`).
"""

from functools import partial

from ..networks.nvlabs_edm import CLASSES, NVLabsEDMPrior, stated
from .contents import Candidate, Contents


def nvlabs(contents: Contents) -> list[Candidate]:
    path = contents.path
    kind = CLASSES.get(contents.kind or "") or stated(path)
    kinds = [kind] if kind else ["iddpm"] if "u" in contents.tensors else ["edm", "vp", "ve"]
    read = partial(NVLabsEDMPrior.load, path, key=contents.entry or "ema", trust_pickle=contents.trust_pickle)
    return [
        Candidate(kind, f"NVlabs' EDM code, preconditioning {kind}", partial(read, preconditioning=kind))
        for kind in kinds
    ]
