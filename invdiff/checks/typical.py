"""Typical images of a prior, at the price of one network call at most."""

import torch
from torch import Tensor

from invdiff.priors import Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.streams import generator

COUNT = 3
# A network with more parameters takes seconds on the CPU, where these checks run; its mean image is then not computed.
MOST_PARAMETERS = 40_000_000
CONTRAST = 0.5  # standard deviation of synthetic images, in the prior's unit
TEXTURE = 0.05  # of an image, that a first look cannot tell from noise: of the prior's scale


@torch.no_grad()
def typical_images(prior: Prior, shape: tuple[int, ...]) -> Tensor:
    """Images (3, C, H, W) such as this prior expects, for orders of magnitude and coarse structure alone.

    The prior's mean image, which is the denoised highest noise level, and draws of a prior in closed form, or smooth
    random fields within the range of a network.
    """
    streams = [generator(0, "generate", i) for i in range(COUNT)]
    mean = mean_image(prior, shape, streams[0])[None]
    if isinstance(prior, ClosedFormPrior):
        return torch.cat([mean, *(prior.sample(1, stream).float() for stream in streams[1:])])
    return torch.cat([mean, smooth_images(prior, shape, COUNT - 1)])


def mean_image(prior: Prior, shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """The mean of a prior's images, (C, H, W), by one call; its centre where a call would take long."""
    if sum(parameter.numel() for parameter in prior.parameters()) > MOST_PARAMETERS:
        return prior.centre.cpu().expand(shape).clone()
    diffusion, codec = prior.diffusion, prior.codec
    sigma = diffusion.sigma_range[1]
    where = next((tensor.device for tensor in [*prior.parameters(), *prior.buffers()]), torch.device("cpu"))
    noise = torch.randn(1, *prior.diffusion_shape(shape), generator=stream).to(where)
    mean = diffusion.denoise(diffusion.start(sigma, noise), sigma)
    return (mean if codec is None else codec.decode(mean))[0].float().cpu()


def smooth_images(prior: Prior, shape: tuple[int, ...], count: int) -> Tensor:
    """Smooth random fields (count, C, H, W) about the prior's centre, within its range."""
    centre, (low, high) = prior.centre.cpu().expand(shape), prior.value_range
    fields = [smooth_field(shape, generator(0, "generate", COUNT + i)) for i in range(count)]
    return (centre + CONTRAST * prior.unit * torch.stack(fields)).clamp(low, high)


def rough_image(prior: Prior, shape: tuple[int, ...]) -> Tensor:
    """White noise about the prior's centre, (C, H, W), as strong as the finest texture of an image may be."""
    noise = torch.randn(shape, generator=generator(0, "generate", 2 * COUNT))
    return prior.centre.cpu().expand(shape) + TEXTURE * prior.scale * noise


def smooth_field(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """A random field (C, H, W) of mean 0 and standard deviation 1 whose spectrum falls as 1 / frequency."""
    noise = torch.randn(shape, generator=stream)
    frequency = [torch.fft.fftfreq(n).square() for n in shape[-2:]]
    radius = (frequency[0][:, None] + frequency[1]).sqrt()
    radius[0, 0] = torch.inf
    field = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    return field / field.std().clamp(min=1e-6) if field.numel() > 1 else field
