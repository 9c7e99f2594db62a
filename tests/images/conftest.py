"""Digits drawn from their prior, none of which it was trained on."""

import pytest
from torch import Tensor

from invdiff import load_prior
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.priors import Prior


@pytest.fixture(scope="session")
def prior() -> Prior:
    return load_prior("digits")


@pytest.fixture(scope="session")
def digits(prior: Prior) -> Tensor:
    """Two images, (2, 1, 32, 32)."""
    names, images = drawn_from_prior(2, prior=prior)
    return to_tensor(images, names)
