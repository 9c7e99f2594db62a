"""What the ensemble baselines share: draws of the prior, which move to the data by values of the operator alone."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invdiff.integrators import Heun
from invdiff.ranges import Count
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.ensemble.enkg import as_vectors
from invdiff.samplers.moves import measured_numbers
from invdiff.samplers.particles.base import each_particle
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import per_row


@dataclass(frozen=True, kw_only=True)
class EnsembleSampler(Sampler):
    """Base of the ensembles that start from draws of the prior, by Heun's method along its flow.

    They move in the span of these draws: fewer than two for each measured number leave data unexplained, and such
    problems are refused. The sample is the first particle of its ensemble.

    schedule           noise levels of the draws, image units
    ensemble           J, interacting particles behind each sample
    updates            steps to the data
    particles_at_once  through network and operator: bounds the memory, changes nothing else
    """

    schedule: Schedule = EDM(steps=18, sigma_max=20.0, sigma_min=0.003)
    ensemble: Count = 128
    updates: Count = 20
    particles_at_once: Count = 128

    @abstractmethod
    def condition(self, data: "Data", prior: Prior, x: Tensor, rng: Streams) -> Iterator[Tensor]:
        """Yield the particles (R, J, C, H, W) after each of the `updates`, of which x are the draws of the prior."""

    @property
    def particles(self) -> int:
        return self.ensemble

    @property
    def num_steps(self) -> int:
        return 1 + self.updates

    def needs(self) -> Needs:
        return Needs(gaussian_noise=True, measurements=self.ensemble // 2)

    def expected_cost(self) -> Cost:
        return Cost(forwards=self.ensemble * (2 * self.schedule.steps - 1))

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas, scale = self.schedule.sigmas().tolist(), prior.scale
        x = prior.start(scale * sigmas[0], rng.normal((self.ensemble, *problem.image_shape)))

        def flow(_: Tensor, part: Tensor) -> Tensor:
            return Heun().end(prior.denoise, part, sigmas, lambda: part, scale)

        x = each_particle(flow, x, self.particles_at_once)
        yield Step(x[:, 0], x[:, 0], 0.0)
        for moved in self.condition(Data(problem, self.particles_at_once), prior, x, rng):
            yield Step(moved[:, 0], moved[:, 0], 0.0)


@dataclass(frozen=True)
class Data:
    """The measurement in units of its noise, as real vectors (R, M), zero where nothing was measured."""

    problem: InverseProblem
    at_once: int

    def misses(self, x: Tensor) -> Tensor:
        """(y - A(x)) / sigma_y of all particles, (R, J, M)."""
        problem = self.problem
        predicted = each_particle(lambda i, part: problem.operator.select(i)(part), x, self.at_once)
        predicted = as_vectors(problem, predicted.flatten(0, 1)).unflatten(0, x.shape[:2])
        away = as_vectors(problem, problem.y)[:, None] - predicted
        return away / per_row(problem.noise_variance.reshape(-1).expand(len(away)) ** 0.5, away)

    @property
    def counts(self) -> Tensor:
        """Measured real numbers of each image, (R, 1)."""
        return measured_numbers(self.problem)[:, None]


@dataclass(frozen=True)
class Span:
    """The Gaussian of the draws of an ensemble, in coordinates in which it is white; float64.

    An image is mean + z axes. The coordinates may be rotated by rounding, so that no method may tell them apart.

    start  coordinates of the draws, (R, J, K), zero where they do not scatter
    mean   (R, 1, C, H, W)
    axes   (R, K, C, H, W), as many as J particles or the pixels allow
    rank   dimensions in which they scatter, (R, 1, 1)
    """

    start: Tensor
    mean: Tensor
    axes: Tensor
    rank: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Of draws (R, J, C, H, W)."""
        mean = x.double().mean(1, keepdim=True)
        away = (x - mean).flatten(2)
        most = min(x.shape[1] - 1, away.shape[2])
        values, vectors = (part[..., -most:] for part in torch.linalg.eigh(away @ away.mT))
        seen = (values > 1e-9 * values[:, -1:])[:, None]
        vectors = torch.where(seen, vectors, 0)
        count = (x.shape[1] - 1) ** 0.5
        axes = (vectors.mT @ away / count).unflatten(2, x.shape[2:])
        return cls(count * vectors, mean, axes, seen.sum(2, keepdim=True))

    def images(self, z: Tensor) -> Tensor:
        """(R, J, K) -> (R, J, C, H, W)."""
        return self.mean + torch.einsum("rjk,rkchw->rjchw", z, self.axes)
