"""Networks of OpenAI's guided-diffusion ("ADM"), among them those of the DPS paper.

Paper       Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, NeurIPS 2021, arXiv:2105.05233.
Form        x_k = sqrt(abar_k) z + sqrt(1 - abar_k) eps on [-1, 1]; the network predicts eps, and in as many channels
            more a variance of steps (`denoise_and_share`). z0 = x_k / sqrt(abar_k) - sqrt(1 / abar_k - 1) eps.
Time        k of 1000; between two of them the fractional step, linear in ln sigma (`rule`).
Network     put together from the blocks of `deepinv`, under the names that guided-diffusion gives its weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base import Prior
from .checkpoint_files import build, read_tensors, save_network
from .network_time import DiscreteTime, NetworkTime, Rule, VPTime
from .parametrised import ParametrisedPrior

SIDES = {4: 64, 5: 128, 6: 256, 7: 512}  # of images, by the number of levels, as guided-diffusion chooses them


@dataclass(frozen=True)
class ADMSpec:
    """Hyper-parameters of the network, in the words of guided-diffusion.

    attention        levels with attention, 0 the finest
    head_channels    channels of one attention head; where None there are `heads` of them
    """

    channels: int
    out_channels: int
    width: int
    mults: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    classes: int | None
    scale_shift: bool
    resblock_updown: bool
    head_channels: int | None = 64
    heads: int = 4
    new_attention_order: bool = False

    @classmethod
    def of(
        cls,
        weights: Mapping[str, Tensor],
        *,
        head_channels: int | None = 64,
        heads: int = 4,
        new_attention_order: bool = False,
    ) -> "ADMSpec":
        """From the shapes of the weights and further settings. KeyError or ValueError for weights of another network.

        One level ends where an output block also makes the image larger.
        """
        places = [int(name.split(".")[1]) for name in weights if name.startswith("output_blocks.")]
        if not places:
            raise ValueError("it has no output_blocks")
        outputs = 1 + max(places)
        larger = [
            (place, kind)
            for place in range(outputs)
            for layer in (1, 2)
            for kind in ("in_layers.0.weight", "conv.weight")
            if f"output_blocks.{place}.{layer}.{kind}" in weights
        ]
        levels = len(larger) + 1
        blocks = outputs // levels - 1
        first = [1 + level * (blocks + 1) for level in range(levels)]  # input block that opens each level
        width = weights["time_embed.0.weight"].shape[1]
        outs = [weights[f"input_blocks.{k}.0.out_layers.3.weight"].shape[0] for k in first]
        return cls(
            channels=weights["input_blocks.0.0.weight"].shape[1],
            out_channels=weights["out.2.weight"].shape[0],
            width=width,
            mults=tuple(out / width for out in outs),
            blocks=blocks,
            attention=tuple(level for level, k in enumerate(first) if f"input_blocks.{k}.1.qkv.weight" in weights),
            classes=weights["label_emb.weight"].shape[0] if "label_emb.weight" in weights else None,
            scale_shift=weights["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * outs[0],
            resblock_updown=any(kind.startswith("in_layers") for _, kind in larger),
            head_channels=head_channels,
            heads=heads,
            new_attention_order=new_attention_order,
        )


class ADMNetwork(nn.Module):
    """The U-Net: (B, C, H, W), time steps (B,) and, with classes, labels (B,) to (B, C or 2 C, H, W)."""

    def __init__(self, spec: ADMSpec) -> None:
        # Imported here: it takes seconds, which a start of the program should not.
        from deepinv.models.diffunet import (
            AttentionBlock,
            Downsample,
            ResBlock,
            TimestepEmbedSequential,
            Upsample,
            normalization,
        )

        super().__init__()
        self.spec = spec
        embedded = 4 * spec.width
        widths = [int(mult * spec.width) for mult in spec.mults]
        coarsest = len(widths) - 1

        def block(into: int, out: int, *, up: bool = False, down: bool = False) -> nn.Module:
            scale_shift = spec.scale_shift
            return ResBlock(into, embedded, 0.0, out, use_scale_shift_norm=scale_shift, up=up, down=down)

        def attention(width: int) -> nn.Module:
            per_head = -1 if spec.head_channels is None else spec.head_channels
            return AttentionBlock(width, spec.heads, per_head, use_new_attention_order=spec.new_attention_order)

        self.time_embed = nn.Sequential(nn.Linear(spec.width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        if spec.classes is not None:
            self.label_emb = nn.Embedding(spec.classes, embedded)

        width = widths[0]
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(spec.channels, width, 3, padding=1))])
        skips = [width]
        for level, out in enumerate(widths):
            for _ in range(spec.blocks):
                layers = [block(width, out), *([attention(out)] if level in spec.attention else [])]
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                width = out
                skips.append(width)
            if level < coarsest:
                smaller = block(width, width, down=True) if spec.resblock_updown else Downsample(width, True)
                self.input_blocks.append(TimestepEmbedSequential(smaller))
                skips.append(width)

        self.middle_block = TimestepEmbedSequential(block(width, width), attention(width), block(width, width))

        self.output_blocks = nn.ModuleList()
        for level in range(coarsest, -1, -1):
            out = widths[level]
            for place in range(spec.blocks + 1):
                layers = [block(width + skips.pop(), out), *([attention(out)] if level in spec.attention else [])]
                width = out
                if level > 0 and place == spec.blocks:
                    layers.append(block(width, width, up=True) if spec.resblock_updown else Upsample(width, True))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(normalization(width), nn.SiLU(), nn.Conv2d(width, spec.out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        step = 2 ** (len(self.spec.mults) - 1)
        if any(side % step for side in x.shape[2:]):
            raise ValueError(f"sides of images of this network must be multiples of {step}, got {tuple(x.shape[2:])}")
        half = self.spec.width // 2
        rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
        angles = t[:, None] * rates.to(x.dtype)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        if label is not None:
            embedding = embedding + self.label_emb(label)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), embedding)
        return self.out(x)


class ADMPrior(ParametrisedPrior):
    """A denoiser by a network of guided-diffusion.

    network      the U-Net
    image_size   side of the training images; divisible by 2 for each level but one
    schedule     its noise levels
    class_label  the class that images belong to, for a network with classes
    """

    network: ADMNetwork

    def __init__(
        self,
        network: ADMNetwork,
        *,
        image_size: int = 256,
        schedule: NetworkTime | None = None,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        spec = network.spec
        step = 2 ** (len(spec.mults) - 1)
        if image_size % step:
            raise ValueError(f"image_size must be a multiple of {step} for this network, got {image_size}")
        if spec.out_channels not in (spec.channels, 2 * spec.channels):
            raise ValueError(f"out_channels must be {spec.channels} or {2 * spec.channels}, got {spec.out_channels}")
        check_label(class_label, spec.classes)
        super().__init__(
            network,
            "epsilon",
            schedule or DiscreteTime.linear(),
            shape=(spec.channels, image_size, image_size),
            value_range=value_range,
            learned_variance=spec.out_channels == 2 * spec.channels,
            class_label=class_label,
        )
        self.step_variance = self.learned_variance

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        image_size: int = 256,
        steps: int = 1000,
        noise: str = "linear",
        rule: Rule = "interpolate",
        head_channels: int | None = 64,
        heads: int = 4,
        new_attention_order: bool = False,
        class_label: int | None = None,
        sha256: str | None = None,
        trust_pickle: bool = False,
    ) -> "ADMPrior":
        """Read a state dict of guided-diffusion, `.pt` or `.safetensors`.

        The weights determine the network except for these settings; the defaults are those of `ffhq_10m.pt` and of
        OpenAI's networks for 256 x 256 images.

        image_size           side of the images
        steps, noise         its `diffusion_steps` and `noise_schedule`, "linear" or "cosine"; "vp": the continuous
                             process of InverseBench's VPPrecond
        rule                 its time input between two steps, see `DiscreteTime`
        head_channels        its `num_head_channels`; None where it was trained with `num_heads`, which goes in `heads`
        new_attention_order  its `use_new_attention_order`
        class_label          the class that images belong to, for a network with classes
        sha256               expected hash of the file, None: not checked

        Raises ValueError if the file or the settings do not fit.
        """
        tensors = read_tensors(weights, sha256=sha256, trust_pickle=trust_pickle)
        return cls.of_tensors(
            tensors,
            weights,
            image_size=image_size,
            steps=steps,
            noise=noise,
            rule=rule,
            head_channels=head_channels,
            heads=heads,
            new_attention_order=new_attention_order,
            class_label=class_label,
        )

    @classmethod
    def of_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        path: str | Path,
        *,
        image_size: int | None = None,
        steps: int = 1000,
        noise: str = "linear",
        rule: Rule = "interpolate",
        head_channels: int | None = 64,
        heads: int = 4,
        new_attention_order: bool = False,
        class_label: int | None = None,
    ) -> "ADMPrior":
        """From the tensors of a checkpoint, which is named in errors; the rest as in `load`.

        image_size  None: from the number of levels, as guided-diffusion chooses them
        """
        try:
            spec = ADMSpec.of(
                tensors, head_channels=head_channels, heads=heads, new_attention_order=new_attention_order
            )
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{path} must hold a U-Net of guided-diffusion: {error}") from error
        levels = _schedule(noise, steps, rule)
        network = build(lambda: ADMNetwork(spec), tensors, path)
        return cls(network, image_size=image_size or side_of(spec, path), schedule=levels, class_label=class_label)

    def save(self, path: str | Path) -> None:
        """Write the weights under their own names to a `.safetensors` file, to be loaded with the same settings."""
        save_network(self.network, path)

    @classmethod
    def example(cls) -> "ADMPrior":
        spec = ADMSpec(1, 2, 32, (1, 1), 1, (1,), 3, True, True, head_channels=32)
        return cls(_example_network(spec), image_size=8, class_label=1)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        plain = _example_network(ADMSpec(1, 1, 32, (1, 1), 1, (), None, False, False, head_channels=32))
        return {
            "example": cls.example(),
            "no classes, no variance": cls(plain, image_size=8),
            "cosine, nearest step": cls(plain, image_size=8, schedule=DiscreteTime.cosine(rule="nearest")),
        }


def side_of(spec: ADMSpec, path: str | Path) -> int:
    """Side of the training images by the number of levels; ValueError for another number."""
    if len(spec.mults) not in SIDES:
        raise ValueError(f"{path} has {len(spec.mults)} levels, which do not tell the side of images: give image_size=")
    return SIDES[len(spec.mults)]


def _schedule(noise: str, steps: int, rule: Rule) -> NetworkTime:
    if noise == "vp":
        return VPTime(0.1, 20.0, t_min=1e-5)
    if noise not in ("linear", "cosine"):
        raise ValueError(f"noise must be 'linear', 'cosine' or 'vp', got {noise!r}")
    return DiscreteTime.linear(steps, rule=rule) if noise == "linear" else DiscreteTime.cosine(steps, rule=rule)


def _example_network(spec: ADMSpec) -> ADMNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ADMNetwork(spec)
        for parameter in network.parameters():  # some are zero at first, which would hide mistakes
            nn.init.normal_(parameter, std=0.05)
    return network


def check_label(label: int | None, classes: int | None) -> None:
    """ValueError unless `label` is one of the classes, or None for a network without."""
    if classes is None and label is not None:
        raise ValueError(f"class_label must be null for a network without classes, got {label}")
    if classes is not None and (label is None or not 0 <= label < classes):
        raise ValueError(
            f"class_label must be an integer from 0 to {classes - 1} for a network with {classes} classes, got {label}"
        )
