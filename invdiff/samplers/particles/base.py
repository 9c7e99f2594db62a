"""What particle filters add to the contract of a sampler: an ensemble behind each sample, and the whole cloud.

Row r of the driver is one chain with N particles of its own. Its sample is one draw of its weighted cloud, so that
samples are independent of each other; `cloud` gives the clouds themselves.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from invdiff.engine.driver import Callback, Compute, Event
from invdiff.engine.step import Step
from invdiff.latent import images_of
from invdiff.posterior import Cost, Posterior
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.ranges import Count, Share
from invdiff.samplers.base import Sampler
from invdiff.samplers.particles.cloud import Cloud
from invdiff.samplers.particles.weights import Weights, systematic, take
from invdiff.streams import Streams


@dataclass(frozen=True)
class ParticleStep(Step):
    """A `Step` whose x and x0 belong to the heaviest particle, and at the end to one drawn by weight.

    cloud  all of them, with weights, evidence and effective numbers so far
    """

    cloud: Cloud


@dataclass(frozen=True, kw_only=True)
class ParticleSampler(Sampler):
    """Base of the particle filters: a subclass moves particles and multiplies weights, in `evolve`.

    ensemble           N, particles behind each sample
    resample_below     resample a chain when its effective number of particles is below this fraction of N; 1: at every
                       step, 0: never
    particles_at_once  through network and operator: bounds the memory, changes nothing else
    """

    clouds = True
    ensemble: Count = 64
    resample_below: Share = 0.5
    particles_at_once: Count = 64

    @abstractmethod
    def evolve(
        self, problem: InverseProblem, prior: Prior, rng: Streams, weights: Weights
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield particles, their clean estimates, both (R, N, C, H, W), and the noise level reached, each iteration.

        `weights` belong to the particles as they are yielded, those of the last iteration to the posterior.
        """

    @property
    def particles(self) -> int:
        return self.ensemble

    def expected_cost(self) -> Cost:
        one = super().expected_cost()
        return Cost(forwards=self.ensemble * one.forwards, vjps=self.ensemble * one.vjps)

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        weights = Weights(problem.images, self.ensemble, self.resample_below, problem.y.device)
        for x, x0, sigma in self.evolve(problem, prior, rng, weights):
            index = weights.heaviest() if sigma > 0 else weights.draw(rng)
            lost = weights.lost.reshape(-1, 1, 1, 1)
            picked, estimate = (torch.where(lost, nan, take(values, index).squeeze(1)) for values in (x, x0))
            cloud = Cloud(x, weights.log_weights, weights.log_evidence, weights.ess, weights.resamplings)
            yield ParticleStep(picked, estimate, sigma, cloud)

    def cloud(
        self,
        problem: InverseProblem,
        prior: Prior,
        *,
        seed: int = 0,
        chains: int = 1,
        first_image: int = 0,
        compute: Compute | None = None,
    ) -> Cloud:
        """Whole weighted clouds, on the CPU: `chains` independent ones of each image, of which `sample` draws one each.

        Arguments and errors are those of `sample`, with `chains` for `num_samples`. Rows are in the order of images,
        the chains of an image side by side.
        """
        _, cloud = self.sample_and_cloud(
            problem, prior, seed=seed, chains=chains, first_image=first_image, compute=compute
        )
        return cloud

    def sample_and_cloud(
        self,
        problem: InverseProblem,
        prior: Prior,
        *,
        seed: int = 0,
        chains: int = 1,
        first_image: int = 0,
        compute: Compute | None = None,
        callback: Callback | None = None,
    ) -> tuple[Posterior, Cloud]:
        """What `sample` gives, its costs in it, and the clouds that it was drawn from."""
        parts: dict[int, Cloud] = {}

        def keep(event: Event) -> None:
            if callback is not None:
                callback(event)
            assert isinstance(event.step, ParticleStep)
            # By its first row: a chunk that did not fit begins anew, and so overwrites what it has left.
            parts[int(event.image[0]) * chains + int(event.sample[0])] = event.step.cloud

        posterior = self.sample(
            problem, prior, num_samples=chains, seed=seed, first_image=first_image, compute=compute, callback=keep
        )
        cloud = Cloud.cat([parts[start].to("cpu") for start in sorted(parts)])
        return posterior, replace(cloud, particles=images_of(cloud.particles, prior, posterior.cost))

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
        """As `sample`, but all samples of an image come from one cloud of `ensemble` particles: not independent.

        The cloud is resampled systematically: each particle comes as often as its weight says, rounded up or down. A
        cloud that is lost has diverged as a whole.
        """
        found, cloud = self.sample_and_cloud(
            problem, prior, seed=seed, first_image=first_image, compute=compute, callback=callback
        )
        middle = torch.full((len(cloud.weights),), 0.5, dtype=torch.float64)
        samples = take(cloud.particles, systematic(cloud.weights, middle, num_samples))
        return Posterior(samples, found.diverged_at.expand(-1, num_samples).contiguous(), found.cost, problem)

    def denoise(self, prior: Prior, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Clean estimates of all particles, (R, N, C, H, W); the noise level is a float or one per chain, (R,)."""

        def one(index: Tensor, part: Tensor) -> Tensor:
            return prior.denoise(part, sigma[index.to(sigma.device)] if isinstance(sigma, Tensor) else sigma)

        return each_particle(one, x, self.particles_at_once)


def parts_of(x: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All particles (R, N, C, H, W), at most `at_once` at a time: the chain of each, (n,), and the images (n, C, H, W).

    The chains are what `InverseProblem.select` and `Operator.select` want.
    """
    rows = torch.arange(x.shape[0]).repeat_interleave(x.shape[1])
    yield from zip(rows.split(at_once), x.flatten(0, 1).split(at_once), strict=True)


def each_particle(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
    """Apply a function of chains and images (see `parts_of`) to every particle: (R, N, ...) -> (R, N, ...)."""
    return torch.cat([function(index, part) for index, part in parts_of(x, at_once)]).unflatten(0, x.shape[:2])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each particle in float64, (R, N, ...) -> (R, N)."""
    return (a.double() * b.double()).flatten(2).sum(2)
