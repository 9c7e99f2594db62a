"""Any network that was trained to denoise, as a prior: the one place for its changes of variable.

Form        The image x goes to the network's range, z = c x + o with c the ratio of the two ranges, and sigma to
            s = c sigma. The network takes x_t = alpha z and the time t (`network_time`). Its output F is turned into
            the clean image z0 (`NetworkTime.denoised`), which goes back to image units:

            epsilon   z0 = z - s F
            x0        z0 = F
            v         z0 = alpha^2 z - alpha s F, on a variance-preserving path
            score     z0 = z + alpha s^2 F, F the score of p_t at x_t
            flow      z0 = alpha (z -+ s F), F = dx_t / dt on the straight path
            edm       z0 = c_skip z + c_out F
Outside     At a level outside its training the network gets the time of the nearest trained level, while alpha and s
            stay those of the true level. So D(x, 0) = x exactly, except for `x0`, where D is the output alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row
from invdiff.user_module import named_in

from ..base import Prior
from .network_time import DiscreteTime, EDMTime, FlowTime, NetworkTime, Parametrisation, VETime, VPTime

Output = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x_t, t) -> F, and channels beyond it


class ParametrisedPrior(Prior):
    """A network with a declared parametrisation and schedule; see the module's docstring for the formulas.

    network            any callable that maps (B, C, H, W) and a time (B,) to (B, C, H, W); with `class_label` its third
                       argument is labels (B,), int64. A module is put in evaluation mode and frozen. Or a Python file
                       with a name in it, `my_unet.py:load`: a module, or a function without arguments that returns one
    parametrisation    what it predicts: "epsilon", "x0", "v", "score", "flow" (needs FlowTime), "edm" (needs EDMTime)
    schedule           its time convention and the levels of its training: `DiscreteTime.linear()`, `VETime()`, ...
    shape              (C, H, W) of the training, None for a network that takes any size
    channels           where `shape` is None: the number of channels, None for any
    network_range      range of the training images; `value_range` is that of the images given here
    learned_variance   the network has 2 C output channels, of which the last C, a variance, are not used here
    class_label        class of the images, for a class-conditional network
    bgr                the network's channels are blue, green, red

    `sigma_range` is that of the schedule in image units. ValueError where the network returns another shape.
    """

    def __init__(
        self,
        network: Callable[..., Tensor] | str,
        parametrisation: Parametrisation,
        schedule: NetworkTime,
        *,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        network_range: tuple[float, float] = (-1.0, 1.0),
        learned_variance: bool = False,
        class_label: int | None = None,
        bgr: bool = False,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        if parametrisation not in schedule.parametrisations:
            raise ValueError(
                f"parametrisation of a network with {type(schedule).__name__} must be one of "
                f"{', '.join(schedule.parametrisations)}, got {parametrisation!r}"
            )
        for name, (low, high) in (("value_range", value_range), ("network_range", network_range)):
            if not low < high:
                raise ValueError(f"{name} must be (low, high) with low < high, got ({low}, {high})")
        self.network = _from_file(network) if isinstance(network, str) else network
        self.parametrisation, self.schedule = parametrisation, schedule
        self.shape = None if shape is None else tuple(shape)
        self.channels = channels if shape is None else shape[0]
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.network_range = (float(network_range[0]), float(network_range[1]))
        self.learned_variance, self.class_label, self.bgr = learned_variance, class_label, bgr
        self.differentiable = differentiable
        self.bounded_error = parametrisation not in ("epsilon", "score")
        self.sigma_range = (schedule.sigma_range[0] / self._zoom, schedule.sigma_range[1] / self._zoom)
        self.eval().requires_grad_(False)

    @property
    def _zoom(self) -> float:
        """Network units in one image unit."""
        (low, high), (network_low, network_high) = self.value_range, self.network_range
        return (network_high - network_low) / (high - low)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self._denoised(self._output, x, sigma)[0]

    def denoise_and_share(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        if not self.step_variance:
            return super().denoise_and_share(x, sigma)
        x0, variance = self._denoised(self._output, x, sigma)
        return x0, (variance + 1) / 2

    def _denoised(self, output: Output, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """The clean images, and what the network returns beyond their channels."""
        zoom, offset = self._zoom, self.network_range[0] - self._zoom * self.value_range[0]
        z = zoom * (x.flip(1) if self.bgr else x) + offset
        s = (zoom * sigma_per_row(sigma, x)).reshape(-1).expand(len(x))
        alpha, t = self.schedule(s)
        alpha, s = sigma_per_row(alpha, z), sigma_per_row(s, z)
        out, more = output(alpha * z, t)
        z0 = self.schedule.denoised(self.parametrisation, z, out, alpha, s)
        x0 = (z0 - offset) / zoom
        return (x0.flip(1), more.flip(1)) if self.bgr else (x0, more)

    def _output(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        labels: tuple[Any, ...] = ()
        if self.class_label is not None:
            labels = (torch.full((len(x_t),), self.class_label, dtype=torch.int64, device=x_t.device),)
        out = self.network(x_t, t, *labels)
        channels = x_t.shape[1]
        wanted = (len(x_t), channels * (2 if self.learned_variance else 1), *x_t.shape[2:])
        if tuple(out.shape) != wanted:
            raise ValueError(
                f"the network must return {wanted} for images {tuple(x_t.shape)}, got {tuple(out.shape)}; set "
                "learned_variance where it predicts a variance too"
            )
        return out[:, :channels].to(x_t.dtype), out[:, channels:].to(x_t.dtype)

    @classmethod
    def example(cls) -> "ParametrisedPrior":
        return cls(_example_network(1), "epsilon", DiscreteTime.linear(), channels=1)

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        """Every parametrisation, every kind of schedule, and the options that change input or output."""
        if cls is not ParametrisedPrior:  # a subclass has arguments of its own
            return super().variants()
        grey, colour = _example_network(1), _example_network(3)
        return {
            "example": cls.example(),
            "x0": cls(_shrink, "x0", VETime(), shape=(1, 8, 8)),
            "v": cls(grey, "v", VPTime(), channels=1),
            "score": cls(grey, "score", VPTime(), channels=1),
            "flow": cls(grey, "flow", FlowTime(), channels=1),
            "flow, image at 1": cls(grey, "flow", FlowTime(data_at=1), channels=1),
            "edm": cls(grey, "edm", EDMTime(), channels=1),
            "epsilon, straight path": cls(grey, "epsilon", FlowTime(), channels=1),
            "epsilon, unit variance": cls(grey, "epsilon", EDMTime(), channels=1),
            "cosine": cls(grey, "epsilon", DiscreteTime.cosine(), channels=1),
            "nearest step": cls(grey, "epsilon", DiscreteTime.scaled_linear(rule="nearest"), channels=1),
            "ln sigma": cls(grey, "epsilon", VETime(time_input="log"), channels=1),
            "t of sigma": cls(grey, "epsilon", VETime(time_input="t"), channels=1),
            "class and variance": cls(
                _example_network(1, out=2), "epsilon", VPTime(), channels=1, class_label=3, learned_variance=True
            ),
            "other ranges": cls(
                colour, "epsilon", VPTime(), shape=(3, 8, 8), value_range=(-3, 5), network_range=(0, 255), bgr=True
            ),
        }


class _ExampleNetwork(nn.Module):
    """A small network that depends on all its arguments."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        code = t.to(x.dtype) / 1000 if label is None else t.to(x.dtype) / 1000 + label
        return torch.tanh(self.convolution(x) + sigma_per_row(code, x))


def _shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of independent pixels of mean 0 and standard deviation 1/2."""
    return x / (1 + 4 * sigma_per_row(sigma, x) ** 2)


def _example_network(channels: int, out: int | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ExampleNetwork(channels, out or channels)


def _from_file(file: str) -> Callable[..., Tensor]:
    where, name, found = named_in(file, "parametrised: give network=my_unet.py:load")
    network = found if isinstance(found, nn.Module) else found() if callable(found) else None
    if not callable(network):
        raise ValueError(f"{where}: {name} must be a torch module, or a function without arguments that returns one")
    return network
