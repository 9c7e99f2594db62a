"""The magnitude-preserving U-Net of EDM2.

Paper       Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024,
            arXiv:2312.02696, Figure 21 and Equations 47, 75, 81, 88, 103.
Network     Written here under the names of NVlabs' edm2. Its constants are those of that code: balances 0.3 of
            residuals and attention, 0.5 of labels and skips, activations clipped at 256, heads of 64 channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # channels


@dataclass(frozen=True)
class EDM2Spec:
    """Hyper-parameters of the network; `attention` holds sides of images."""

    side: int
    channels: int
    widths: tuple[int, ...]
    noise: int
    embedded: int
    blocks: int
    attention: tuple[int, ...]
    classes: int | None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "EDM2Spec":
        """From names such as enc.64x64_block0.conv_res0.weight. KeyError or ValueError for another network."""
        places = {name.split(".")[1] for name in weights if name.startswith("enc.")}
        sides = sorted({int(place.split("x")[0]) for place in places}, reverse=True)
        if not sides:
            raise ValueError("it has no enc")
        embedded, noise = weights["emb_noise.weight"].shape
        return cls(
            side=sides[0],
            channels=weights["out_conv.weight"].shape[0],
            widths=tuple(weights[f"enc.{side}x{side}_block0.conv_res0.weight"].shape[0] for side in sides),
            noise=noise,
            embedded=embedded,
            blocks=sum(place.startswith(f"{sides[0]}x{sides[0]}_block") for place in places),
            attention=tuple(side for side in sides if f"enc.{side}x{side}_block0.attn_qkv.weight" in weights),
            classes=weights["emb_label.weight"].shape[1] if "emb_label.weight" in weights else None,
        )


class EDM2Network(nn.Module):
    """(B, C, H, W), c_noise (B,) and, with classes, labels (B,) to (B, C, H, W)."""

    def __init__(self, spec: EDM2Spec) -> None:
        super().__init__()
        self.spec = spec
        self.emb_fourier = _Fourier(spec.noise)
        self.emb_noise = _Convolution(spec.noise, spec.embedded)
        if spec.classes is not None:
            self.emb_label = _Convolution(spec.classes, spec.embedded)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, skips = spec.widths[0], [spec.widths[0]]
        for level, out in enumerate(spec.widths):
            side = spec.side >> level
            at, attention = f"{side}x{side}", side in spec.attention
            if level == 0:
                self.enc[f"{at}_conv"] = _Convolution(spec.channels + 1, out, 3)
            else:
                self.enc[f"{at}_down"] = _Block(width, width, spec.embedded, encoder=True, resize="down")
                skips.append(width)
            for k in range(spec.blocks):
                self.enc[f"{at}_block{k}"] = _Block(width, out, spec.embedded, encoder=True, attention=attention)
                width = out
                skips.append(width)
        for level in reversed(range(len(spec.widths))):
            side, out = spec.side >> level, spec.widths[level]
            at, attention = f"{side}x{side}", side in spec.attention
            if level == len(spec.widths) - 1:
                self.dec[f"{at}_in0"] = _Block(width, width, spec.embedded, attention=True)
                self.dec[f"{at}_in1"] = _Block(width, width, spec.embedded)
            else:
                self.dec[f"{at}_up"] = _Block(width, width, spec.embedded, resize="up")
            for k in range(spec.blocks + 1):
                self.dec[f"{at}_block{k}"] = _Block(width + skips.pop(), out, spec.embedded, attention=attention)
                width = out
        self.out_conv = _Convolution(width, spec.channels, 3)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(t))
        if label is not None:
            onehot = F.one_hot(label, self.spec.classes or 0).to(x.dtype)
            embedding = _sum(embedding, self.emb_label(onehot * math.sqrt(onehot.shape[1])), 0.5)
        embedding = _silu(embedding)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for block in self.enc.values():
            x = block(x, embedding) if isinstance(block, _Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(_concatenated(x, skips.pop()) if "block" in name else x, embedding)
        return self.out_conv(x, self.out_gain)


def _normalised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divided by its root mean square over these dimensions, plus 1e-4."""
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


def _silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def _sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def _concatenated(a: Tensor, b: Tensor) -> Tensor:
    total = math.sqrt((a.shape[1] + b.shape[1]) / 2)
    return torch.cat([total / math.sqrt(a.shape[1]) * a, total / math.sqrt(b.shape[1]) * b], 1)


class _Fourier(nn.Module):
    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(width))
        self.register_buffer("phases", torch.zeros(width))

    def forward(self, t: Tensor) -> Tensor:
        return math.sqrt(2) * (t[:, None] * self.freqs + self.phases).cos()


class _Convolution(nn.Module):
    """With weights of unit magnitude per output, without a bias; `size` None: a linear map."""

    def __init__(self, into: int, out: int, size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, into, *(() if size is None else (size, size))))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan = self.weight[0].numel()
        # The home adds 1e-4 to the norm over the root of the fan, as `_normalised` does.
        weight = _normalised(self.weight, tuple(range(1, self.weight.dim()))) * (gain / math.sqrt(fan))
        return x @ weight.T if weight.dim() == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class _Block(nn.Module):
    def __init__(
        self,
        into: int,
        out: int,
        embedded: int,
        *,
        encoder: bool = False,
        attention: bool = False,
        resize: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.attention, self.resize = encoder, attention, resize
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = _Convolution(out if encoder else into, out, 3)
        self.emb_linear = _Convolution(embedded, out)
        self.conv_res1 = _Convolution(out, out, 3)
        self.conv_skip = _Convolution(into, out, 1) if into != out else nn.Identity()
        if attention:
            self.attn_qkv, self.attn_proj = _Convolution(out, 3 * out, 1), _Convolution(out, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.resize is not None:
            x = F.avg_pool2d(x, 2) if self.resize == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        if self.encoder:
            x = _normalised(self.conv_skip(x), (1,))
        y = self.conv_res0(_silu(x))
        y = self.conv_res1(_silu(y * (self.emb_linear(embedding, self.emb_gain) + 1)[:, :, None, None]))
        x = _sum(x if self.encoder else self.conv_skip(x), y, 0.3)
        if self.attention:
            rows, width, height, side = x.shape
            parts = self.attn_qkv(x).reshape(rows, width // HEAD, HEAD, 3, height * side)
            q, k, v = _normalised(parts, (2,)).movedim(2, -1).unbind(2)  # (rows, heads, pixels, HEAD)
            mixed = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
            x = _sum(x, self.attn_proj(mixed), 0.3)
        return x.clamp(-256, 256)
