"""Metrics of one reconstruction: PSNR and SSIM by scikit-image, LPIPS by the `lpips` package.

Images are clamped to the value range first, as every published figure does.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# scikit-image and lpips are imported where they are used: they are slow to import, and much works without them.

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
SSIM_WINDOW = 11  # pixels: 3.5 standard deviations of 1.5 to both sides
LPIPS_SIDE = 32  # pixels: less does not survive AlexNet's strides


def psnr(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Peak signal-to-noise ratio of one image (C, H, W), dB; infinite where equal, NaN where x is not finite."""
    if not x.isfinite().all():
        return math.nan
    from skimage.metrics import peak_signal_noise_ratio

    x, truth = x.clamp(*value_range), truth.clamp(*value_range)
    if torch.equal(x, truth):
        return math.inf
    return float(peak_signal_noise_ratio(truth.numpy(), x.numpy(), data_range=value_range[1] - value_range[0]))


def ssim(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Structural similarity of one image (C, H, W), scikit-image's defaults with Wang et al.'s Gaussian window.

    NaN where x is not finite, or smaller than the window.
    """
    if not x.isfinite().all() or min(x.shape[-2:]) < SSIM_WINDOW:
        return math.nan
    from skimage.metrics import structural_similarity

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


def lpips_unavailable(image_shape: tuple[int, ...] = (LPIPS_SIDE, LPIPS_SIDE)) -> str | None:
    """None where LPIPS of images (C, H, W) can be computed, otherwise the reason. Never downloads.

    Loads the weights, since a file of the right name may be half of a download.
    """
    if min(image_shape[-2:]) < LPIPS_SIDE:
        return f"LPIPS needs images of {LPIPS_SIDE}x{LPIPS_SIDE} or more"
    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    if not path.is_file():
        return f"LPIPS needs torchvision's AlexNet weights, {LPIPS_BACKBONE}, in {path.parent.name}/ of torch.hub"
    return _lpips_fault(path)


@cache
def _lpips_fault(path: Path) -> str | None:
    """Why the model does not load from this file; tried once."""
    try:
        _lpips_model()
    except Exception as error:  # reading a damaged file raises almost anything
        words = " ".join(str(error).split()).partition(". ")[0]
        return f"LPIPS weights are damaged, or cannot be read: {path} ({type(error).__name__}: {words[:150]})"
    return None


@cache
def _lpips_model() -> Any:
    import lpips

    with warnings.catch_warnings(action="ignore"):  # torchvision's, about an argument that lpips passes
        return lpips.LPIPS(net="alex", verbose=False).eval()


@torch.no_grad()
def lpips_distance(x: Tensor, truth: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> float:
    """Learned perceptual distance of one image (C, H, W): `lpips` 0.1, AlexNet. Ask `lpips_unavailable` first."""
    low, high = value_range
    scaled = [2 * (t.clamp(low, high) - low) / (high - low) - 1 for t in (x, truth)]
    colour = [t.expand(3, -1, -1)[None] for t in scaled]
    return float(_lpips_model()(*colour))


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the finite values; None where there is none."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else None


def standard_error_of(values: Sequence[float | None]) -> float | None:
    """Standard error of `mean_of`; None for fewer than two finite values."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None


def for_json(value: float | None) -> float | None:
    """The value, None for NaN and infinity, which JSON lacks."""
    return value if value is not None and math.isfinite(value) else None
