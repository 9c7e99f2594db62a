"""Latent models of `diffusers` as priors of codes: a `UNet2DModel` on the codes of an autoencoder.

Paper      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv:2112.10752.
Form       Its x are codes z = (E(image) - shift) scale, for which D is as exact as for pixels; it is not a denoiser of
           noisy images. So problems are posed for codes: y = A(decode(z)) + noise, nonlinear and
           differentiable, and samples are decoded at the end. `invdiff.latent` does both.
Encoder    AutoencoderKL (its mode) or VQModel (its quantisation passes gradients straight through), on [-1, 1].
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ..networks.diffusers_prior import (
    DiffusersPrior,
    autoencoder_in,
    example_unet,
    local_folder,
    read_config,
    read_model,
    read_unet,
)

KINDS = ("AutoencoderKL", "VQModel")


class LatentPrior(DiffusersPrior):
    """A `UNet2DModel` on codes, the configuration of its scheduler, and the autoencoder.

    unet, scheduler, class_label  as in `DiffusersPrior`
    autoencoder                   with its `config`, which holds the scale of codes
    code_range                    range of clean codes, which have a standard deviation of about 1
    image_range                   range of the images of `decode`

    `shape`, `sigma_range` and `value_range` are of codes.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        autoencoder: nn.Module,
        *,
        class_label: int | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
        image_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if scheduler.get("_class_name") == "ScoreSdeVeScheduler":
            raise ValueError(
                "the scheduler of a UNet on codes must be a variance-preserving chain, got ScoreSdeVeScheduler"
            )
        super().__init__(unet, scheduler, class_label=class_label, value_range=(-1.0, 1.0))
        for name, (low, high) in (("code_range", code_range), ("image_range", image_range)):
            if not low < high:
                raise ValueError(f"{name} must be (low, high) with low < high, got ({low}, {high})")
        # The network takes codes unchanged: equal ranges mean no change of variable.
        self.value_range = self.network_range = (float(code_range[0]), float(code_range[1]))
        self.unit = 1.0  # the network's own
        self.image_range = (float(image_range[0]), float(image_range[1]))
        config: Mapping[str, Any] = autoencoder.config  # type: ignore[assignment]  # set by diffusers
        if config["latent_channels"] != self.channels:
            raise ValueError(
                f"codes of the autoencoder must have {self.channels} channels, got {config['latent_channels']}"
            )
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.code_scale, self.code_shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)

    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, *shape) of images (B, C, H, W) in `image_range`."""
        low, high = self.image_range
        found = self.autoencoder.encode(2 * (images - low) / (high - low) - 1)  # type: ignore[operator]
        codes = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (codes - self.code_shift) * self.code_scale

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W) of codes (B, *shape); not clamped, so that gradients are not zero."""
        low, high = self.image_range
        images = self.autoencoder.decode(codes / self.code_scale + self.code_shift).sample  # type: ignore[operator]
        return low + (high - low) * (images + 1) / 2

    @classmethod
    def load(  # type: ignore[override]  # it has other ranges
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
        image_range: tuple[float, float] = (0.0, 1.0),
    ) -> "LatentPrior":
        """Read a folder of a pipeline (LDMPipeline) or hf://owner/repo, as `DiffusersPrior.load`."""
        folder = local_folder(path, latent=True)
        place = folder / str(autoencoder_in(folder))
        kind = read_config(place / "config.json").get("_class_name")
        if kind not in KINDS:
            raise ValueError(f"the autoencoder in {place} must be one of {', '.join(KINDS)}, got {kind}")
        unet, scheduler = read_unet(folder)
        autoencoder = read_model(place, kind)
        return cls(
            unet, scheduler, autoencoder, class_label=class_label, code_range=code_range, image_range=image_range
        )

    @classmethod
    def example(cls) -> "LatentPrior":
        """With small stand-ins, which work without diffusers."""
        return cls(example_unet(channels=4, sample_size=8), {"_class_name": "DDPMScheduler"}, _Unshuffled())


class _Unshuffled(nn.Module):
    """The interface of an autoencoder used here: four pixels of a grey image are a code."""

    config = {"latent_channels": 4, "scaling_factor": 0.5}  # noqa: RUF012, as in diffusers

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=nn.functional.pixel_unshuffle(x, 2))

    def decode(self, codes: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=nn.functional.pixel_shuffle(codes, 2))
