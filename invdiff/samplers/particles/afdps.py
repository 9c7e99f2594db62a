"""Ensemble score-based filtering with full guidance (AFDPS), in its form as a stochastic differential equation.

Paper       Chen, Ren, Min, Ying and Izzo, Solving Inverse Problems via Diffusion-Based Priors: An Approximation-Free
            Ensemble Sampling Approach, 2025, arXiv:2506.03979, Algorithm 1, the SDE.
Target      p(x | y), exactly as ensemble and steps grow. Full guidance makes heavy weights: with few particles it is a
            guided sampler with an uncertainty that means little. `fkc` is less noisy at the same cost.
Needs       a linear operator with its singular value decomposition and Gaussian noise: the start and the Laplacian are
            then closed forms.
Cost        per step and particle: 1 forward. No VJPs.
Departures  the paper puts the likelihood on the noisy image at full strength at every level (`annealed=False`). The
            explicit step then diverges unless step * |A|^2 / noise variance < 2, and the noise of the log-weights grows
            like that of the image over that of y. Ours anneals it, direction by direction: of y = A x + noise of
            variance v it believes, at level s, N(y; A x, v I + s^2 A A^T), and the weights follow. The paper takes any
            differentiable likelihood, for which the start is no closed form; ours does not, `fkc` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from invdiff.operators import SpectralOperator
from invdiff.posterior import Cost
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs
from invdiff.samplers.particles.base import ParticleSampler, each_particle
from invdiff.samplers.particles.spectrum import Spectrum
from invdiff.samplers.particles.weights import Weights, take
from invdiff.schedules import EDM, Schedule
from invdiff.streams import Streams


@dataclass(frozen=True, kw_only=True)
class AFDPS(ParticleSampler):
    """Reversed diffusion with the whole gradient of the likelihood, reweighted and resampled.

    schedule  noise levels, image units; without annealing they must be close where the noise is high
    annealed  let the likelihood fade in as the noise of the image falls; false: full strength throughout (published)

    ensemble, resample_below, particles_at_once  as in `ParticleSampler`
    """

    schedule: Schedule = EDM(steps=100, sigma_max=40.0, sigma_min=0.002)
    annealed: bool = True

    @property
    def num_steps(self) -> int:
        return self.schedule.steps

    def needs(self) -> Needs:
        return Needs(linear=True, spectral=True, gaussian_noise=True)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.ensemble * self.num_steps)

    @classmethod
    def example(cls) -> Self:
        return cls(schedule=EDM(steps=10, sigma_max=5.0, sigma_min=0.05), ensemble=6, particles_at_once=1000)

    @classmethod
    def published(cls) -> Self:
        """Settings for images as far as they are known, from a port that quotes the authors, in image units."""
        return cls(schedule=EDM(steps=400, sigma_max=4.0, sigma_min=0.001), ensemble=32, annealed=False)

    def evolve(
        self, problem: InverseProblem, prior: Prior, rng: Streams, weights: Weights
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        operator, noise_shape = problem.operator, (self.ensemble, *problem.image_shape)
        assert isinstance(operator, SpectralOperator)  # `needs` made sure
        seen = Spectrum.of(problem)
        sigmas = self.schedule.sigmas().tolist()

        def into(values: Tensor) -> Tensor:
            return each_particle(lambda i, part: operator.select(i).vt(part), values, self.particles_at_once)

        def back(values: Tensor) -> Tensor:
            return each_particle(lambda i, part: operator.select(i).v(part), values, self.particles_at_once)

        # Stage I: N(0, sigma^2 I) times the likelihood is Gaussian, direction by direction.
        scatter = self._scatter(seen, sigmas[0])
        gain = sigmas[0] ** 2 * seen.values / (scatter + sigmas[0] ** 2 * seen.values**2)
        c = gain * seen.data + sigmas[0] * (1 - gain * seen.values).sqrt() * rng.normal(noise_shape)  # c = V^T x
        x = back(c)
        weights.multiply(self._log_start(seen, sigmas[0]))
        for sigma, after in pairwise(sigmas):
            step = sigma**2 - after**2
            residual, scatter = seen.data - seen.values * c, self._scatter(seen, sigma)
            pull, laplacian = seen.values * residual / scatter, -(seen.values**2) / scatter  # of the log-likelihood
            x0 = self.denoise(prior, x, sigma)
            score = into(x0 - x) / sigma**2
            rate = (laplacian + pull**2).double() / 2 + score.double() * pull.double()
            change = (1 / self._scatter(seen, after) - 1 / scatter).double() * residual.double() ** 2 / 2
            weights.multiply((step * rate - change).flatten(2).sum(2))
            c = c + step * (score + pull) + step**0.5 * rng.normal(noise_shape)
            if after > 0:
                ancestors = weights.resample(rng)
                c, x0 = take(c, ancestors), take(x0, ancestors)
            x = back(c)
            yield x, x0, after

    def _scatter(self, seen: Spectrum, sigma: float) -> Tensor:
        """Variance that the likelihood believes in at this level, direction by direction."""
        return seen.variance + (sigma * seen.values) ** 2 if self.annealed else seen.variance

    def _log_start(self, seen: Spectrum, sigma: float) -> Tensor:
        """Log of the integral of N(x; 0, sigma^2 I) times the likelihood at this level, (R, 1) float64."""
        scatter, spread = self._scatter(seen, sigma).double(), (sigma * seen.values).double() ** 2
        terms = torch.log1p(spread / scatter) + seen.data.double() ** 2 / (scatter + spread)
        return -terms.flatten(2).sum(2) / 2 - seen.unexplained[:, None]
