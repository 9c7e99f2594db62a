"""What integrators share: how they walk, and their names."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.ranges import check_fields
from invdiff.shapes import per_row

Denoiser = Callable[[Tensor, float], Tensor]  # (x, sigma) -> an estimate of the clean images, of the shape of x
Noise = Callable[[], Tensor]  # standard normal numbers, of the shape of x
Walked = tuple[Tensor, Tensor, float]  # x, the estimate of the last call, and the level of x


@dataclass(frozen=True, kw_only=True)
class Integrator(ABC):
    """Integrates the flow of a denoiser, dx / dsigma = (x - D(x, sigma)) / sigma, or a stochastic equation of the same
    marginals, from level to level.
    """

    def __post_init__(self) -> None:
        check_fields(self, "integrator")

    @abstractmethod
    def steps(self, denoise: Denoiser, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Walked]:
        """Yield after each step between the levels, from x at sigmas[0].

        denoise  D; guided by a measurement, or the prior's own
        sigmas   falling levels, of pictures in [0, 1] as the settings; the last one may be 0, where the step ends at an
                 estimate of D
        noise    called where the method adds noise, and nowhere else
        """

    def walk(
        self,
        denoise: Callable[[Tensor, Any], Tensor],
        x: Tensor,
        sigmas: Sequence[float],
        noise: Noise,
        scale: Any,
        centre: Tensor | float = 0.0,
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """`steps` for images of another scale: x, the estimates and the levels that D sees are in the unit of x.

        sigmas  of pictures in [0, 1]
        scale   how much larger the unit of x is, `Prior.scale`: a float, or one for each image, (B,)
        centre  what `steps` sees as 0, `Prior.centre`, broadcastable to x: methods that take an affine map of x out of
                the flow depend on it
        """
        factor = per_row(scale, x) if isinstance(scale, Tensor) else scale
        middle = torch.as_tensor(centre, dtype=x.dtype, device=x.device)
        for u, u0, sigma in self.steps(centred(denoise, scale, centre), (x - middle) / factor, sigmas, noise):
            yield middle + factor * u, middle + factor * u0, scale * sigma

    def end(
        self,
        denoise: Callable[[Tensor, Any], Tensor],
        x: Tensor,
        sigmas: Sequence[float],
        noise: Noise,
        scale: Any,
        centre: Tensor | float = 0.0,
    ) -> Tensor:
        """Where `walk` ends."""
        return deque(self.walk(denoise, x, sigmas, noise, scale, centre), maxlen=1).pop()[0]

    def calls(self, steps: int, *, to_zero: bool = True) -> int:
        """How often `walk` calls D over so many steps, the last one to 0 or not."""
        return steps


def centred(denoise: Callable[[Tensor, Any], Tensor], scale: Any, centre: Tensor | float) -> Denoiser:
    """D for images about 0 with levels of pictures in [0, 1], as `Integrator.steps` sees it.

    scale, centre  as in `Integrator.walk`
    """

    def scaled(u: Tensor, sigma: float) -> Tensor:
        factor = per_row(scale, u) if isinstance(scale, Tensor) else scale
        middle = torch.as_tensor(centre, dtype=u.dtype, device=u.device)
        return (denoise(middle + factor * u, scale * sigma) - middle) / factor

    return scaled
