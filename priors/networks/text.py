"""Text-conditional networks of `diffusers` on the codes of an autoencoder, as priors of these codes.

Papers      Rombach et al., CVPR 2022, arXiv:2112.10752 (Stable Diffusion); Podell et al., ICLR 2024, arXiv:2307.01952
            (SDXL); Esser et al., ICML 2024, arXiv:2403.03206 (Stable Diffusion 3); Ho and Salimans, Classifier-Free
            Diffusion Guidance, arXiv:2207.12598.
Form        as in `parametrised.py`, with codes taken unchanged: x = z0 + sigma n. The network gets the embedding of one
            text, which was encoded when the prior was made.
Guidance    F = F_negative + w (F_prompt - F_negative), both outputs from one call on a batch of twice the rows. At
            w = 1 there is no second output, and D is that of the network. At any other w the score is no longer that of
            noised codes: it is biased towards the text, and samples are of no known law. FLUX.1 dev takes w as an input
            instead, one row per call; what its training distilled at w > 1 is biased in the same way.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from .network_time import DiscreteTime, NetworkTime, Parametrisation
from .parametrised import ParametrisedPrior


class TextPrior(ParametrisedPrior):
    """A text-conditional network on codes.

    network    (x_t, t, tokens, pooled) -> F, with tokens (B, L, E) and pooled (B, P) or None; a `TextNetwork`
    tokens     (1, L, E) embedding of the prompt; with `negative_tokens` of the same shape: classifier-free guidance
    pooled     (1, P) embedding of the whole prompt, for networks that take one
    guidance   weight w of the prompt, 1: none. w != 1 biases the score, see the module's docstring
    multiple   sides of codes are multiples of it
    code_range of clean codes, which have a standard deviation of about 1; for divergence alone
    """

    network: Callable[..., Tensor]
    guidance: Tensor
    tokens: Tensor
    pooled: Tensor | None
    negative_tokens: Tensor | None
    negative_pooled: Tensor | None

    def __init__(
        self,
        network: Callable[..., Tensor],
        parametrisation: Parametrisation,
        schedule: NetworkTime,
        *,
        channels: int,
        tokens: Tensor,
        pooled: Tensor | None = None,
        negative_tokens: Tensor | None = None,
        negative_pooled: Tensor | None = None,
        guidance: float = 1.0,
        multiple: int = 1,
        code_range: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        low, high = code_range
        if not low < high:
            raise ValueError(f"code_range must be (low, high) with low < high, got ({low}, {high})")
        if not (guidance >= 0 and math.isfinite(guidance)):
            raise ValueError(f"guidance must be >= 0 and finite, got {guidance}")
        super().__init__(network, parametrisation, schedule, channels=channels, value_range=(-1.0, 1.0))
        self.value_range = self.network_range = (float(low), float(high))
        self.unit, self.multiple = 1.0, multiple
        self.register_buffer("guidance", torch.tensor(float(guidance)))  # among what tells priors apart
        self.register_buffer("tokens", tokens)
        self.register_buffer("pooled", pooled)
        self.register_buffer("negative_tokens", negative_tokens)
        self.register_buffer("negative_pooled", negative_pooled)
        self.network_calls = 1 if negative_tokens is None else 2
        if guidance != 1:
            self.note = (
                f"guidance={guidance:g} biases the score towards the text: samples are of no known posterior; "
                "guidance=1 is the network's own prior"
            )

    @property
    def embedding(self) -> Tensor:
        return self.tokens[0]

    def denoise_with(self, x: Tensor, sigma: float | Tensor, embedding: Tensor) -> Tensor:
        return self._denoised(lambda x_t, t: self._guided(x_t, t, embedding), x, sigma)[0]

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        reason = super().mismatch(shape)
        if reason is None and any(side % self.multiple for side in shape[1:]):
            return f"the sides of codes must be multiples of {self.multiple}, got {shape[1]}x{shape[2]}"
        return reason

    def _output(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._guided(x_t, t, self.tokens)

    def _guided(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """F at x_t (B, c, h, w) with tokens (B, L, E) or (1, L, E), and no more channels."""
        rows = len(x_t)
        tokens, pooled = tokens.expand(rows, -1, -1), _expanded(self.pooled, rows)
        if self.negative_tokens is None:
            return self.network(x_t, t, tokens, pooled).to(x_t.dtype), x_t[:, :0]
        both = torch.cat([self.negative_tokens.to(tokens).expand(rows, -1, -1), tokens])
        negative = _expanded(self.negative_pooled, rows)
        pooled = None if pooled is None or negative is None else torch.cat([negative, pooled])
        away, towards = self.network(torch.cat([x_t, x_t]), torch.cat([t, t]), both, pooled).to(x_t.dtype).chunk(2)
        return away + self.guidance * (towards - away), x_t[:, :0]

    @classmethod
    def example(cls) -> "TextPrior":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, tokens, away = _StandIn(1, 3), torch.randn(1, 4, 3), torch.randn(1, 4, 3)
        return cls(
            network,
            "v",
            DiscreteTime.scaled_linear(),
            channels=1,
            tokens=tokens,
            negative_tokens=away,
            guidance=2.0,
        )

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        return {"example": cls.example()}


def _expanded(pooled: Tensor | None, rows: int) -> Tensor | None:
    return None if pooled is None else pooled.expand(rows, -1)


class TextNetwork(nn.Module):
    """The calling convention of `TextPrior` for a network of diffusers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def checkpoint_gradients(self) -> bool:
        return bool(self.network.is_gradient_checkpointing)

    @checkpoint_gradients.setter
    def checkpoint_gradients(self, on: bool) -> None:
        switch = self.network.enable_gradient_checkpointing if on else self.network.disable_gradient_checkpointing
        switch()  # type: ignore[operator]


class StableDiffusion(TextNetwork):
    """A UNet2DConditionModel. With pooled embeddings (SDXL) it gets the size of the images as well.

    factor  pixels of a side of a code
    """

    def __init__(self, network: nn.Module, factor: int) -> None:
        super().__init__(network)
        self.factor = factor

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        added = None
        if pooled is not None:
            height, width = (side * self.factor for side in x.shape[-2:])
            ids = x.new_tensor([height, width, 0, 0, height, width])  # original size, corner of the crop, target size
            added = {"text_embeds": pooled, "time_ids": ids.expand(len(x), -1)}
        out: Tensor = self.network(x, t, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False)[0]
        return out


class StableDiffusion3(TextNetwork):
    """An SD3Transformer2DModel."""

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        out: Tensor = self.network(
            x, timestep=t, encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False
        )[0]
        return out


class Flux(TextNetwork):
    """A FluxTransformer2DModel, which takes blocks of 2x2 codes as tokens.

    guidance  its input of that name; None: it has none
    """

    def __init__(self, network: nn.Module, guidance: float | None) -> None:
        super().__init__(network)
        self.guidance = guidance

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        packed = nn.functional.pixel_unshuffle(x, 2)  # channel first, then rows and columns of the block
        height, width = packed.shape[-2:]
        places = torch.zeros(height, width, 3, device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(height, device=x.device)[:, None]
        places[..., 2] += torch.arange(width, device=x.device)
        out: Tensor = self.network(
            packed.flatten(2).mT,
            timestep=t,
            guidance=None if self.guidance is None else x.new_full((len(x),), self.guidance),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            txt_ids=x.new_zeros(tokens.shape[1], 3),
            img_ids=places.flatten(0, 1),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(out.mT.unflatten(2, (height, width)), 2)


class _StandIn(nn.Module):
    """A small network that depends on all its arguments."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution, self.read = nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, pooled: Any = None) -> Tensor:
        said = self.read(tokens).mean(1)[..., None, None]
        return torch.tanh(self.convolution(x) + said + sigma_per_row(t, x) / 1000)
