"""Backward filtering, forward guiding (BFFG): a linear process that has the measurement in closed form guides the true
one, and weights make up for the difference.

Paper       van der Meulen and Schauer, Automatic Backward Filtering Forward Guiding for Markov Processes and Graphical
            Models, 2020, arXiv:2010.03509, sections 2 and 3; in continuous time Mider, Schauer and van der Meulen,
            Continuous-Discrete Smoothing of Diffusions, EJS 2021, arXiv:1712.03807.
Target      p(x | y) under the discrete chain of ancestral steps, exactly as the ensemble grows, for any auxiliary
            process and any number of steps; more steps bring that chain's own law to the prior's. With 6 particles
            and 10 levels the variance is 0.54 to 0.85 of the truth on a blurred Gaussian image of 16 pixels. On digits
            at a quarter of the resolution 16 particles are too few: mean square error 0.033, first guess 0.024.
Needs       a linear operator with its singular value decomposition, and Gaussian noise.
Cost        per step and particle: 1 forward. No VJPs.
Form        in a coordinate c of the decomposition, measured as u = s c + noise of variance w, the auxiliary images are
            Gaussian with variance t^2: their ancestral step is c' = F c + n, n of variance V, with
            F = a + (1 - a) t^2 / (t^2 + sigma^2), a = (sigma' / sigma)^2. Backwards through the levels
            h(c) = N(u; q c, g) from q = s, g = w by q -> q F, g -> g + q^2 V, with the q of the lower level. Forwards a
            particle moves by the law that is proportional to N(c'; m, V) h'(c'), m the mean of its true step, which is
            Gaussian; its weight is multiplied by N(u; q' m, g) / N(u; q c, g), known before the move. At level 0 both
            are the likelihood itself. For Gaussian images of variance t^2 all weights are equal.
Departures  theirs is stated for graphs and general kernels; here the graph is the line of noise levels. The start is
            drawn from noise and h together. Resampling is systematic, where `resample_below` says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from invdiff.ranges import Positive
from invdiff.samplers.base import InverseProblem, Needs, Prior, Streams
from invdiff.samplers.particles.base import ParticleSampler
from invdiff.samplers.particles.spectrum import Spectrum, back, into
from invdiff.samplers.particles.weights import Weights, take
from invdiff.schedules import EDM, Schedule


@dataclass(frozen=True, kw_only=True)
class BFFG(ParticleSampler):
    """Particle filter guided by Gaussian images, which know y at every level: exact as the ensemble grows.

    schedule   noise levels, image units
    prior_std  t, how far the auxiliary images scatter about the centre of the prior, image units. Any value leaves the
               limit the same

    ensemble, resample_below, particles_at_once  as in `ParticleSampler`
    """

    requires = Needs(linear=True, spectral=True, gaussian_noise=True)
    small: ClassVar = {
        "schedule": EDM(steps=10, sigma_max=5.0, sigma_min=0.02),
        "ensemble": 6,
        "particles_at_once": 1000,
    }

    schedule: Schedule = EDM(steps=100, sigma_max=20.0, sigma_min=0.003)
    prior_std: Positive = 0.25

    def evolve(
        self, problem: InverseProblem, prior: Prior, rng: Streams, weights: Weights
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        centre, noise_shape = prior.centre.to(problem.y.real), (self.ensemble, *problem.image_shape)
        sigmas, seen = self.schedule.levels(prior.scale), Spectrum.of(problem, prior)
        guides = list(self._filtered(seen, sigmas, self.prior_std * prior.scale))
        guide = guides.pop()
        weights.multiply(guide.log_evidence(seen, sigmas[0] ** 2))
        c = guide.guided(0 * seen.data, sigmas[0] ** 2, rng.normal(noise_shape))
        x = centre + back(problem, c, self.particles_at_once)
        for sigma, after in pairwise(sigmas):
            x0 = self.denoise(prior, x, sigma)
            x0_c = into(problem, x0 - centre, self.particles_at_once)
            shrink = (after / sigma) ** 2
            mean, lower = x0_c + shrink * (c - x0_c), guides.pop()
            weights.multiply(halves(guide.data - guide.slope * c, guide.variance))
            weights.multiply(-halves(guide.data - lower.slope * mean, guide.variance))
            if after > 0:
                # Before the move: the weight is that of the mean, so that moved particles are as good as their weights.
                ancestors = weights.resample(rng)
                mean, x0 = take(mean, ancestors), take(x0, ancestors)
            c = lower.guided(mean, after**2 * (1 - shrink), rng.normal(noise_shape))
            guide, x = lower, centre + back(problem, c, self.particles_at_once)
            yield x, x0, after

    def _filtered(self, seen: Spectrum, sigmas: list[float], prior_std: float) -> Iterator["Guide"]:
        """The guides of all levels, from 0 up."""
        guide = Guide(seen.data, seen.values, seen.variance.expand_as(seen.data))
        yield guide
        for after, sigma in pairwise(reversed(sigmas)):
            shrink = (after / sigma) ** 2
            kept = shrink + (1 - shrink) * prior_std**2 / (prior_std**2 + sigma**2)
            added = guide.slope**2 * after**2 * (1 - shrink)
            guide = Guide(guide.data, guide.slope * kept, guide.variance + added)
            yield guide


@dataclass(frozen=True, eq=False)
class Guide:
    """What the auxiliary process says at one level of coordinates c: N(data; slope c, variance), (R, 1, C, H, W)."""

    data: Tensor
    slope: Tensor
    variance: Tensor

    def guided(self, mean: Tensor, variance: float, noise: Tensor) -> Tensor:
        """A draw of N(c; mean, variance) times this, (R, N, C, H, W)."""
        share = self.variance / (self.variance + self.slope**2 * variance)
        gain = variance * self.slope * share / self.variance
        return mean + gain * (self.data - self.slope * mean) + (variance * share).sqrt() * noise

    def log_evidence(self, seen: Spectrum, variance: float) -> Tensor:
        """Log of the integral of N(c; 0, variance) times this, in units of exp(-nll), (R, 1) float64."""
        spread = self.variance + self.slope**2 * variance
        size = (spread.double() / seen.variance.double()).log().flatten(2).sum(2) / 2
        return -halves(self.data, spread) - size - seen.unexplained[:, None]


def halves(away: Tensor, variance: Tensor) -> Tensor:
    """Sum of away^2 / (2 variance) of each particle, (R, N) float64."""
    return (away.double().square() / (2 * variance.double())).flatten(2).sum(2)
