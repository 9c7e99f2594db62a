"""Latent priors: a prior of codes and the codec that turns codes into images."""

from pathlib import Path

from torch import Tensor

from ..base import Prior
from ..networks.diffusers_prior import (
    DiffusersPrior,
    autoencoder_in,
    example_unet,
    local_folder,
    read_config,
    read_model,
    read_unet,
)
from .autoencoder import KINDS, Autoencoder
from .base import Codec


class LatentPrior(Prior):
    """Images decode(z) of codes z, whose prior diffuses.

    diffusion  the prior of codes, for which D is as exact as for pixels
    codec      of its codes

    Its attributes are those of images; all that has to do with noise levels is in `diffusion`. A sampler works on
    codes, with y = A(decode(z)) + noise; its samples are images.
    """

    def __init__(self, diffusion: Prior, codec: Codec) -> None:
        super().__init__()
        if diffusion.codec is not None:
            raise ValueError("latent: diffusion must be a prior of codes, got one with a codec of its own")
        self._diffusion, self._codec = diffusion, codec
        if diffusion.shape is not None:
            self.shape = codec.image_shape(diffusion.shape)
            reason = diffusion.mismatch(codec.code_shape(self.shape))
            if reason is not None:
                raise ValueError(f"latent: codec and prior of codes do not fit: {reason}")
        self.channels, self.value_range = codec.channels, codec.value_range
        self.differentiable, self.bounded_error = diffusion.differentiable, diffusion.bounded_error

    @property
    def diffusion(self) -> Prior:
        return self._diffusion

    @property
    def codec(self) -> Codec:
        return self._codec

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Raises TypeError: noise is added to codes."""
        raise TypeError("a latent prior denoises codes, not images: prior.diffusion.denoise(codes, sigma)")

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        reason = super().mismatch(shape)
        if reason is not None:
            return reason
        try:
            return self._diffusion.mismatch(self._codec.code_shape(shape))
        except ValueError as error:
            return str(error)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
        image_range: tuple[float, float] = (0.0, 1.0),
    ) -> "LatentPrior":
        """Read a folder of a pipeline (LDMPipeline) or hf://owner/repo, as `DiffusersPrior.load`.

        code_range   of clean codes, which have a standard deviation of about 1; for divergence alone
        image_range  of the images
        """
        folder = local_folder(path, latent=True)
        place = folder / str(autoencoder_in(folder))
        kind = read_config(place / "config.json").get("_class_name")
        if kind not in KINDS:
            raise ValueError(f"the autoencoder in {place} must be one of {', '.join(KINDS)}, got {kind}")
        unet, scheduler = read_unet(folder)
        autoencoder = Autoencoder(read_model(place, kind), value_range=(image_range[0], image_range[1]))
        diffusion = DiffusersPrior.of_codes(
            unet, scheduler, class_label=class_label, code_range=(code_range[0], code_range[1])
        )
        return cls(diffusion, autoencoder)

    @classmethod
    def example(cls) -> "LatentPrior":
        """With small stand-ins, which work without diffusers."""
        unet, (codec, _) = example_unet(channels=4, sample_size=8), Autoencoder.example()
        return cls(DiffusersPrior.of_codes(unet, {"_class_name": "DDPMScheduler"}), codec)
