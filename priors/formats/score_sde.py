"""Checkpoints of score_sde, and of the rectified flows that use its networks.

Told by the file      the network (NCSN++, DDPM++, DDPM), its levels, and by Fourier features continuous times.
Not told by the file  the process, whether the network predicts a velocity, and the side of the images.
"""

from functools import partial
from pathlib import Path
from typing import Any

from ..base import Prior
from ..networks.flow import FlowPrior
from ..networks.ncsnpp import SDE, NCSNppPrior
from .contents import Candidate, Contents

WORDS: dict[SDE, str] = {
    "ve": "score_sde, variance exploding",
    "ve_steps": "score_sde, variance exploding on numbered levels",
    "vp": "score_sde, variance preserving",
    "vp_steps": "score_sde, DDPM's 1000 steps",
    "subvp": "score_sde, sub-VP",
}


def score_sde(contents: Contents) -> list[Candidate]:
    fourier = "all_modules.0.W" in contents.tensors
    kinds: tuple[SDE, ...] = ("ve", "vp", "subvp") if fourier else ("vp", "vp_steps", "subvp", "ve_steps")
    path, trust = contents.path, contents.trust_pickle
    found = [Candidate(kind, WORDS[kind], partial(_score, path, sde=kind, trust_pickle=trust)) for kind in kinds]
    return [*found, Candidate("flow", "a rectified flow", partial(_flow, path, trust_pickle=trust))]


def _score(path: Path, *, image_size: int, **settings: Any) -> Prior:
    return NCSNppPrior.load(path, image_size=image_size, **settings)


def _flow(path: Path, *, image_size: int, **settings: Any) -> Prior:
    return FlowPrior.load(path, image_size=image_size, **settings)
