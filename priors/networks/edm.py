"""Network priors with EDM preconditioning.

Paper   Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
        arXiv:2206.00364, Table 1, column "Ours".
Form    D(x, s) = m + c_skip (x - m) + c_out F(c_in (x - m), c_noise), with m the middle of the value range. All
        constants are in image units: sigma_data = 0.25 on [0, 1] is the paper's 0.5 on [-1, 1].
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from ..base import Prior
from ..weights_file import interval, read_weights, write_weights
from .unet import UNet, UNetSpec

LARGEST = 65536  # side of an image that a weights file may state


def _map(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """Factor and offset of the affine map between two ranges."""
    zoom = (after[1] - after[0]) / (before[1] - before[0])
    return zoom, after[0] - zoom * before[0]


class EDMPrior(Prior):
    """A U-Net denoiser; see the module's docstring for its formula.

    network      maps (B, C, H, W) and the noise coordinate (B,) to (B, C, H, W)
    shape        (C, H, W) it was trained on, None for a network that takes any size
    sigma_data   standard deviation of the data around m, image units
    sigma_range  noise levels of the training, image units. c_noise is clamped to it, the rest of the preconditioning is
                 not (D(x, 0) = x exactly)
    mean         of the training images, one value per channel: where sampling starts; None: m
    """

    channel_means: Tensor | None

    def __init__(
        self,
        network: UNet,
        *,
        shape: tuple[int, int, int] | None = None,
        sigma_data: float = 0.25,
        sigma_range: tuple[float, float] = (0.002, 80.0),
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.shape = None if shape is None else tuple(shape)
        self.channels = network.spec.channels
        self.sigma_data = sigma_data
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.register_buffer("channel_means", None if mean is None else torch.tensor(mean).reshape(-1, 1, 1))

    @property
    def centre(self) -> Tensor:
        return super().centre if self.channel_means is None else self.channel_means

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        sigma = sigma_per_row(sigma, x)
        middle = sum(self.value_range) / 2
        total = (sigma**2 + self.sigma_data**2).sqrt()
        scaled = ((x - middle) / total).contiguous(memory_format=torch.channels_last)
        out = self.network(scaled, self.noise_coordinate(sigma, x.shape[0])).to(x.dtype)
        c_skip = (self.sigma_data / total) ** 2
        c_out = sigma * self.sigma_data / total
        return middle + c_skip * (x - middle) + c_out * out

    def noise_coordinate(self, sigma: Tensor, rows: int) -> Tensor:
        """c_noise = ln(sigma) / 4 with sigma in units of the value range, one per row, (B,)."""
        span = self.value_range[1] - self.value_range[0]
        return sigma.clamp(*self.sigma_range).div(span).log().div(4).reshape(-1).expand(rows)

    def in_units(self, value_range: tuple[float, float]) -> "EDMPrior":
        """The same prior of images whose value range is mapped to another one; the network is shared."""
        zoom, shift = _map(self.value_range, value_range)
        mean = None if self.channel_means is None else (shift + zoom * self.channel_means).flatten().tolist()
        return EDMPrior(
            self.network,
            shape=self.shape,  # type: ignore[arg-type]
            sigma_data=zoom * self.sigma_data,
            sigma_range=(zoom * self.sigma_range[0], zoom * self.sigma_range[1]),
            value_range=value_range,
            mean=mean,
        )

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write one `.safetensors` file, which `load` reads."""
        write_weights(
            path, self.header(), {name: tensor.to(dtype) for name, tensor in self.network.state_dict().items()}
        )

    def header(self) -> dict[str, Any]:
        """All but the tensors of the network, for a weights file."""
        return {
            "unet": self.network.spec.as_dict(),
            "shape": self.shape,
            "sigma_data": self.sigma_data,
            "sigma_range": self.sigma_range,
            "value_range": self.value_range,
            "mean": None if self.channel_means is None else self.channel_means.flatten().tolist(),
        }

    @classmethod
    def load(cls, path: str | Path) -> "EDMPrior":
        """Read a file written by `save`. Raises ValueError where it is missing, damaged or not of this kind."""
        return cls.of_header(*read_weights(path, kind=None), path)

    @classmethod
    def of_header(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path) -> "EDMPrior":
        """The prior of a weights file; ValueError, naming the file, where header and tensors do not fit."""
        try:
            spec = UNetSpec(**header["unet"])
            shape, mean = header["shape"], header.get("mean")
            _, sigma_data = interval("0 and sigma_data", [0, header["sigma_data"]])
            sigma_range = interval("sigma_range", header["sigma_range"], low=0)
            value_range = interval("value_range", header["value_range"])
            if shape is not None and not (
                len(shape) == 3
                and shape[0] == spec.channels
                and all(isinstance(n, int) and 1 <= n <= LARGEST for n in shape)
            ):
                raise ValueError(f"shape must be ({spec.channels}, H, W) of at most {LARGEST} pixels, got {shape}")
            if mean is not None and not (len(mean) == spec.channels and all(map(math.isfinite, mean))):
                raise ValueError(f"mean must be {spec.channels} numbers, got {str(mean)[:60]}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"prior weights have an unusable header: {path}: {error!r}") from error
        try:
            spec.check_fits(tensors)
            network = UNet(spec)
            network.load_state_dict(dict(tensors))
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"prior weights do not fit their header: {path}: {str(error).splitlines()[-1]}") from error
        prior = cls(
            network,
            shape=None if shape is None else tuple(shape),
            sigma_data=sigma_data,
            sigma_range=sigma_range,
            value_range=value_range,
            mean=mean,
        )
        return prior.requires_grad_(False).eval()

    @classmethod
    def example(cls) -> "EDMPrior":
        generator_state = torch.get_rng_state()
        torch.manual_seed(0)
        network = UNet(UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1)))
        torch.nn.init.normal_(network.tail.weight, std=0.05)  # an untrained tail is zero, which would hide mistakes
        torch.set_rng_state(generator_state)
        return cls(network, shape=(1, 16, 16)).requires_grad_(False).eval()

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        example = cls.example()
        other = cls(example.network, sigma_data=2.0, value_range=(-3.0, 5.0), mean=[0.3])
        return {"example": example, "any size": cls(example.network), "other range": other}
