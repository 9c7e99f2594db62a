"""Any network that was trained to denoise, as a prior: the one place for its changes of variable.

Form        The image x goes to the network's range, z = c x + o with c the ratio of the two ranges, and sigma to
            s = c sigma. The network sees x_t = alpha z and is told t (`network_time`). What it says, F, is turned into
            the clean image z0, which goes back to image units:

            epsilon   z0 = z - s F
            x0        z0 = F
            v         z0 = alpha^2 z - alpha s F, on a variance-preserving path
            score     z0 = z + alpha s^2 F, F the score of p_t at x_t
            flow      z0 = alpha (z -+ s F), F = dx_t / dt on the straight path
            edm       z0 = c_skip z + c_out F
Outside     At a level that the network was not trained for it is told the nearest one that it knows, while alpha and s
            stay those of the true level. So D(x, 0) = x exactly, but for `x0`, where the network has the only word.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from .network_time import DiscreteTime, EDMTime, FlowTime, NetworkTime, VPTime

Parametrisation = Literal["epsilon", "x0", "v", "score", "flow", "edm"]


def _epsilon(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    return z - s * out


def _x0(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    return out


def _v(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    # v = alpha eps - (alpha s) z0 and alpha^2 (1 + s^2) = 1 on a variance-preserving path (arXiv:2202.00512).
    return alpha**2 * z - alpha * s * out


def _score(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    # x_t has the noise alpha s and the mean alpha z0: Tweedie gives alpha z0 = x_t + (alpha s)^2 F.
    return z + alpha * s**2 * out


def _flow(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    # alpha = 1 - tau and alpha s = tau at the distance tau from the image; the velocity away from it is eps - z0.
    assert isinstance(time, FlowTime)
    away = out if time.data_at == 0 else -out
    return alpha * (z - s * away)


def _edm(z: Tensor, out: Tensor, alpha: Tensor, s: Tensor, time: NetworkTime) -> Tensor:
    # alpha = c_in = (s^2 + sigma_data^2)^(-1/2); c_skip = (sigma_data c_in)^2 and c_out = s sigma_data c_in.
    assert isinstance(time, EDMTime)
    return (time.sigma_data * alpha) ** 2 * z + s * time.sigma_data * alpha * out


_DENOISED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, NetworkTime], Tensor]] = {
    "epsilon": _epsilon,
    "x0": _x0,
    "v": _v,
    "score": _score,
    "flow": _flow,
    "edm": _edm,
}


_NEEDED: dict[str, type[NetworkTime] | tuple[type[NetworkTime], ...]] = {
    "v": (DiscreteTime, VPTime),
    "flow": FlowTime,
    "edm": EDMTime,
}


class ParametrisedPrior(Prior):
    """A network with a declared parametrisation and schedule; see the module's docstring for the formulas.

    network            any callable that maps (B, C, H, W) and a time (B,) to (B, C, H, W); with `class_label` it gets
                       labels (B,), int64, as its third argument. A module is put in evaluation mode and frozen
    parametrisation    what it says: "epsilon", "x0", "v", "score", "flow" (needs FlowTime), "edm" (needs EDMTime)
    schedule           what it calls time, with the levels it was trained for: `DiscreteTime.linear()`, `VETime()`, ...
    shape              (C, H, W) it was trained on, None for a network that takes any size
    channels           where `shape` is None and the network takes only this many
    network_range      range of the images it was trained on; `value_range` is that of the images it is given here
    learned_variance   it gives 2 C channels, of which the last C say a variance that is not used
    class_label        the class that images belong to, for a network that wants one
    bgr                its channels are blue, green, red

    `sigma_range` is that of the schedule in image units. ValueError where the network gives another number of channels.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
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
        if parametrisation not in _DENOISED:
            raise ValueError(
                f"unknown parametrisation {parametrisation!r}; there are {', '.join(get_args(Parametrisation))}"
            )
        if not isinstance(schedule, _NEEDED.get(parametrisation, NetworkTime)):
            raise ValueError(
                f"parametrisation={parametrisation!r} does not go with a {type(schedule).__name__} schedule"
            )
        for name, (low, high) in (("value_range", value_range), ("network_range", network_range)):
            if not low < high:
                raise ValueError(f"{name} must be (low, high) with low < high, got ({low}, {high})")
        self.network = network
        self.parametrisation, self.schedule = parametrisation, schedule
        self.shape = None if shape is None else tuple(shape)
        self.channels = channels if shape is None else shape[0]
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.network_range = (float(network_range[0]), float(network_range[1]))
        self.learned_variance, self.class_label, self.bgr = learned_variance, class_label, bgr
        self.differentiable = differentiable
        self.sigma_range = (schedule.sigma_range[0] / self._zoom, schedule.sigma_range[1] / self._zoom)
        self.eval().requires_grad_(False)

    @property
    def _zoom(self) -> float:
        """Network units in one image unit."""
        (low, high), (network_low, network_high) = self.value_range, self.network_range
        return (network_high - network_low) / (high - low)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        zoom, offset = self._zoom, self.network_range[0] - self._zoom * self.value_range[0]
        z = zoom * (x.flip(1) if self.bgr else x) + offset
        s = (zoom * sigma_per_row(sigma, x)).reshape(-1).expand(len(x))
        alpha, t = self.schedule(s)
        alpha, s = sigma_per_row(alpha, z), sigma_per_row(s, z)
        z0 = _DENOISED[self.parametrisation](z, self._ask(alpha * z, t), alpha, s, self.schedule)
        x0 = (z0 - offset) / zoom
        return x0.flip(1) if self.bgr else x0

    def _ask(self, x_t: Tensor, t: Tensor) -> Tensor:
        labels: tuple[Any, ...] = ()
        if self.class_label is not None:
            labels = (torch.full((len(x_t),), self.class_label, dtype=torch.int64, device=x_t.device),)
        out = self.network(x_t, t, *labels)
        channels = x_t.shape[1]
        wanted = (len(x_t), channels * (2 if self.learned_variance else 1), *x_t.shape[2:])
        if tuple(out.shape) != wanted:
            raise ValueError(
                f"the network gives {tuple(out.shape)} for images {tuple(x_t.shape)}, expected {wanted}; "
                "learned_variance says whether it gives a variance as well"
            )
        return out[:, :channels].to(x_t.dtype)

    @classmethod
    def example(cls) -> "ParametrisedPrior":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _TimedConvolution(1)
        return cls(network, "epsilon", DiscreteTime.linear(), channels=1)


class _TimedConvolution(nn.Module):
    """The least network that hears both its arguments."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.convolution(x) + sigma_per_row(t, x) / 1000)
