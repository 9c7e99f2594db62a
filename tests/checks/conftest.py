"""Priors in closed form, images of them, and what the checks find in measurements of these."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from invdiff import load_prior
from invdiff.checks import check_measurement, measurement
from invdiff.checks.typical import typical_images
from invdiff.findings import Finding
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem

Found = Callable[..., dict[str, Finding]]


@pytest.fixture(scope="session")
def prior() -> Prior:
    """Of 64x64 slices of brains."""
    return load_prior("brain_mixture")


@pytest.fixture(scope="session")
def brain(prior: Prior) -> Tensor:
    """(2, 1, 64, 64), drawn from the prior."""
    return prior.sample(2, torch.Generator().manual_seed(5))  # type: ignore[attr-defined]  # in closed form


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same typical images for all tests of a prior; they are a function of its arguments."""
    monkeypatch.setattr(measurement, "typical_images", _typical_images)


_typical_images = cache(typical_images)


@pytest.fixture
def found(prior: Prior) -> Found:
    """`found(operator, y, sigma)` gives the findings by kind."""

    def run(operator: Operator, y: Tensor, sigma: float = 0.02) -> dict[str, Finding]:
        problem = InverseProblem(operator, sigma, y, image_shape=prior.shape)
        return {finding.kind: finding for finding in check_measurement(problem, prior)}

    return run
