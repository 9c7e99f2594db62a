"""What holds for all tests: one thread, here and in the commands they start.

The images are tiny: threads would only wait for each other, and on a busy machine for minutes.
"""

import os

import pytest
import torch

from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianBlur, GaussianNoise
from invdiff.priors import EDMPrior

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
