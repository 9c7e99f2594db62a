"""Velocity networks on the straight path between noise and image: rectified flow, flow matching.

Papers      Liu et al., Flow Straight and Fast, ICLR 2023, arXiv:2209.03003; Lipman et al., Flow Matching for Generative
            Modeling, ICLR 2023, arXiv:2210.02747; Esser et al., Scaling Rectified Flow Transformers, ICML 2024,
            arXiv:2403.03206, whose time runs the other way.
Form        data_at=1: x_t = t z + (1 - t) eps, the network predicts z - eps, and z = x_t + (1 - t) F.
            data_at=0: x_t = (1 - t) z + t eps, the network predicts eps - z, and z = x_t - t F.
            A noise level s is the t with s = (noise's share) / (image's share), and x_t = (image's share) x_s.
Outside     of [margin, 1 - margin] the network gets the nearest t, while the shares stay those of the true level.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from .ncsnpp import check_size, example_network, load_ncsnpp, score_sde_weights
from .network_time import FlowTime
from .parametrised import ParametrisedPrior


class FlowPrior(ParametrisedPrior):
    """The denoiser of a velocity network.

    velocity     any callable that maps images (B, C, H, W) and times (B,) to dx_t / dt, (B, C, H, W); with
                 `class_label` it gets labels (B,), int64, as its third argument
    data_at      the t of the image, 0 or 1
    margin       t of the training lies in [margin, 1 - margin]
    time_scale   the input of the network is time_scale * t
    The rest as in `ParametrisedPrior`.
    """

    def __init__(
        self,
        velocity: Callable[..., Tensor],
        *,
        data_at: Literal[0, 1] = 1,
        margin: float = 1e-3,
        time_scale: float = 1.0,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        network_range: tuple[float, float] = (-1.0, 1.0),
        class_label: int | None = None,
        differentiable: bool = True,
    ) -> None:
        super().__init__(
            velocity,
            "flow",
            FlowTime(data_at, margin, time_scale),
            shape=shape,
            channels=channels,
            value_range=value_range,
            network_range=network_range,
            class_label=class_label,
            differentiable=differentiable,
        )

    @classmethod
    def load(
        cls,
        weights: str | Path,
        *,
        image_size: int = 256,
        over_time: bool | None = None,
        fir: bool | None = None,
        ema: bool = True,
        sha256: str | None = None,
        trust_pickle: bool = False,
    ) -> "FlowPrior":
        """Read a network of the rectified-flow authors: that of score_sde at 999 t, on [-1, 1], with the image at 1.

        over_time  its output is divided by its time input (`scale_by_sigma`). None: true where time enters by Fourier
                   features, as in the published networks
        The rest as in `NCSNppPrior.load`.

        Raises ValueError if the file or the settings do not fit.
        """
        tensors = score_sde_weights(weights, ema=ema, sha256=sha256, trust_pickle=trust_pickle)
        network = load_ncsnpp(tensors, weights, exploding=False, fir=fir)
        check_size(image_size, network)
        divided = "all_modules.0.W" in tensors if over_time is None else over_time
        return cls(
            _OverTime(network) if divided else network,
            data_at=1,
            time_scale=999.0,
            shape=(network.spec.channels, image_size, image_size),
        )

    @classmethod
    def example(cls) -> "FlowPrior":
        return cls(example_network(exploding=False), shape=(1, 8, 8))

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        network = example_network(exploding=False)
        return {
            "example": cls.example(),
            "image at 0": cls(network, data_at=0, time_scale=1000.0, shape=(1, 8, 8)),
            "over time": cls(_OverTime(network), time_scale=999.0, shape=(1, 8, 8)),
        }


class _OverTime(nn.Module):
    """A network whose output is divided by its time input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t) / sigma_per_row(t, x)
