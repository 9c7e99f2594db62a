"""Exact steps of linear stochastic dynamics, overdamped or with a velocity."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.streams import Streams


@dataclass(frozen=True)
class Relaxation:
    """An exact step of dx = (c - a x) dt + s sqrt(2) dW, or of the oscillator dx = sqrt(G) v dt,
    dv = sqrt(G) (c - a x) dt - G v dt + s sqrt(2 G) dW, whose limit of large G it is.

    pull    a, shaped to multiply x
    time    length of the step
    gamma   G; 0 without a velocity
    turn    what is left of x - c / a and of v after the step: x of x, x of v, v of x, v of v
    spread  lower triangle of the square root of the covariance of what is added: xx, vx, vv
    """

    pull: Tensor
    time: Tensor
    gamma: float
    turn: tuple[Tensor, ...]
    spread: tuple[Tensor, ...]

    @classmethod
    def of(cls, pull: Tensor, time: Tensor, sigma: Tensor, friction: float | None) -> Self:
        if friction is None:
            spread = sigma * (-torch.expm1(-2 * pull * time) / pull) ** 0.5
            return cls(pull, time, 0.0, (torch.exp(-pull * time),), (spread,))
        gamma, (a, t) = 5 * friction**2, (pull.double(), time.double())
        # exp(t M) for M = ((0, sqrt G), (-a sqrt G, -G)), whose eigenvalues are -G/2 +- w, w real or imaginary
        w = torch.complex(gamma**2 / 4 - gamma * a, torch.zeros_like(a)).sqrt()
        w = torch.where(w == 0, 1e-6 * gamma, w)
        slow, fast = (-gamma * a * t / (w + gamma / 2)).exp(), (-(w + gamma / 2) * t).exp()
        even, odd = ((slow + fast) / 2).real, ((slow - fast) / (2 * w)).real
        xx, xv = even + gamma / 2 * odd, gamma**0.5 * odd
        vx, vv = -a * xv, even - gamma / 2 * odd
        # Of the law at rest, diag(1 / a, 1), what is not left over is added.
        var_x = ((1 - xx**2) / a - xv**2).clamp(min=0)
        var_v = (1 - vx**2 / a - vv**2).clamp(min=0)
        both = -(xx * vx / a + xv * vv)
        std_x = var_x**0.5
        along = torch.where(std_x > 0, both / std_x, 0)
        std_v = (var_v - along**2).clamp(min=0) ** 0.5
        turn, lower = (xx, xv, vx, vv), (std_x, along, std_v)
        return cls(pull, time, gamma, tuple(e.to(pull) for e in turn), tuple(sigma * e.to(pull) for e in lower))

    def __call__(self, x: Tensor, v: Tensor | None, c: Tensor, rng: Streams) -> tuple[Tensor, Tensor | None]:
        rest = c / self.pull
        if v is None:
            return rest + self.turn[0] * (x - rest) + self.spread[0] * rng.normal(), None
        (xx, xv, vx, vv), (std_x, along, std_v), n = self.turn, self.spread, rng.normal()
        moved = rest + xx * (x - rest) + xv * v + std_x * n
        return moved, vx * (x - rest) + vv * v + along * n + std_v * rng.normal()

    def corrected(self, x: Tensor, v: Tensor | None, change: Tensor) -> tuple[Tensor, Tensor | None]:
        """After a step, for a c that was wrong by `change` along it."""
        if v is None:
            return x + change * self.time, None
        return x, v + self.gamma**0.5 * change * self.time
