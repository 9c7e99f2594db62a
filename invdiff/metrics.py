"""How good a reconstruction is. PSNR and SSIM by scikit-image, LPIPS by the `lpips` package; nothing by hand.

Images are clamped to the value range first, as every published figure does.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


def psnr(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Peak signal-to-noise ratio of one image (C, H, W), dB; infinite where they are equal, NaN where x is not finite."""
    if not x.isfinite().all():
        return math.nan
    x, truth = x.clamp(*value_range), truth.clamp(*value_range)
    if torch.equal(x, truth):
        return math.inf
    return float(peak_signal_noise_ratio(truth.numpy(), x.numpy(), data_range=value_range[1] - value_range[0]))


def ssim(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Structural similarity of one image (C, H, W), scikit-image's defaults with Wang et al.'s Gaussian window."""
    if not x.isfinite().all():
        return math.nan
    return float(
        structural_similarity(
            truth.clamp(*value_range).numpy(),
            x.clamp(*value_range).numpy(),
            data_range=value_range[1] - value_range[0],
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def lpips_unavailable() -> str | None:
    """None where LPIPS can be computed, otherwise why not. Never tries to download."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    return (
        None
        if path.is_file()
        else f"LPIPS needs torchvision's AlexNet weights, {LPIPS_BACKBONE}, in {path.parent.name}/ of torch.hub"
    )


@cache
def _lpips_model() -> Any:
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval()


@torch.no_grad()
def lpips_distance(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Learned perceptual distance of one image (C, H, W): `lpips` 0.1, AlexNet. Ask `lpips_unavailable` first."""
    low, high = value_range
    scaled = [2 * (t.clamp(low, high) - low) / (high - low) - 1 for t in (x, truth)]
    colour = [t.expand(3, -1, -1)[None] for t in scaled]
    return float(_lpips_model()(*colour))


def mean_of(values: list[float | None]) -> float | None:
    """Mean of what is there and finite; None where nothing is."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else None


def for_json(value: float | None) -> float | None:
    """JSON has no NaN or infinity: None."""
    return value if value is not None and math.isfinite(value) else None
