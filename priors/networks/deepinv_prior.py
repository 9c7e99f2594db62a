"""Denoisers of `deepinv` as priors; the way back is `Prior.to_deepinv`.

A `deepinv.models.Denoiser` takes images in [0, 1] and the noise level in the same units, for any range of its own
training. This file changes only from the range of the given images to [0, 1].
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..base import Prior
from ..callable import CallablePrior
from .checkpoint_files import read_tensors

# For denoisers that declare no levels, in units of [0, 1].
SIGMA_RANGE = (0.002, 1.0)


class DeepinvPrior(CallablePrior):
    """A `deepinv.models.Denoiser`: DRUNet, DiffUNet, NCSNpp, ADMUNet, or any other.

    denoiser        on images in [0, 1]; it is put in evaluation mode and its parameters are frozen
    shape           (C, H, W) of the images, None for any size
    channels        None: from the network, if it declares them
    sigma_range     noise levels of its training, image units; None: from the network (DiffUNet, NCSNpp, ADMUNet, score
                    models with a table), else 0.002 to 1 of the value range. Other levels are clamped to it
    value_range     range of the given images
    differentiable  autograd can differentiate it; false for BM3D, for example
    one_by_one      call it once for each image: for denoisers that mix the images of a batch or take one level only

    A denoiser that was not trained up to high noise levels (DRUNet) restores images but draws none of its own.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        sigma_range: tuple[float, float] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        differentiable: bool = True,
        one_by_one: bool = False,
    ) -> None:
        width = value_range[1] - value_range[0]
        levels = trained_levels(denoiser)
        super().__init__(
            denoiser,
            shape=shape,
            channels=trained_channels(denoiser) if channels is None else channels,
            sigma_range=(levels[0] * width, levels[1] * width) if sigma_range is None else sigma_range,
            value_range=value_range,
            differentiable=differentiable,
        )
        self.one_by_one = one_by_one

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        low, high = self.value_range
        z, level = (x - low) / (high - low), self.levels(x, sigma) / (high - low)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            if self.one_by_one:
                z0 = torch.cat([self.function(z[i : i + 1], level[i : i + 1]) for i in range(len(z))])
            else:
                z0 = self.function(z, level)
            return low + (high - low) * self._checked(z0, z)

    def to_deepinv(self) -> Any:
        """The denoiser itself, unless `one_by_one`."""
        return super().to_deepinv() if self.one_by_one else self.function

    @classmethod
    def load(
        cls,
        model: str,
        weights: str | Path | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        sigma_range: tuple[float, float] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        one_by_one: bool = False,
        sha256: str | None = None,
    ) -> "DeepinvPrior":
        """A network of `deepinv.models` with weights from a file; nothing is downloaded and no code is executed.

        model    its name: DRUNet, DiffUNet, NCSNpp, ADMUNet, ...
        weights  a `.safetensors` file, or a state dict by `torch.save` (`.pth`, `.pt`), as deepinv's own
        options  of the network's constructor, by name
        sha256   expected hash of the file, None: not checked
        The rest as in the constructor.

        Raises ValueError if one of them cannot be used.
        """
        from deepinv import models

        kind = getattr(models, model, None)
        if not (isinstance(kind, type) and issubclass(kind, models.Denoiser)):
            known = [n for n, c in vars(models).items() if isinstance(c, type) and issubclass(c, models.Denoiser)]
            raise ValueError(f"deepinv has no denoiser {model!r}; known are {', '.join(sorted(known))}")
        if weights is None:
            raise ValueError(
                f"give weights=, a file with the weights of deepinv's {model}; deepinv's own are on "
                f"huggingface.co/deepinv, and {model}(pretrained='download') of deepinv fetches them"
            )
        options = dict(options or {})
        if "pretrained" in options:
            raise ValueError("options: leave pretrained out, weights come from the file weights=")
        state = read_tensors(Path(weights).expanduser(), sha256=sha256)
        try:
            with torch.random.fork_rng(devices=[]):  # it draws random weights first
                denoiser = kind(**options, pretrained=None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"deepinv's {model} cannot be made with options={options}: {error}") from error
        try:
            denoiser.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{weights} holds no weights of deepinv's {model} with these options: {reason}") from error
        return cls(
            denoiser,
            shape=None if shape is None else tuple(shape),
            channels=channels,
            sigma_range=None if sigma_range is None else (sigma_range[0], sigma_range[1]),
            value_range=(value_range[0], value_range[1]),
            one_by_one=one_by_one,
        )

    @classmethod
    def example(cls) -> "DeepinvPrior":
        from deepinv.models import ADMUNet

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            denoiser = ADMUNet(
                img_resolution=16,
                in_channels=1,
                out_channels=1,
                model_channels=32,
                channel_mult=(1, 1),
                num_blocks=1,
                attn_resolutions=(8,),
                pretrained=None,
            )
        return cls(denoiser, shape=(1, 16, 16), value_range=(-1.0, 1.0))

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        example = cls.example()
        return {
            "example": example,
            "one by one": cls(cast(nn.Module, example.function), shape=(1, 16, 16), one_by_one=True),
        }


# -- declarations of a denoiser ----------------------------------------------------------------------------------------


def trained_channels(denoiser: Any) -> int | None:
    """Image channels of a denoiser, from an attribute or its first convolution; None: unknown.

    DRUNet's first convolution has one channel more, for the noise level.
    """
    if isinstance(declared := getattr(denoiser, "in_channels", None), int):
        return declared
    if isinstance(head := getattr(denoiser, "m_head", None), nn.Conv2d):
        return head.in_channels - 1
    if isinstance(encoder := getattr(denoiser, "enc", None), nn.ModuleDict):  # NCSNpp, ADMUNet
        first: Any = next(iter(encoder.values()))
        return first.in_channels
    return None


def trained_levels(denoiser: Any) -> tuple[float, float]:
    """Noise levels of the training of a denoiser, in units of images in [0, 1]."""
    half = 2.0 if getattr(denoiser, "_was_trained_on_minus_one_one", False) else 1.0
    table = getattr(denoiser, "sigma_t", None)
    if isinstance(table, Tensor):  # score models
        finite = table[(table > 0) & (table < math.inf)]
        return float(finite.min()) / half, float(finite.max()) / half
    if hasattr(denoiser, "sqrt_1m_alphas_cumprod"):  # DiffUNet, on [-1, 1] within
        ratio = denoiser.sqrt_1m_alphas_cumprod / denoiser.sqrt_alphas_cumprod
        return float(ratio.min()) / 2, float(ratio.max()) / 2
    if hasattr(denoiser, "pixel_std"):  # preconditioned as in EDM
        return 0.002 / half, 80.0 / half
    return SIGMA_RANGE
