"""The codec behind the bundled latent priors: a small convolutional autoencoder with a Gaussian code, sized for CPUs.

Paper       Kingma, Welling, Auto-Encoding Variational Bayes, ICLR 2014, arXiv:1312.6114; as the first stage of Rombach
            et al., CVPR 2022, arXiv:2112.10752, without a discriminator.
Form        Pixels are folded into channels first; each level halves the resolution. Codes are (mean - shift) / scale
            with shift and scale of each channel measured on training images: they have mean 0 and standard deviation 1.
Departures  normalisation is over the channels of one pixel, never over the image: the code of a place does not depend
            on the size of the picture around it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..codec import BlockCodec
from ..networks.unet import channel_norm, zero


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """Everything needed to build the network again; stored in the header of a weights file.

    channels       image channels
    code_channels  of a code
    widths         channels of each level, of which the first has half the resolution of images
    blocks         residual blocks of each level, in encoder and decoder
    """

    channels: int
    code_channels: int = 4
    widths: tuple[int, ...] = (32, 96)
    blocks: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        numbers = (self.channels, self.code_channels, *self.widths, *self.blocks)
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 4096 for n in numbers):
            raise ValueError(f"codec: channels, widths and blocks must be whole numbers >= 1, got {str(numbers)[:60]}")
        if len(self.widths) != len(self.blocks) or len(self.widths) > 6:
            raise ValueError("codec: widths and blocks must have one entry per level, 6 at most")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Block(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))); it starts as the identity."""

    checkpoint_gradients = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoint_gradients and torch.is_grad_enabled():
            change: Tensor = checkpoint(self._change, x, use_reentrant=False)
            return x + change
        return x + self._change(x)

    def _change(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.conv1(F.silu(channel_norm(x)))))


class ConvolutionalCodec(BlockCodec):
    """An autoencoder of blocks of 2^levels pixels a side.

    scale, shift  of the codes of the encoder, one for each channel
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: CodecSpec, *, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.spec, self.value_range = spec, (float(value_range[0]), float(value_range[1]))
        self.channels, self.code_channels, self.factor = spec.channels, spec.code_channels, 2 ** len(spec.widths)
        first, last, pairs = spec.widths[0], spec.widths[-1], list(zip(spec.widths, spec.widths[1:], strict=False))
        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * spec.channels, first, 3, padding=1)]
        for level, count in enumerate(spec.blocks):
            down += [Block(spec.widths[level]) for _ in range(count)]
            if level < len(pairs):
                down.append(nn.Conv2d(*pairs[level], 2, stride=2))
        self.encoder = nn.Sequential(*down, nn.Conv2d(last, 2 * spec.code_channels, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(spec.code_channels, last, 3, padding=1)]
        for level in reversed(range(len(spec.blocks))):
            up += [Block(spec.widths[level]) for _ in range(spec.blocks[level])]
            if level:
                up.append(nn.ConvTranspose2d(spec.widths[level], spec.widths[level - 1], 2, stride=2))
        self.decoder = nn.Sequential(*up, nn.Conv2d(first, 4 * spec.channels, 3, padding=1), nn.PixelShuffle(2))
        self.register_buffer("scale", torch.ones(spec.code_channels, 1, 1))
        self.register_buffer("shift", torch.zeros(spec.code_channels, 1, 1))

    def law(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the encoder's Gaussian, before scale and shift."""
        low, high = self.value_range
        mean, log_variance = self.encoder(2 * (images - low) / (high - low) - 1).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def raw_image(self, code: Tensor) -> Tensor:
        """The image of a code before scale and shift."""
        low, high = self.value_range
        return low + (high - low) * (self.decoder(code) + 1) / 2

    def encode(self, images: Tensor) -> Tensor:
        return (self.law(images)[0] - self.shift) / self.scale

    def decode(self, codes: Tensor) -> Tensor:
        return self.raw_image(codes * self.scale + self.shift)

    @classmethod
    def of_tensors(
        cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], value_range: tuple[float, float]
    ) -> "ConvolutionalCodec":
        """From a weights file. Raises ValueError where spec and tensors do not fit, before a large network is built."""
        made = CodecSpec(**spec)
        largest = max((max(t.shape[:1], default=1) for t in tensors.values()), default=0)
        if max(made.widths) * 4 > 16 * max(largest, 1) or sum(made.blocks) > len(tensors):
            raise ValueError("the codec of the header is not that of the tensors")
        codec = cls(made, value_range=value_range)
        codec.load_state_dict(dict(tensors))
        return codec.requires_grad_(False).eval()

    @classmethod
    def example(cls) -> tuple["ConvolutionalCodec", tuple[int, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            codec = cls(CodecSpec(channels=1, code_channels=2, widths=(8, 12), blocks=(1, 1)))
        return codec.requires_grad_(False).eval(), (2, 4, 4)
