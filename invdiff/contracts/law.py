"""The law of a sampler on a Gaussian problem, against the exact posterior or a recorded bias."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.contracts.compare import normal, require
from invdiff.contracts.toys import COMPUTE, WhitePrior, fitting, small_operator
from invdiff.operators import GaussianNoise
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler


@dataclass(frozen=True)
class Law:
    """Samples in the eigenbasis of the true posterior, in its units: mean 0 and variance 1 where they are exact.

    mean, variance              of each direction, the one of least variance first
    mean_error, variance_error  their standard errors
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]
    mean_error: tuple[float, ...]
    variance_error: tuple[float, ...]


def exact_law(directions: int = 16) -> Law:
    return Law((0.0,) * directions, (1.0,) * directions, (0.0,) * directions, (0.0,) * directions)


def sampled_law(sampler: Sampler, *, samples: int = 3000) -> Law:
    """The law of a sampler on a blurred or masked image of 4x4 under a Gaussian prior, where the posterior is known.

    Raises AssertionError where a sample diverges.
    """
    shape, white, sigma = (1, 4, 4), WhitePrior(), 0.1
    prior = fitting(sampler, white)
    operator = small_operator(sampler)
    y = operator(0.4 + 0.25 * normal(0, 1, *shape))
    posterior = sampler.sample(
        InverseProblem(operator, GaussianNoise(sigma), y), prior, num_samples=samples, compute=COMPUTE
    )
    diverged = int(posterior.diverged.sum())
    require(diverged == 0, f"{type(sampler).__name__}: {diverged} of {samples} samples of a Gaussian problem diverge")

    matrix = operator(torch.eye(16, dtype=torch.float64).reshape(16, *shape)).flatten(1).T
    precisions, basis = _eigenbasis(torch.eye(16) / white.std**2 + matrix.T @ matrix / sigma**2)
    data = white.mean / white.std**2 + matrix.T @ y.double().flatten() / sigma**2
    centre = basis @ (basis.T @ data / precisions)
    z = (posterior.samples[0].flatten(1).double() - centre) @ basis * precisions.sqrt()
    variance = z.var(0)
    fourth = (z - z.mean(0)).pow(4).mean(0)
    errors = (variance / samples).sqrt(), ((fourth - variance**2).clamp(min=0) / samples).sqrt()
    return Law(*(tuple(float(f"{v:.5g}") for v in t.tolist()) for t in (z.mean(0), variance, *errors)))


def _eigenbasis(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors that are the same ones on every machine.

    Blurs and masks have equal eigenvalues, whose vectors may rotate among themselves, and any vector may change its
    sign: the choice of LAPACK depends on the processor. A millionth of a generic diagonal separates equal eigenvalues;
    a generic vector lies on the positive side of all eigenvectors.
    """
    size = len(matrix)
    diagonal = 1e-6 * matrix.diagonal().mean() * normal(3, size).double()
    values, vectors = torch.linalg.eigh(matrix + torch.diag(diagonal))
    values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors * torch.sign(normal(4, size).double() @ vectors)


def check_posterior(sampler: Sampler, known: Law | None = None, *, samples: int = 3000) -> None:
    """Mean and variance of every direction equal those of the posterior, or of a known law, to 5 standard errors."""
    name = type(sampler).__name__
    found, wanted = sampled_law(sampler, samples=samples), known or exact_law()
    target = "the posterior" if known is None else "its recorded law"
    for kind, rounding in (("mean", 1e-3), ("variance", 1e-9)):  # of methods whose samples hardly differ
        values, expected = getattr(found, kind), getattr(wanted, kind)
        errors = [
            math.hypot(a, b, rounding)
            for a, b in zip(getattr(found, f"{kind}_error"), getattr(wanted, f"{kind}_error"), strict=True)
        ]
        away = [abs(a - b) / e for a, b, e in zip(values, expected, errors, strict=True)]
        worst = max(range(len(away)), key=away.__getitem__)
        require(
            away[worst] < 5,
            f"{name} does not sample {target}: the {kind} of direction {worst} is {values[worst]:.3f}, "
            f"{away[worst]:.1f} standard errors from {expected[worst]:.3f}",
        )
