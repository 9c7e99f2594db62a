"""What the tests of the priors share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff import load_prior
from invdiff.priors import EDMPrior


@pytest.fixture(scope="session")
def digits() -> EDMPrior:
    return load_prior("digits")


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return draw
