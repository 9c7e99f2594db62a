"""Ensemble Kalman diffusion guidance (EnKG): posterior samples through a black box, without any derivative.

Paper       Zheng et al., Ensemble Kalman Diffusion Guidance: A Derivative-free Method for Inverse Problems, 2024,
            arXiv:2409.20175, Algorithm 1.
Target      images that fit the data among those that the prior's flow leads to. The ensemble collapses where the data
            speak: its spread is no uncertainty, and the noise level of y never enters.
Needs       the operator's values only, and the prior's.
Cost        per step and particle: 1 forward, and `updates` times the forwards of the flow to the clean estimate and 1
            call of the operator while guidance is on. No VJPs.
Coordinates the paper's own, variance exploding; noise levels are halved for images in [0, 1]. The step is scaled by the
            ensemble itself, so that the guidance weight stays as published.
Departures  the start is the prior's mean plus noise where the mean is known; theirs is grey plus noise. With
            `normaliser="frobenius"` the step is the authors', which shrinks like 1 / sqrt(particles)
            once there are fewer particles than pixels; ours is `spread`, which does not. `guidance_end` is a fraction
            of the weight, theirs an absolute one. Measurements that were not taken are left out. `stochastic=True` is
            ours: an ancestral step instead of the flow.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.engine.driver import Callback, Compute, Event
from invdiff.integrators import DDIM
from invdiff.latent import images_of
from invdiff.posterior import Posterior
from invdiff.ranges import Count, NotNegative, Positive, Share
from invdiff.samplers.base import Cost, InverseProblem, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import ancestral_step
from invdiff.samplers.particles.base import each_particle
from invdiff.schedules import EDM, Schedule, karras
from invdiff.shapes import nonzero, per_row, row_norm

log = logging.getLogger("invdiff")


@dataclass(frozen=True)
class EnsembleStep(Step):
    """A `Step` whose x and x0 belong to the first particle.

    ensemble  all of them at noise level `sigma`, (R, J, C, H, W)
    """

    ensemble: Tensor


@dataclass(frozen=True, kw_only=True)
class EnKG(Sampler):
    """Ensemble Kalman guidance: needs only values of the operator, which may be a black box.

    The defaults are invdiff's own, for small ensembles; `experiment=paper/enkg_...` has the authors'.

    schedule       noise levels, image units
    ensemble       J, interacting particles behind each sample; the sample is the first of them, and
                   `sample_of_cloud` gives the others too
    guidance       weight w of the correction
    guidance_end   the weight falls linearly to this fraction of it
    updates        corrections at each noise level
    skip_start, skip_end  fractions of the steps without correction, at either end; the first step never has one
    ode_steps      network calls of the flow that gives the clean estimate; None: as published, from 1 + steps / 4, at
                   most 20, down to 1
    ode_sigma_min  level of the flow's last step before 0, image units
    normaliser     of the step: `frobenius`, the norm of the matrix that mixes the particles (published), or `spread`,
                   that norm times sqrt(1024 / ensemble): with fewer particles than pixels, a correction then moves
                   an image by about guidance / 32 of its distance from the mean, as the published 1024 particles do
    stochastic     an ancestral step to the next level (ours) instead of one along the flow (published): it takes back
                   some of the ensemble's collapse, and gained 1 to 3 dB
    particles_at_once  through network and operator: bounds the memory, changes nothing else
    """

    clouds = True
    small: ClassVar = {
        "schedule": EDM(steps=6, sigma_max=10.0, sigma_min=0.05),
        "ensemble": 5,
        "guidance": 1.0,
        "particles_at_once": 7,
    }

    schedule: Schedule = EDM(steps=30, sigma_max=5.0, sigma_min=0.02)
    ensemble: Count = 64
    guidance: NotNegative = 4.0
    guidance_end: Share = 1.0
    updates: Count = 2
    skip_start: Share = 0.05
    skip_end: Share = 0.05
    ode_steps: Count | None = 1
    ode_sigma_min: Positive = 0.001
    normaliser: Literal["spread", "frobenius"] = "spread"
    stochastic: bool = True
    particles_at_once: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.skip_start + self.skip_end < 1:
            raise ValueError(f"enkg: skip_start + skip_end must be < 1, got {self.skip_start} and {self.skip_end}")

    @property
    def particles(self) -> int:
        return self.ensemble

    def expected_cost(self) -> Cost:
        guided = [i for i in range(self.num_steps) if self._guided(i)]
        flow = sum(self.updates * self._ode_steps(i) for i in guided)
        return Cost(
            forwards=self.ensemble * (self.num_steps + flow), operator_calls=self.ensemble * self.updates * len(guided)
        )

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        x = prior.start(sigmas[0], rng.normal((self.ensemble, *problem.image_shape)))  # (R, J, C, H, W)
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            if self._guided(i):
                weight = self.guidance * (1 - i / self.num_steps * (1 - self.guidance_end))
                for _ in range(self.updates):
                    predicted = self._measure(problem, self._clean(prior, x, sigma, self._ode_steps(i)))
                    x = x - weight * self._correction(problem, x, predicted)
            x0 = self._clean(prior, x, sigma, 1)
            if self.stochastic:
                x = ancestral_step(x, x0, sigma, after, rng.normal((self.ensemble, *problem.image_shape)))
            else:
                x = x + (after - sigma) / sigma * (x - x0)
            yield EnsembleStep(x[:, 0], x0[:, 0], after, x)

    def sample_of_cloud(
        self,
        problem: InverseProblem,
        prior: Prior,
        *,
        num_samples: int = 1,
        seed: int = 0,
        first_image: int = 0,
        compute: Compute | None = None,
        callback: Callback | None = None,
    ) -> Posterior:
        """As `sample`, but all samples of an image are particles of one ensemble, for the cost of one sample.

        They are not independent, and the ensemble collapses: a warning under the logger `invdiff` states its spread.
        Raises ValueError for more samples than particles.
        """
        if not 1 <= num_samples <= self.ensemble:
            raise ValueError(f"enkg: num_samples must be 1 to the ensemble of {self.ensemble}, got {num_samples}")
        kept: dict[int, Tensor] = {}

        def keep(event: Event) -> None:
            if callback is not None:
                callback(event)
            assert isinstance(event.step, EnsembleStep)
            kept[int(event.image[0])] = event.step.ensemble

        found = self.sample(problem, prior, seed=seed, first_image=first_image, compute=compute, callback=keep)
        whole = images_of(torch.cat([kept[first].cpu() for first in sorted(kept)])[:, :num_samples], prior, found.cost)
        spread = float(whole.std(1, correction=0).mean())
        log.warning(
            "enkg: the samples are particles of one ensemble, which collapses: its spread of %.2g is no uncertainty; "
            "sample() draws each from an ensemble of its own",
            spread,
        )
        diverged_at = found.diverged_at.expand(-1, num_samples).contiguous()
        return Posterior(whole.contiguous(), diverged_at, found.cost, problem)

    def _guided(self, i: int) -> bool:
        return self.skip_start * self.num_steps < i < self.num_steps - int(self.skip_end * self.num_steps)

    def _ode_steps(self, i: int) -> int:
        return min(1 + (self.num_steps - i) // 4, 20) if self.ode_steps is None else self.ode_steps

    def _clean(self, prior: Prior, x: Tensor, sigma: float, steps: int) -> Tensor:
        """Where the flow leads each particle, (R, J, C, H, W); one step is the denoiser itself."""
        levels = [*karras(sigma, min(self.ode_sigma_min * prior.scale, sigma), steps).tolist(), 0.0]

        def flow(_: Tensor, part: Tensor) -> Tensor:
            return DDIM(eta=0.0).end(prior.denoise, part, levels, lambda: part, scale=1.0)

        return each_particle(flow, x, self.particles_at_once)

    def _measure(self, problem: InverseProblem, x0: Tensor) -> Tensor:
        """Measurements of all particles as real vectors, (R, J, M), zero where nothing was measured."""
        y = each_particle(lambda i, part: problem.operator.select(i)(part), x0, self.particles_at_once)
        return as_vectors(problem, y.flatten(0, 1)).unflatten(0, x0.shape[:2])

    def _correction(self, problem: InverseProblem, x: Tensor, predicted: Tensor) -> Tensor:
        """Covariance of images and measurements times the error of each particle, normalised: (R, J, C, H, W)."""
        error = predicted - as_vectors(problem, problem.y)[:, None]
        spread = predicted - predicted.mean(1, keepdim=True)
        # Normalised before they meet: a product of four measurements may leave float32 where their unit is far from 1.
        mixing = normalised(error) @ normalised(spread).mT  # (R, J, J): row j mixes the particles l for particle j
        mixing = normalised(mixing)
        if self.normaliser == "spread":
            mixing = mixing * sqrt(self.ensemble / 1024)
        return torch.einsum("rjl,rlchw->rjchw", mixing, x - x.mean(1, keepdim=True))


def normalised(values: Tensor) -> Tensor:
    """Each row of norm 1; zero where it was zero: from identical particles there is nothing to learn."""
    return values / per_row(nonzero(row_norm(values)), values)


def as_vectors(problem: InverseProblem, y: Tensor) -> Tensor:
    """Measurements as real vectors, zero where nothing was measured: (B, ...) -> (B, M)."""
    observed = problem.operator.measured(tuple(y.shape[1:]))
    if observed is not None:
        # A mask per row meets J particles per row.
        observed = observed.to(y.device)
        if observed.shape[0] > 1:
            observed = observed.repeat_interleave(y.shape[0] // observed.shape[0], dim=0)
        y = torch.where(observed, y, 0)
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)
