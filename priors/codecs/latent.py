"""Latent priors: a prior of codes and the codec that turns codes into images."""

from pathlib import Path

import torch
from torch import Tensor

from ..base import Prior
from ..codec import Codec
from ..networks.diffusers_files import autoencoder_in, local_folder, read_config, read_model, read_unet, text_kind
from ..networks.diffusers_prior import DiffusersPrior, example_unet
from ..networks.edm import EDMPrior
from ..networks.text_files import read_text_prior
from ..networks.unet import UNet, UNetSpec
from ..weights_file import interval, read_weights, write_weights
from .autoencoder import KINDS, Autoencoder
from .convolutional import ConvolutionalCodec
from .tiled import TiledCodec

KIND = "latent"  # in the header of weights


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
        self.network_calls, self.note = diffusion.network_calls, diffusion.note

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

    # -- weights of `invdiff train` ------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write one `.safetensors` file of an `EDMPrior` of codes and a `ConvolutionalCodec`; `read` reads it."""
        diffusion, codec = self._diffusion, self._codec
        if not isinstance(diffusion, EDMPrior) or not isinstance(codec, ConvolutionalCodec):
            raise TypeError("latent: only an EDMPrior of codes with a ConvolutionalCodec can be saved")
        header = {
            "kind": KIND,
            "codec": codec.spec.as_dict(),
            "value_range": codec.value_range,
            "diffusion": diffusion.header(),
        }
        parts = {"codec": codec.state_dict(), "diffusion": diffusion.network.state_dict()}
        tensors = {f"{part}.{name}": t.to(dtype) for part, named in parts.items() for name, t in named.items()}
        write_weights(path, header, tensors)

    @classmethod
    def read(cls, path: str | Path) -> "LatentPrior":
        """Read a file written by `save`. Raises ValueError where it is missing, damaged or not of this kind."""
        header, tensors = read_weights(path, kind=KIND)
        parts = {
            part: {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
            for part in ("codec", "diffusion")
        }
        try:
            value_range = interval("value_range", header["value_range"])
            codec = ConvolutionalCodec.of_tensors(header["codec"], parts["codec"], value_range)
            inner = header["diffusion"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            words = str(error).splitlines()[-1]
            raise ValueError(f"prior weights have an unusable codec: {path}: {words}") from error
        diffusion = EDMPrior.of_header(inner, parts["diffusion"], path)
        diffusion.unit = 1.0
        return cls(diffusion, codec).eval()

    # -- pipelines of diffusers ----------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
        image_range: tuple[float, float] = (0.0, 1.0),
        tiles: int | None = None,
    ) -> "LatentPrior":
        """Read a folder of a pipeline or hf://owner/repo, as `DiffusersPrior.load`.

        LDMPipeline, or one with text: StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline,
        FluxPipeline. The text is encoded once; the text encoders are not kept.

        prompt           of pipelines with text: what images show; None: the empty text
        negative_prompt  what they do not show, with guidance > 1; None: the text that the pipeline has for it
        guidance         weight of the prompt (classifier-free guidance), None or 1: none. Any other biases the score
                         (see `TextPrior`) and takes two network calls; of FLUX.1 dev it is an input, and takes one
        code_range       of clean codes, which have a standard deviation of about 1; for divergence alone
        image_range      of the images
        tiles            side, in codes, of the overlapping tiles on which the autoencoder works, as `TiledCodec` has
                         them; None: the whole image

        Raises ValueError where the folder does not hold such a pipeline, and for text where it takes none.
        """
        folder = local_folder(path, latent=True)
        place = folder / str(autoencoder_in(folder))
        kind = read_config(place / "config.json").get("_class_name")
        if kind not in KINDS:
            raise ValueError(f"the autoencoder in {place} must be one of {', '.join(KINDS)}, got {kind}")
        autoencoder = Autoencoder(read_model(place, kind), value_range=(image_range[0], image_range[1]))
        diffusion: Prior
        if text_kind(folder) is not None:
            if class_label is not None:
                raise ValueError(f"class_label must be null for {folder}, which takes text, got {class_label}")
            diffusion = read_text_prior(
                folder,
                codes=autoencoder.code_channels,
                factor=autoencoder.factor,
                prompt=prompt or "",
                negative_prompt=negative_prompt,
                guidance=1.0 if guidance is None else guidance,
                code_range=(code_range[0], code_range[1]),
            )
        else:
            if (prompt, negative_prompt, guidance) != (None, None, None):
                raise ValueError(f"prompt, negative_prompt and guidance must be null for {folder}, which takes no text")
            unet, scheduler = read_unet(folder)
            diffusion = DiffusersPrior.of_codes(
                unet, scheduler, class_label=class_label, code_range=(code_range[0], code_range[1])
            )
        return cls(diffusion, autoencoder if tiles is None else TiledCodec(autoencoder, tiles))

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        codec, shape = ConvolutionalCodec.example()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = UNet(UNetSpec(channels=shape[0], patch=1, widths=(8,), blocks=(1,)))
            torch.nn.init.normal_(unet.tail.weight, std=0.05)  # an untrained tail is zero, which would hide mistakes
        diffusion = EDMPrior(unet, shape=shape, sigma_data=1.0, value_range=(-6.0, 6.0))  # type: ignore[arg-type]
        diffusion.unit = 1.0
        return {"example": cls.example(), "trained here": cls(diffusion.eval().requires_grad_(False), codec)}

    @classmethod
    def example(cls) -> "LatentPrior":
        """With small stand-ins, which work without diffusers."""
        unet, (codec, _) = example_unet(channels=4, sample_size=8), Autoencoder.example()
        return cls(DiffusersPrior.of_codes(unet, {"_class_name": "DDPMScheduler"}), codec)
