"""For all tests: the installed package, and one thread, here and in the commands that they start.

The images are tiny: threads would only wait for each other, and on a busy machine for minutes.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

# `python -m pytest` puts the root of the repository on the path, where invdiff lies without operators, priors, configs.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parents[1]]

from invdiff import Compute, InverseProblem, load_prior, samplers  # noqa: E402
from invdiff.operators import GaussianBlur, GaussianNoise  # noqa: E402
from invdiff.priors import EDMPrior  # noqa: E402

os.environ["OMP_NUM_THREADS"] = "1"

# A class is registered when it is defined; those of test files are not among the samplers of other tests.
_defined = samplers.base._subclasses
samplers.base._subclasses = lambda base: (cls for cls in _defined(base) if "test_" not in cls.__module__)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> EDMPrior:
    return load_prior("digits")


@pytest.fixture(scope="session")
def float32() -> Compute:
    """Without the rounding of bf16, for tests that compare runs."""
    return Compute(device="cpu", precision="float32", progress=False)


@pytest.fixture
def problem() -> InverseProblem:
    """Eight blurred squares of noise, 8x8."""
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    operator = GaussianBlur(std=1.0, kernel_size=5)
    return InverseProblem(operator, GaussianNoise(0.1), operator(x))
