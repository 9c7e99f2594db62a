"""What the tests of the core share."""

import pytest
import torch

from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianBlur, GaussianNoise
from invdiff.priors import EDMPrior


@pytest.fixture(scope="session")
def digits() -> EDMPrior:
    return load_prior("digits")


@pytest.fixture(scope="session")
def float32() -> Compute:
    """Without the last digits that bf16 would lose: what is compared is the driver."""
    return Compute(device="cpu", precision="float32", progress=False)


@pytest.fixture
def problem() -> InverseProblem:
    """Eight blurred squares of noise, 8x8."""
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    operator = GaussianBlur(std=1.0, kernel_size=5)
    return InverseProblem(operator, GaussianNoise(0.1), operator(x))
