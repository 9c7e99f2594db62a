"""Unconditional pixel-space models of `diffusers` as priors: a `UNet2DModel` with the scheduler it was trained with.

Reads      a folder as `save_pretrained` writes it, of a pipeline (`model_index.json`, `unet/`, `scheduler/`; DDPM,
           DDIM, PNDM, score SDE, consistency models) or of a bare network with a `scheduler_config.json` beside it, or
           `hf://owner/repo`.
Form       from the scheduler's configuration: betas and prediction type (`epsilon`, `v_prediction`, `sample`) of a
           variance-preserving chain on [-1, 1], or the range of a variance-exploding one on [0, 1], whose network
           predicts the score. The scheduler's clipping belongs to its sampler and is not applied.
Left out   latent models (a UNet on the codes of an autoencoder), see `latent.py`, and text-conditional networks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from .diffusers_files import local_folder, read_unet
from .diffusers_schedulers import network_time, prediction
from .parametrised import ParametrisedPrior


class DiffusersPrior(ParametrisedPrior):
    """A `UNet2DModel` and the configuration of its scheduler.

    unet         with its `config`, which holds the shape of its images
    scheduler    the scheduler's `config`, a mapping, as in `scheduler_config.json`
    class_label  of a class-conditional network: the class that images belong to
    value_range  range of the given images
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        config: Mapping[str, Any] = unet.config  # type: ignore[assignment]  # set by diffusers
        channels, out = config["in_channels"], config["out_channels"]
        if out not in (channels, 2 * channels):
            raise ValueError(
                f"out_channels of a UNet with {channels} input channels must be {channels} or {2 * channels}, got {out}"
            )
        wants_label = config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None
        if wants_label and class_label is None:
            raise ValueError("class_label must be given for this class-conditional UNet, got none")
        if class_label is not None and not wants_label:
            raise ValueError(f"class_label must be null for a UNet without classes, got {class_label}")
        size = config.get("sample_size")
        if size is not None:
            size = (size, size) if isinstance(size, int) else tuple(size)
        exploding = scheduler.get("_class_name") == "ScoreSdeVeScheduler"
        super().__init__(
            _Network(unet),
            prediction(scheduler),
            network_time(scheduler),
            shape=None if size is None else (channels, *size),
            channels=channels,
            value_range=value_range,
            network_range=(0.0, 1.0) if exploding else (-1.0, 1.0),
            learned_variance=out == 2 * channels,
            class_label=class_label,
        )

    @classmethod
    def of_codes(
        cls,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        class_label: int | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
    ) -> "DiffusersPrior":
        """The network of a latent model, as a prior of codes: it takes them unchanged, in units of their own.

        code_range  of clean codes, which have a standard deviation of about 1; for divergence alone
        """
        if scheduler.get("_class_name") == "ScoreSdeVeScheduler":
            raise ValueError(
                "the scheduler of a UNet on codes must be a variance-preserving chain, got ScoreSdeVeScheduler"
            )
        low, high = code_range
        if not low < high:
            raise ValueError(f"code_range must be (low, high) with low < high, got ({low}, {high})")
        made = cls(unet, scheduler, class_label=class_label, value_range=(-1.0, 1.0))  # no change of variable
        made.value_range = made.network_range = (float(low), float(high))
        made.unit = 1.0
        return made

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> "DiffusersPrior":
        """Read a folder, or a repository of the Hugging Face Hub.

        path  a folder of a pipeline or of a network, or hf://owner/repo, with @revision for another than the newest.
              Downloaded files are read from the cache of `huggingface_hub`, with HF_HUB_OFFLINE=1 only from there

        Weights are `.safetensors`, or a `.bin` that is read without executing code. Raises ValueError if
        the extra is missing or the folder does not hold such a model.
        """
        unet, scheduler = read_unet(local_folder(path, latent=False))
        return cls(unet, scheduler, class_label=class_label, value_range=(value_range[0], value_range[1]))

    @classmethod
    def example(cls) -> "DiffusersPrior":
        """With a small stand-in, which works without diffusers."""
        return cls(example_unet(channels=1, sample_size=16), {"_class_name": "DDPMScheduler"})

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        unet, ddpm = example_unet(channels=1, sample_size=8), {"_class_name": "DDPMScheduler"}
        return {
            "example": cls.example(),
            "any size": cls(example_unet(channels=1, sample_size=None), ddpm, value_range=(-1.0, 3.0)),
            "v": cls(unet, {**ddpm, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
            "ve": cls(unet, {"_class_name": "ScoreSdeVeScheduler"}),
            "codes": cls.of_codes(unet, ddpm),
        }


class _Network(nn.Module):
    """The calling convention of `ParametrisedPrior` for a `UNet2DModel`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


class StandIn(nn.Module):
    """The interface of a `UNet2DModel` used here."""

    def __init__(self, channels: int, sample_size: int | None) -> None:
        super().__init__()
        self.config = {"in_channels": channels, "out_channels": channels, "sample_size": sample_size}
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None, return_dict: bool) -> tuple[Tensor]:
        return (torch.tanh(self.convolution(x) + sigma_per_row(t, x) / 1000),)


def example_unet(channels: int, sample_size: int | None) -> StandIn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StandIn(channels, sample_size)
