"""Corrected intervals hold what they state on truths that the correction was not found on."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem
from invdiff.engine.step import Step
from invdiff.operators import Denoising, GaussianNoise
from invdiff.posterior import Cost, Posterior
from invdiff.priors import DiagonalGaussianPrior, Prior
from invdiff.samplers.base import Sampler
from invdiff.scores.calibration import Calibration, calibrate
from invdiff.scores.conformal import background_of, correct, tried
from invdiff.streams import Streams

SIDE = 8
# Standard deviations from 0.1 to 0.4: one width for all pixels is wrong for every one of them.
STD = torch.linspace(0.1, 0.4, SIDE**2).reshape(1, SIDE, SIDE)
PRIOR = DiagonalGaussianPrior(torch.full((1, SIDE, SIDE), 0.5), STD)
OPERATOR, NOISE = Denoising(), GaussianNoise(0.2)
ABOUT = {"key": {}, "truths": "draws", "drawn": True, "shape": (1, SIDE, SIDE)}


@dataclass(frozen=True, kw_only=True)
class Narrow(Sampler):
    """Draws of the exact posterior of `PRIOR`, moved towards their mean.

    width  of the draws, 1 is right
    stuck  share of the pixels that are the same in all samples
    """

    width: float = 1.0
    stuck: float = 0.0

    @property
    def num_steps(self) -> int:
        return 1

    def expected_cost(self) -> Cost:
        return Cost()

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        gain = STD**2 / (STD**2 + 0.2**2)
        mean, std = 0.5 + gain * (problem.y - 0.5), (gain * 0.2**2).sqrt()
        free = torch.arange(SIDE**2).reshape(1, SIDE, SIDE) >= self.stuck * SIDE**2
        x = mean + self.width * std * free * rng.normal()
        yield Step(x, x, 0.0)


def run(
    sampler: Sampler, *, num_samples: int, images: int | Tensor = 150, seed: int = 0, prior: Prior = PRIOR
) -> Calibration:
    compute = Compute(device="cpu", precision="float32", progress=False)
    return calibrate(
        sampler, prior, OPERATOR, NOISE, images=images, num_samples=num_samples, seed=seed, compute=compute
    )


@pytest.mark.parametrize("num_samples", [2, 4, 12])
@pytest.mark.parametrize("width", [0.625, *(pytest.param(width, marks=pytest.mark.slow) for width in (1.0, 1.5))])
def test_the_factor_of_a_wrong_spread_is_found_and_holds_on_other_draws(width: float, num_samples: int) -> None:
    found = correct(run(Narrow(width=width), num_samples=num_samples).errors, num_samples, 0, **ABOUT)
    factor, error = found.spread
    assert abs(factor - 1 / width) < 4 * error < 0.2 / width
    before, its_error = found.pixels[0.9].before
    assert {0.625: before < 0.9 - 4 * its_error, 1.0: abs(before - 0.9) < 4 * its_error, 1.5: before > 0.9}[width]

    others = tried(found, run(Narrow(width=width), num_samples=num_samples, seed=1).errors)
    for level in (0.5, 0.9):
        for covered, own in (others[f"pixels {level:.2f}"], found.pixels[level].after):
            assert covered == pytest.approx(level, abs=0.015 + 3 * own)
        covered, own = others[f"balls {level:.2f}"]
        # The factor of balls has an error of its own, as large as that of the coverage that it was found by. Four of
        # them, for 18 comparisons.
        assert covered == pytest.approx(level, abs=4 * math.hypot(own, found.balls[level].after[1]))


def test_balls_of_a_narrow_sampler_hold_too_little_and_their_factor_widens_them() -> None:
    found = correct(run(Narrow(width=0.625), num_samples=8).errors, 8, 0, **ABOUT)
    level = found.balls[0.9]
    assert level.before[0] < 0.6
    assert level.factor == pytest.approx(1.6, abs=0.25)
    assert correct(run(Narrow(), num_samples=8).errors, 8, 0, **ABOUT).balls[0.9].factor == pytest.approx(1, abs=0.15)


def test_the_interval_of_a_posterior_holds_what_was_measured() -> None:
    found = correct(run(Narrow(width=0.625), num_samples=4).errors, 4, 0, **ABOUT)
    truth = 0.5 + STD * torch.randn(200, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    y = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(4))
    posterior = Narrow(width=0.625).sample(InverseProblem(OPERATOR, NOISE, y), PRIOR, num_samples=4, seed=2)

    def covered(posterior: Posterior) -> float:
        low, high = posterior.interval(0.9)
        return float(((low <= truth) & (truth <= high)).double().mean())

    assert covered(posterior) < 0.5
    assert covered(replace(posterior, calibration=found)) == pytest.approx(0.9, abs=0.01)


def test_pixels_whose_samples_agree_on_what_is_not_true_get_a_floor() -> None:
    sampler = Narrow(stuck=0.3)
    found = correct(run(sampler, num_samples=6).errors, 6, 0, **ABOUT)
    assert found.floor > 0
    assert tried(found, run(sampler, num_samples=6, seed=1).errors)["pixels 0.90"][0] == pytest.approx(0.9, abs=0.015)


def test_background_is_black_with_black_around() -> None:
    truth = torch.zeros(1, 1, 6, 6)
    truth[..., 5] = 1.0
    truth[..., 0, 0] = 0.019
    flat = background_of(truth, (0.0, 1.0))[0, 0]
    assert flat[:, :4].all()
    assert not flat[:, 4:].any()
    assert not background_of(truth, (-1.0, 1.0)).any()


def test_background_is_not_judged() -> None:
    """The left half of the truths is black, and its samples are far too wide: only `spread` sees them."""

    class Wide(Narrow):
        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            for step in super().iterate(problem, prior, rng):
                step.x[..., : SIDE // 2] = rng.normal()[..., : SIDE // 2]
                yield step

    pictures = copy.copy(PRIOR)
    pictures.value_range = (0.0, 1.0)
    truths = 0.5 + STD * torch.randn(100, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    truths[..., : SIDE // 2] = 0
    truths[..., SIDE // 2 :].clamp_(min=0.1)
    found = correct(run(Wide(), num_samples=4, images=truths, prior=pictures).errors, 4, 0, **ABOUT)
    assert found.background == pytest.approx(0.5 - 1 / SIDE, abs=0.01)  # less the column beside the other half
    whole = correct(run(Wide(), num_samples=4, images=truths).errors, 4, 0, **ABOUT)
    assert whole.background == 0
    assert whole.pixels[0.9].before[0] > found.pixels[0.9].before[0] + 0.01
    assert found.spread == whole.spread
    assert found.spread[0] < 0.4


def test_given_images_are_the_truths() -> None:
    off = 0.5 + 3 * STD * torch.randn(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    calibration = run(Narrow(), num_samples=4, images=off)
    assert not calibration.drawn
    assert not any("ODE" in note for note in calibration.summary()["notes"])
    assert correct(calibration.errors, 4, 0, **ABOUT).pixels[0.9].before[0] < 0.8  # the prior is wrong for them


def test_what_cannot_be_corrected_is_refused() -> None:
    calibration = run(Narrow(), num_samples=2, images=20)
    with pytest.raises(ValueError, match="needs 20 images or more, got 19"):
        correct(calibration.errors[:19], 2, 0, **ABOUT)
    with pytest.raises(ValueError, match="all samples of it are equal"):
        correct(run(Narrow(width=0.0), num_samples=2, images=20).errors, 2, 0, **ABOUT)
