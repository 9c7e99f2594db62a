"""A linear measurement with Gaussian noise as noisy coordinates of the image."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.particles.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Coordinates:
    """With A = U S V^T, m the centre of the prior and c = V^T (x - m): c_i was measured with noise of a known level.

    target  (R, C, H, W) the measured c_i, zero where nothing was measured
    level   (R, C, H, W) standard deviation of its noise, image units; infinite where nothing was measured
    """

    problem: InverseProblem
    centre: Tensor
    target: Tensor
    level: Tensor

    @classmethod
    def of(cls, problem: InverseProblem, prior: Prior) -> Self:
        seen = Spectrum.of(problem, prior)
        return cls(problem, prior.centre.to(problem.y.real), seen.target[:, 0], seen.level[:, 0])

    def into(self, x: Tensor) -> Tensor:
        """c of images (R, C, H, W)."""
        return self.problem.svd.vt(x - self.centre)

    def back(self, c: Tensor) -> Tensor:
        """Images (R, C, H, W) of c."""
        return self.centre + self.problem.svd.v(c)

    def replaced(self, x: Tensor, sigma: float, noise: Tensor, moved: float | Tensor = 0.0) -> Tensor:
        """x at level sigma with its measured coordinates replaced by those of y, to which noise is added up to sigma.

        Coordinates with more noise in y than sigma are free: on the way down they remember y. Where x has been moved at
        one level instead, by Langevin steps or up and down again, they would forget it: with s = sigma and t the noise
        of y they are drawn to the target by the share v / (v + t^2 - s^2), as the score of N(target; c, t^2 - s^2) has
        it, the density of y at this level.

        noise  (R, C, H, W) standard normal, in coordinates
        moved  v, the length of that move, image units squared, broadcastable to x
        """
        c = self.into(x)
        between = self.level**2 - sigma**2
        held = self.target + (-between).clamp(min=0).sqrt() * noise
        drawn = c + moved / (moved + between) * (self.target - c)
        return self.back(torch.where(between > 0, drawn, held))  # NaN is held, and shows

    def step(
        self, x: Tensor, x0: Tensor, sigma: float, sigma_next: float, eta: float, eta_b: float, noise: Tensor
    ) -> Tensor:
        """DDRM's step (its equations 7 and 8 in variance-exploding form), from sigma to sigma_next, (R, C, H, W).

        With d the coordinates of x0, s = sigma_next and t the level of a coordinate, z noise:
        t infinite  d + sqrt(1 - eta^2) s / sigma (c - d) + eta s z
        t > s       d + sqrt(1 - eta^2) s / t (target - d) + eta s z
        t <= s      (1 - eta_b) d + eta_b target + sqrt(s^2 - eta_b^2 t^2) z
        At sigma_next = 0 it returns x0.
        """
        c, d, t = self.into(x), self.into(x0), self.level
        away = torch.where(t.isinf(), (c - d) / sigma, (self.target - d) / t)
        free = d + sigma_next * ((1 - eta**2) ** 0.5 * away + eta * noise)
        fresh = (sigma_next**2 - (eta_b * t) ** 2).clamp(min=0).sqrt()
        held = (1 - eta_b) * d + eta_b * self.target + fresh * noise
        return self.back(torch.where(t > sigma_next, free, held))
