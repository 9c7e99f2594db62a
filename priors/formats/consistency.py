"""OpenAI's consistency models and their EDM teachers: `cd_*`, `ct_*`, `edm_*_ema`.

Paper       Song et al., Consistency Models, ICML 2023, arXiv:2303.01469.
Network     the U-Net of guided-diffusion with attention by 1x1 convolutions of images, which tells it from that home's,
            heads of 64 channels and the new attention order.
Form        D(z, s) = c_skip z + c_out F(c_in z, 250 ln s) on [-1, 1], with EDM's coefficients for the teacher, and with
            those of `EDMTime`'s "consistency", where D(z, 0.002) = z, for the others.
Not told by the file  consistency model or teacher (their tensors have the same names and shapes), and the class.

A consistency model is not the posterior mean E[x0 | x_s]: its D(z, s) is the end of the flow through z at the level s,
at every s an image like a sample, where the mean is an average over many images. At high noise D has the whole contrast
of an image where the mean is flat, and twice the least mean square error. (D - x) / sigma^2 is not the score: samplers
that take it for one (DPS, DAPS, PiGDM, MMPS, RED-Diff, particle filters) follow no known law, and a Jacobian of D is no
posterior covariance. Samplers that want a plausible image from few calls (denoise, fit the data, add noise again) may
use it.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..base import Prior
from ..networks.adm import ADMNetwork, ADMSpec, check_label, side_of
from ..networks.checkpoint_files import build
from ..networks.network_time import EDMTime
from ..networks.parametrised import ParametrisedPrior
from .contents import Candidate, Contents


def consistency(contents: Contents) -> list[Candidate]:
    if "middle_block.1.qkv.weight" not in contents.plain or contents.plain["middle_block.1.qkv.weight"].dim() != 4:
        return []
    attention = (".qkv.weight", ".proj_out.weight")
    plain = {name: t.squeeze(-1) if name.endswith(attention) else t for name, t in contents.plain.items()}
    return [
        Candidate("consistency", "OpenAI's consistency model, cd_* or ct_*", partial(_read, plain, contents.path)),
        Candidate("edm", "its EDM teacher, edm_*_ema", partial(_read, plain, contents.path, parametrisation="edm")),
    ]


def _read(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    parametrisation: Literal["consistency", "edm"] = "consistency",
    image_size: int | None = None,
    class_label: int | None = None,
) -> Prior:
    try:
        spec = ADMSpec.of(tensors, new_attention_order=True)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} must hold a U-Net of OpenAI's consistency models: {error}") from error
    check_label(class_label, spec.classes)
    side = image_size or side_of(spec, path)
    return ParametrisedPrior(
        build(lambda: ADMNetwork(spec), tensors, path),
        parametrisation,
        EDMTime(time_scale=1000.0),
        shape=(spec.channels, side, side),
        class_label=class_label,
    )
