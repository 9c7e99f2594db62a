"""Autoencoders of latent-diffusion, the home code of latent diffusion models, as codecs.

Paper      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv:2112.10752.
Form       Codes are scale E(image), images on [-1, 1]. With a codebook (VQ) decode takes the nearest entry for every
           code, and gradients pass straight through; with a law (KL) encode gives its mean.
Network    Written here under the names of latent-diffusion, which determine it together with the shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import BlockCodec


@dataclass(frozen=True)
class CompVisSpec:
    """Hyper-parameters of encoder and decoder.

    codes      channels of codes
    inner      channels between quantisation and decoder (`z_channels`)
    entries    of the codebook, None: the encoder gives mean and variance
    attention  levels with attention, 0 the finest, of the encoder and the decoder
    middle     attention at the coarsest level
    """

    channels: int
    codes: int
    inner: int
    width: int
    mults: tuple[int, ...]
    blocks: int
    entries: int | None
    attention: tuple[tuple[int, ...], tuple[int, ...]]
    middle: bool

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "CompVisSpec":
        """From the names and shapes of the weights. KeyError or ValueError for another network."""
        levels = 1 + max((int(name.split(".")[2]) for name in weights if name.startswith("encoder.down.")), default=0)
        first = weights["encoder.conv_in.weight"]
        width, channels = first.shape[:2]
        outs = [weights[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        book = weights.get("quantize.embedding.weight")
        encoder, decoder = (
            tuple(level for level in range(levels) if f"{part}.{level}.attn.0.q.weight" in weights)
            for part in ("encoder.down", "decoder.up")
        )
        return cls(
            channels=channels,
            codes=weights["post_quant_conv.weight"].shape[1],
            inner=weights["post_quant_conv.weight"].shape[0],
            width=width,
            mults=tuple(out // width for out in outs),
            blocks=sum(f"encoder.down.0.block.{k}.conv1.weight" in weights for k in range(100)),
            entries=None if book is None else book.shape[0],
            attention=(encoder, decoder),
            middle="encoder.mid.attn_1.q.weight" in weights,
        )


class CompVisNetwork(nn.Module):
    """Encoder, decoder and what lies between; `build` fills it."""

    def __init__(self, spec: CompVisSpec) -> None:
        super().__init__()
        self.spec = spec
        double = 2 if spec.entries is None else 1
        self.encoder, self.decoder = _Encoder(spec, double * spec.inner), _Decoder(spec)
        self.quant_conv = nn.Conv2d(double * spec.inner, double * spec.codes, 1)
        self.post_quant_conv = nn.Conv2d(spec.codes, spec.inner, 1)
        if spec.entries is not None:
            self.quantize = _Book(spec.entries, spec.codes)

    def encode(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))[:, : self.spec.codes]

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes if self.spec.entries is None else self.quantize(codes)))


class CompVisCodec(BlockCodec):
    """The autoencoder of a latent diffusion model.

    scale        of codes, the network's `scale_factor`
    value_range  of the images here, which the network takes on [-1, 1]
    """

    def __init__(
        self, network: CompVisNetwork, *, scale: float = 1.0, value_range: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.network, self.code_scale = network.eval().requires_grad_(False), scale
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.channels, self.code_channels = network.spec.channels, network.spec.codes
        self.factor = 2 ** (len(network.spec.mults) - 1)

    def encode(self, images: Tensor) -> Tensor:
        low, high = self.value_range
        return self.code_scale * self.network.encode(2 * (images - low) / (high - low) - 1)

    def decode(self, codes: Tensor) -> Tensor:
        low, high = self.value_range
        return low + (high - low) * (self.network.decode(codes / self.code_scale) + 1) / 2

    @classmethod
    def example(cls) -> tuple["CompVisCodec", tuple[int, ...]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = CompVisNetwork(CompVisSpec(1, 2, 2, 32, (1, 1), 1, None, ((), ()), True))
        return cls(network), (2, 8, 8)


# -- encoder and decoder -----------------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    def __init__(self, spec: CompVisSpec, out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(spec.channels, spec.width, 3, padding=1)
        widths = [mult * spec.width for mult in spec.mults]
        stages = [
            _Stage(into, width, spec.blocks, attention=level in spec.attention[0])
            for level, (into, width) in enumerate(zip([spec.width, *widths], widths, strict=False))
        ]
        for stage, width in zip(stages[:-1], widths, strict=False):
            stage.downsample = _Convolution(width, stride=2)
        self.down, self.mid = nn.ModuleList(stages), _Middle(widths[-1], attention=spec.middle)
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class _Decoder(nn.Module):
    def __init__(self, spec: CompVisSpec) -> None:
        super().__init__()
        widths = [mult * spec.width for mult in spec.mults]
        self.conv_in, self.mid = (
            nn.Conv2d(spec.inner, widths[-1], 3, padding=1),
            _Middle(widths[-1], attention=spec.middle),
        )
        stages = [
            _Stage(into, width, spec.blocks + 1, attention=level in spec.attention[1])
            for level, (width, into) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
        ]
        for stage, width in zip(stages[1:], widths[1:], strict=True):
            stage.upsample = _Convolution(width, padding=1)
        self.up = nn.ModuleList(stages)
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], spec.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class _Convolution(nn.Module):
    def __init__(self, width: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Stage(nn.Module):
    """The blocks of a level, each with attention behind it or none, and the way to the next level."""

    downsample: _Convolution
    upsample: _Convolution

    def __init__(self, into: int, out: int, blocks: int, *, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([_Block(into if k == 0 else out, out) for k in range(blocks)])
        self.attn = nn.ModuleList([_Attention(out) for _ in range(blocks if attention else 0)])

    def forward(self, h: Tensor) -> Tensor:
        for place, block in enumerate(self.block):
            h = block(h)
            h = self.attn[place](h) if len(self.attn) else h
        if hasattr(self, "downsample"):
            return self.downsample(F.pad(h, (0, 1, 0, 1)))
        return self.upsample(F.interpolate(h, scale_factor=2, mode="nearest")) if hasattr(self, "upsample") else h


class _Middle(nn.Module):
    def __init__(self, width: int, *, attention: bool) -> None:
        super().__init__()
        self.block_1, self.block_2 = _Block(width, width), _Block(width, width)
        self.attn_1 = _Attention(width) if attention else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class _Book(nn.Module):
    def __init__(self, entries: int, codes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, codes)

    def forward(self, codes: Tensor) -> Tensor:
        """The nearest entry for every code, gradients pass."""
        flat = codes.detach().movedim(1, -1)
        book = self.embedding.weight
        distances = torch.cdist(flat.flatten(0, -2), book, compute_mode="donot_use_mm_for_euclid_dist")
        return codes + (book[distances.argmin(1)].reshape(flat.shape).movedim(-1, 1) - codes.detach())


class _Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        if into != out:
            self.nin_shortcut = nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).mT for part in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))
