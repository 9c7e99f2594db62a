"""A correction gives a factor for every level, and is a file and back the same."""

import json
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

from invdiff import InverseProblem, Posterior
from invdiff.correction import Correction, Level
from invdiff.operators import Denoising, GaussianNoise
from invdiff.posterior import Cost


def gaussian(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


LEVELS = {level: Level(2 * gaussian(level), 0.1, (0.5, 0.01), (level, 0.01)) for level in (0.5, 0.9, 0.95)}
CORRECTION = Correction(
    key={"num_samples": 4},
    truths="draws of the prior",
    drawn=True,
    images=64,
    shape=(1, 2, 2),
    background=0.25,
    floor=0.3,
    spread=(2.0, 0.1),
    pixels=LEVELS,
    balls=LEVELS,
)


def test_intervals_are_the_mean_and_a_multiple_of_the_spread() -> None:
    samples = torch.tensor([0.1, 0.5, 0.9]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), torch.zeros(1, 1, 2, 2))
    posterior = Posterior(samples, torch.full((1, 3), -1), Cost(), problem, CORRECTION)
    low, high = posterior.interval(0.9)
    half = 2 * gaussian(0.9) * (0.4**2 + 0.3**2) ** 0.5
    torch.testing.assert_close(low, torch.full((1, 1, 2, 2), 0.5 - half))
    torch.testing.assert_close(high, torch.full((1, 1, 2, 2), 0.5 + half))
    with pytest.raises(ValueError, match="level must be > 0 and < 1"):
        posterior.interval(1.0)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.7, 0.9, 0.93, 0.99])
def test_levels_between_and_beyond_keep_the_ratio_to_a_gaussian(level: float) -> None:
    assert CORRECTION.factor(level) == pytest.approx(2 * gaussian(level))


def test_factors_between_two_levels_lie_between_theirs() -> None:
    steep = replace(CORRECTION, pixels={0.5: Level(0.6, 0, (0, 0), (0, 0)), 0.9: Level(4.0, 0, (0, 0), (0, 0))})
    assert 0.6 == steep.factor(0.5) < steep.factor(0.6) < steep.factor(0.8) < steep.factor(0.9) == pytest.approx(4.0)


def test_a_file_and_back_is_the_same() -> None:
    assert Correction.from_json(json.loads(json.dumps(CORRECTION.as_json(), allow_nan=False))) == CORRECTION
    words = "90 % intervals: measured coverage 0.90 ± 0.01 on 64 images (draws of the prior)"
    assert str(CORRECTION) == f"{words}, black background left out (25 %)"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"floor": -1.0}, "numbers >= 0"),
        ({"floor": "much"}, "lacks or misspells"),
        ({"pixels": {"0.50": {"factor": 1.0}}}, "lacks or misspells"),
        ({"pixels": {}}, "needs the level 0.90"),
        ({"pixels": None}, "lacks or misspells"),
        ({"unknown": 1}, "lacks or misspells"),
    ],
)
def test_values_that_no_measurement_gives_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Correction.from_json({**CORRECTION.as_json(), **values})
