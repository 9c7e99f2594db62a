"""The network behind the bundled priors: a compact U-Net, fully convolutional, sized for CPUs.

What makes it cheap: pixels are folded into channels first (`patch`), so that no convolution runs at full resolution;
each residual block has one normalisation and two 3x3 convolutions; there is no attention, so the cost is linear in the
number of pixels and any image size works. Normalisation is over the channels of one pixel, never over the image: the
output at a pixel does not depend on the size of the picture around it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """Everything needed to build the network again; stored in the header of a weights file.

    channels  image channels (1 grey, 3 RGB)
    patch     side of the square of pixels folded into channels before the first convolution
    widths    channels of each level; every level halves the resolution of the one before
    blocks    residual blocks of each level, the same number on the way down and on the way up
    """

    channels: int
    patch: int = 2
    widths: tuple[int, ...] = (64, 128, 192, 256)
    blocks: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        numbers = (self.channels, self.patch, *self.widths, *self.blocks)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError(f"channels, patch, widths and blocks must be whole numbers, got {str(numbers)[:60]}")
        if min(self.channels, self.patch, *self.widths) < 1:
            raise ValueError(f"channels, patch and widths must be at least 1, got {str(numbers)[:60]}")
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths and blocks must have one entry per level, got {self.widths} and {self.blocks}")

    def check_fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless these are the weights of this network, before it is built: a header may lie.

        Names and shapes of the tensors give every number; loading them then compares the rest.
        """
        counts: dict[int, int] = {}
        for name in tensors:
            place = re.fullmatch(r"down\.(\d{1,6})\.(\d{1,6})\.conv1\.weight", name)
            if place:
                counts[int(place[1])] = max(counts.get(int(place[1]), 0), int(place[2]) + 1)
        levels = 1 + sum(bool(re.fullmatch(r"shrink\.\d{1,6}\.weight", name)) for name in tensors)
        head = tensors["head.weight"]
        widths = (head.shape[0], *(tensors[f"shrink.{level}.weight"].shape[0] for level in range(levels - 1)))
        if sum(counts.values()) > len(tensors):
            raise ValueError("the names of its tensors skip numbers")
        for what, stated, found in (
            ("widths", self.widths, widths),
            ("blocks", self.blocks, tuple(counts.get(level, 0) for level in range(levels))),
            ("channels * patch^2", self.channels * self.patch**2, head.shape[1]),
        ):
            if stated != found:
                raise ValueError(f"{what} must be {found} as in the tensors, got {str(stated)[:60]}")

    @property
    def multiple(self) -> int:
        """Height and width must be divisible by this; `UNet.forward` pads where they are not."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def as_dict(self) -> dict:
        return asdict(self)


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise coordinate, then a small perceptron: (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 32) -> None:
        super().__init__()
        # From 1/4 to 16 cycles over one unit of c_noise = ln(sigma) / 4: neighbouring noise levels stay neighbours.
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 4, frequencies, base=2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise: Tensor) -> Tensor:
        phase = noise[:, None] * self.frequencies
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1))


def channel_norm(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels of each pixel; a view in channels_last, so no copy."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(FiLM(norm(x), noise)))))."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding, 2 * width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        zero(self.film)
        zero(self.conv2)  # the block starts as the identity

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, channel_norm(x), 1 + scale))
        return x + self.conv2(F.silu(self.conv1(h)))


class Level(nn.ModuleList):
    """The residual blocks of one resolution, one after the other.

    checkpoint_gradients  keep only what enters each block for the backward pass, and run the block again there
    """

    checkpoint_gradients = False

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            if self.checkpoint_gradients and torch.is_grad_enabled():
                h = checkpoint(block, h, embedding, use_reentrant=False)
            else:
                h = block(h, embedding)
        return h


def zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Zero weights and bias: a branch that starts without influence."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class UNet(nn.Module):
    """(B, C, H, W) and noise coordinate (B,) -> (B, C, H, W), any H and W."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        embedding = 4 * spec.widths[0]
        folded = spec.channels * spec.patch**2
        self.embed = NoiseEmbedding(embedding)
        self.head = nn.Conv2d(folded, spec.widths[0], 3, padding=1)
        self.down = nn.ModuleList(self._level(w, n, embedding) for w, n in zip(spec.widths, spec.blocks, strict=True))
        self.up = nn.ModuleList(
            self._level(w, n, embedding) for w, n in zip(spec.widths[:-1], spec.blocks[:-1], strict=True)
        )
        pairs = list(zip(spec.widths[:-1], spec.widths[1:], strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairs)
        self.tail = nn.Conv2d(spec.widths[0], folded, 3, padding=1)
        zero(self.tail)

    @staticmethod
    def _level(width: int, count: int, embedding: int) -> "Level":
        return Level(ResidualBlock(width, embedding) for _ in range(count))

    def start_from(self, trained: "UNet") -> None:
        """Take over a trained network with as many blocks or fewer: added to a new network, the rest is the identity.

        A grey network may take over one for colours: of a grey image it gives what that one gives of three equal
        colours, averaged over them.

        Raises ValueError where the two differ in anything else.
        """
        old, new = trained.spec, self.spec
        alike = (old.patch, old.widths) == (new.patch, new.widths) and new.channels in (old.channels, 1)
        if not alike or any(before > now for before, now in zip(old.blocks, new.blocks, strict=True)):
            raise ValueError(
                "weights to start from must belong to this network, to one with fewer blocks, or to its version for "
                f"colours, got {old}"
            )
        weights = trained.state_dict()
        if new.channels != old.channels:
            colours = (old.channels, old.patch**2)
            weights["head.weight"] = weights["head.weight"].unflatten(1, colours).sum(1)
            for name in ("tail.weight", "tail.bias"):
                weights[name] = weights[name].unflatten(0, colours).mean(0)
        self.load_state_dict(weights, strict=False)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        multiple = self.spec.multiple
        pad = (-width % multiple, -height % multiple)
        if any(pad):
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")
        embedding = self.embed(noise)

        h = self.head(F.pixel_unshuffle(x, self.spec.patch))
        skips = []
        for level, blocks in enumerate(self.down):
            h = blocks(h, embedding)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.up))):
            h = self.up[level](self.grow[level](h) + skips[level], embedding)
        out = F.pixel_shuffle(self.tail(F.silu(channel_norm(h))), self.spec.patch)
        return out[..., :height, :width]
