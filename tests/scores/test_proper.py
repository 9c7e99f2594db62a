"""Proper scores: right by hand, unbiased at every number of samples, and best for the true law."""

import math

import pytest
import torch
from torch import Tensor

from invdiff.scores.proper import crps, energy_score, missing_proper, pooled, spread_and_error

REPEATS = 1500


def test_by_hand() -> None:
    samples, truth = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0.0, 0.0])
    # Distances to the truth 0 and 5, between the samples 5.
    assert energy_score(samples, truth) == pytest.approx((2.5 - 2.5) / math.sqrt(2))
    # Entries: 1.5 - 1.5 and 2 - 2; with the truth at 1: (1 + 2) / 2 - 1.5 and (1 + 3) / 2 - 2.
    assert crps(samples, truth) == pytest.approx(0)
    assert crps(samples, torch.tensor([-1.0, 5.0])) == pytest.approx(((1 + 4) / 2 - 1.5 + (5 + 1) / 2 - 2) / 2)
    three = torch.tensor([[1.0], [2.0], [4.0]])
    # Mean distance to 0 is 7/3, of the pairs 1, 3 and 2 it is 2.
    assert crps(three, torch.zeros(1)) == pytest.approx(7 / 3 - 1)
    assert energy_score(three, torch.zeros(1)) == pytest.approx(7 / 3 - 1), "of one entry both are the same"
    spread, error = spread_and_error(three, torch.zeros(1)) or (0, 0)
    assert (spread, error) == pytest.approx((math.sqrt(7 / 3 * 4 / 3), 7 / 3))


def test_one_sample_has_none() -> None:
    one, truth = torch.zeros(1, 3), torch.zeros(3)
    assert [f(one, truth) for f in (energy_score, crps, spread_and_error)] == [None] * 3
    assert missing_proper(1) == "needs num_samples >= 2"
    assert "noisy" in str(missing_proper(3))
    assert missing_proper(4) is None


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples must be \(S, \.\.\.\) of a truth .* \(2, 3\) and \(4,\)"):
        energy_score(torch.zeros(2, 3), torch.zeros(4))


def scores(count: int, width: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Energy scores and CRPS of `count` samples of a Gaussian of 3 pixels, truths from a standard one."""
    rng = torch.Generator().manual_seed(count)
    truths = torch.randn(REPEATS, 3, generator=rng)
    samples = shift + width * torch.randn(REPEATS, count, 3, generator=rng)
    pairs = list(zip(samples, truths, strict=True))
    return torch.tensor([energy_score(*p) for p in pairs]), torch.tensor([crps(*p) for p in pairs])


def agree(found: Tensor, exact: float) -> bool:
    return abs(float(found.mean()) - exact) <= 4 * float(found.std()) / math.sqrt(len(found))


@pytest.mark.parametrize("count", [2, 3, 4, 12])
@pytest.mark.parametrize("width", [0.2, 1.0, 2.0])
def test_unbiased_at_every_number_of_samples(count: int, width: float) -> None:
    """Of Gaussians of width w: E|X - t| = c sqrt(1 + w^2), E|X - X'| = c sqrt(2) w, c = E|n| in 3 and in 1 pixels."""
    energy, of_pixels = scores(count, width)
    exact = math.sqrt(1 + width**2) - width / math.sqrt(2)
    assert agree(energy, math.sqrt(8 / math.pi) * exact / math.sqrt(3))
    assert agree(of_pixels, math.sqrt(2 / math.pi) * exact)


@pytest.mark.parametrize("count", [4, 8])
def test_the_true_law_beats_all_others(count: int) -> None:
    """Paired over the truths, more than 4 standard errors: the collapsed, the narrow, the wide and the shifted."""
    right = scores(count, 1.0)
    for wrong in (scores(count, 0.0), scores(count, 0.6), scores(count, 1.6), scores(count, 1.0, shift=0.4)):
        for a, b in zip(right, wrong, strict=True):
            gain = b - a
            assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(len(gain))


def test_a_sample_nearest_to_the_truth_is_not_best() -> None:
    """What PSNR of a sample rewards: the posterior mean, without spread, has half the squared error of a sample."""
    rng = torch.Generator().manual_seed(0)
    truths, samples = torch.randn(1000, 3, generator=rng), torch.randn(1000, 4, 3, generator=rng)
    collapsed = torch.zeros_like(samples)
    errors = [float((x - truths[:, None]).square().mean()) for x in (samples, collapsed)]
    assert errors[0] == pytest.approx(2 * errors[1], rel=0.05)
    energies = [
        sum(energy_score(x, t) or 0.0 for x, t in zip(s, truths, strict=True)) / 1000 for s in (samples, collapsed)
    ]
    assert energies[0] < energies[1]


@pytest.mark.parametrize("count", [2, 4, 16])
def test_spread_over_error_is_one_for_exact_samples(count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    for width, ratio in ((1.0, 1.0), (0.5, 0.5 * math.sqrt((1 + 1 / count) / (1 + 0.25 / count)))):
        truths = torch.randn(300, 50, generator=rng)
        samples = width * torch.randn(300, count, 50, generator=rng)
        found = [spread_and_error(x, t) or (0.0, 0.0) for x, t in zip(samples, truths, strict=True)]
        value = pooled([a / b for a, b in found], [b for _, b in found])
        assert value is not None
        assert abs(value.value - ratio) <= 4 * value.standard_error
        assert value.standard_error < 0.03


def test_pooling_leaves_out_what_is_not_known() -> None:
    assert pooled([None, math.nan], [1.0, 1.0]) is None
    one = pooled([2.0, None], [3.0, None])
    assert one is not None
    assert one.value == 2
    assert math.isnan(one.standard_error)
    two = pooled([1.0, 2.0], [3.0, 1.0])
    assert two is not None
    assert two.value == pytest.approx(math.sqrt((9 + 4) / 10)), "the image of the larger error counts for more"
