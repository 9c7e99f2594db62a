"""How often credible intervals hold the truth, from as few samples as a benchmark draws."""

import pytest
import torch
from torch import Tensor

from invdiff.scores.of_images import COVERAGES, coverage


def draws(count: int, width: float = 1.0) -> Tensor:
    return width * torch.randn(count, 1, 100, 100, generator=torch.Generator().manual_seed(count))


def test_right_samples_cover_as_often_as_they_say() -> None:
    """However few there are: no bias from their number."""
    for count in (2, 3, 10):
        every = draws(count + 1)
        # Four standard errors of 10 000 pixels.
        assert coverage(every[1:], every[0]) == pytest.approx(COVERAGES, abs=0.02), count


def test_too_sure_and_too_wide() -> None:
    truth = draws(1)[0]
    for level in ("coverage_25", "coverage_50", "coverage_90"):
        narrow, right, wide = (coverage(draws(10, width), truth)[level] for width in (0.3, 1.0, 3.0))
        assert narrow < right - 0.02 < wide - 0.04


def test_ties_are_spread_over_their_ranks() -> None:
    """Samples that agree with the truth in every digit are neither too sure nor too wide."""
    truth = draws(1)[0]
    found = coverage(truth.expand(4, -1, -1, -1), truth)
    assert found == pytest.approx(COVERAGES)


def test_one_sample_tells_nothing() -> None:
    assert coverage(draws(1), draws(2)[0]) == {}
