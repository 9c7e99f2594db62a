"""Distances of samples to an exact posterior: of a prior in closed form and a linear measurement with Gaussian noise.
Each stands beside its floor, below which a method cannot be distinguished from the truth.

Exact draws    depend on (seed, operator, noise, image) alone: all samplers are compared with the same ones.
Floor          the mean over a few exact sets, as many draws as there are samples, against those same exact draws.
Directions     of the sliced Wasserstein distance: the same for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.operators import GaussianNoise
from invdiff.priors import ClosedFormPrior, Prior
from invdiff.priors.closed_form.mixture import MixturePrior
from invdiff.problem import InverseProblem
from invdiff.scores.distances import sliced_wasserstein
from invdiff.scores.moments import covariance_error, mean_error, mode_weight_error, std_error
from invdiff.streams import generator

DISTANCES = ("sliced_wasserstein", "mean_error", "std_error", "covariance_error", "mode_error")
FLOORS = tuple(f"{name}_floor" for name in DISTANCES)
DRAWS = 256  # exact ones, at least: they are cheap beside samples, and the fewer the higher the floor
REPEATS = 4  # of the floor
DIRECTIONS = 200


@dataclass(frozen=True, eq=False)
class Exact:
    """The posterior of one image.

    draws    (M, C, H, W) exact ones
    prior    where it is a mixture, to assign samples to components
    weights  (K,), the posterior's; None where it is no mixture
    floors   of each distance, by name, for as many samples as were asked for
    notes    reasons for missing distances
    """

    draws: Tensor
    prior: MixturePrior | None
    weights: Tensor | None
    floors: Mapping[str, float]
    notes: Mapping[str, str]

    @classmethod
    @torch.no_grad()
    def of(cls, problem: InverseProblem, prior: Prior, count: int, *, seed: int, image: int) -> "Exact":
        """The posterior of a problem of one image, for comparison with `count` samples.

        seed, image  decide the draws, with operator and noise

        Raises ValueError, with the reason, where there is none, or where it has no spread.
        """
        reason = missing_truth(problem, prior, count)
        if reason is not None:
            raise ValueError(reason)
        assert isinstance(prior, ClosedFormPrior)  # `missing_truth` made sure
        posterior = prior.posterior(problem)
        rng = generator(seed, "exact", image)
        draws = posterior.sample(max(count, DRAWS), rng).cpu()
        if not bool(draws.std(0).any()):
            raise ValueError("the exact posterior is a single image, without a spread to measure errors by")
        mixture, weights, notes = None, None, {}
        if not isinstance(prior, MixturePrior) or prior.components == 1:
            notes["mode_error"] = f"{type(prior).__name__} has one mode"
        elif prior.full and bool((prior.variances <= 0).any()):
            notes["mode_error"] = "a component has no width, so samples cannot be assigned to components"
        else:
            mixture, weights = prior, getattr(posterior, "weights").cpu()  # noqa: B009, of both kinds of mixtures
        exact = cls(draws, mixture, weights, {}, notes)
        found = [exact.distances(posterior.sample(count, rng).cpu()) for _ in range(REPEATS)]
        floors = {name: sum(f[name] for f in found) / REPEATS for name in found[0]}
        return cls(draws, mixture, weights, floors, notes)

    @torch.no_grad()
    def distances(self, samples: Tensor) -> dict[str, float]:
        """Of samples (N, C, H, W), at least two, finite and on the CPU, by name."""
        x, y = samples.double(), self.draws.double()
        rng = torch.Generator().manual_seed(0)  # the same directions and groups for all
        found = {"sliced_wasserstein": sliced_wasserstein(x, y, rng, directions=DIRECTIONS).value}
        for name, distance in (
            ("mean_error", mean_error),
            ("std_error", std_error),
            ("covariance_error", covariance_error),
        ):
            found[name] = distance(x, y, rng).value
        if self.prior is not None and self.weights is not None:
            member = self.prior.responsibilities(x.to(self.prior.offsets.device)).cpu()
            found["mode_error"] = mode_weight_error(x, self.weights, lambda _: member, rng).value
        return found


def missing_truth(problem: InverseProblem, prior: Prior, count: int) -> str | None:
    """Why `count` samples of each image cannot be compared with an exact posterior; None where they can."""
    if not isinstance(prior, ClosedFormPrior):
        return f"no exact posterior: {type(prior).__name__} has no closed form"
    if not problem.operator.linear:
        return f"no exact posterior: {type(problem.operator).__name__} is not linear"
    if not isinstance(problem.noise, GaussianNoise):
        return f"no exact posterior: {type(problem.noise).__name__} is not Gaussian"
    if count < 2:
        return "distances to the exact posterior need num_samples >= 2"
    return None


def distances_to(exact: Exact, samples: Tensor, diverged: Tensor) -> dict[str, float]:
    """Of the samples (S, C, H, W) of one image that did not diverge, and the floors; empty for fewer than two."""
    kept = samples[~diverged].cpu()
    if len(kept) < 2:
        return {}
    return exact.distances(kept) | {f"{name}_floor": floor for name, floor in exact.floors.items()}
