"""Calibration passes the exact posterior and fails what is too narrow, too wide, off, or blind to the data."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem
from invdiff.engine.step import Step
from invdiff.operators import Denoising, GaussianBlur, GaussianNoise, Inpainting
from invdiff.posterior import Cost
from invdiff.priors import GaussianPrior, Prior
from invdiff.samplers import DPS, REDDiff
from invdiff.samplers.base import Needs, Sampler
from invdiff.schedules import VP
from invdiff.scores import calibration
from invdiff.scores.calibration import Calibration, calibrate
from invdiff.streams import Streams

SIDE = 5
OPERATOR, NOISE = GaussianBlur(std=1.0, kernel_size=3), GaussianNoise(0.1)


def covariance() -> Tensor:
    i = torch.arange(SIDE, dtype=torch.float64)
    axis = torch.exp(-(((i[:, None] - i) / 1.5) ** 2) / 2) + 0.05 * torch.eye(SIDE)
    return 0.04 * torch.kron(axis, axis)


PRIOR = GaussianPrior(torch.full((1, SIDE, SIDE), 0.5), covariance().float())


@dataclass(frozen=True, kw_only=True)
class Conditioned(Sampler):
    """Draws from p(x | y) of `PRIOR`, by the textbook formula, or wrongly.

    width, bias  standard deviation of the samples, and their shift, in the units of the right standard deviation
    blind        draws from the prior, whatever y
    lost         every so many samples are NaN
    """

    width: float = 1.0
    bias: float = 0.0
    blind: bool = False
    lost: int = 0

    @property
    def num_steps(self) -> int:
        return 1

    def needs(self) -> Needs:
        return Needs(linear=True)

    def expected_cost(self) -> Cost:
        return Cost()

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        n, c = SIDE * SIDE, covariance()
        matrix = problem.operator(torch.eye(n).reshape(n, 1, SIDE, SIDE)).flatten(1).T.double()
        noise = float(problem.noise.sigma) ** 2 * torch.eye(len(matrix))  # type: ignore[union-attr]
        gain = c @ matrix.T @ torch.linalg.inv(matrix @ c @ matrix.T + noise)
        residual = problem.y.flatten(1).double() - 0.5 * matrix.sum(1)
        mean, law = (0 * residual @ gain.T, c) if self.blind else (residual @ gain.T, c - gain @ matrix @ c)
        root = torch.linalg.cholesky(law)
        z = rng.normal().flatten(1).double()
        x = 0.5 + mean + self.bias * law.diagonal().sqrt() + self.width * z @ root.T
        x = x.float().reshape(-1, 1, SIDE, SIDE)
        if self.lost:
            x[:: self.lost] = torch.nan
        yield Step(x, x, 0.0)


@pytest.fixture(scope="module")
def run() -> Callable[..., Calibration]:
    def calibrated(sampler: Sampler, *, images: int = 120, seed: int = 0, **more: float) -> Calibration:
        compute = Compute(device="cpu", precision="float32", progress=False)
        return calibrate(
            sampler, PRIOR, OPERATOR, NOISE, images=images, num_samples=12, seed=seed, compute=compute, **more
        )

    return calibrated


def test_the_exact_posterior_passes(run: Callable[..., Calibration]) -> None:
    found = run(Conditioned(), images=300)
    summary = found.summary()
    assert summary["p_value"] > 0.05
    assert ((found.coverage - found.levels).abs() < 4 * found.coverage_error).all()
    assert ((found.tarp - found.levels).abs() < 4 * (found.levels * (1 - found.levels) / 300).sqrt()).all()
    assert all(abs(row["spread"] - 1) < 0.15 and abs(row["mean"] - 0.5) < 0.07 for row in summary["ranks"].values())


@pytest.mark.slow
def test_an_exact_posterior_seldom_fails(run: Callable[..., Calibration]) -> None:
    # Twenty-one tests, corrected for their number: one in twenty at most. Four of 20 would be one in sixty.
    assert sum(run(Conditioned(), images=60, seed=s).summary()["p_value"] < 0.05 for s in range(20)) < 4


def test_too_narrow_a_posterior_fails_and_is_called_over_confident(run: Callable[..., Calibration]) -> None:
    found = run(Conditioned(width=0.75))
    summary = found.summary()
    assert summary["p_value"] < 1e-3
    assert summary["ranks"]["mean intensity"]["spread"] > 1.03
    assert (found.coverage + 4 * found.coverage_error < found.levels)[8:].all()
    assert summary["tarp"]["ks"] < 1e-2


def test_too_wide_a_posterior_fails_and_is_called_under_confident(run: Callable[..., Calibration]) -> None:
    found = run(Conditioned(width=2.0))
    assert found.summary()["p_value"] < 1e-3
    assert found.summary()["ranks"]["mean intensity"]["spread"] < 0.9
    assert (found.coverage > found.levels).all()


@pytest.mark.parametrize("bias", [0.7, -0.7])
def test_a_biased_posterior_fails_on_the_side_of_its_bias(run: Callable[..., Calibration], bias: float) -> None:
    summary = run(Conditioned(bias=bias)).summary()
    assert summary["p_value"] < 1e-6
    # Samples above the truth: the truth's rank is low.
    assert (summary["ranks"]["mean intensity"]["mean"] < 0.3) == (bias > 0)


def test_only_the_likelihood_sees_samples_that_ignore_the_data(run: Callable[..., Calibration]) -> None:
    found = run(Conditioned(blind=True))
    p_values = dict(zip(found.names, found.kolmogorov_smirnov().tolist(), strict=True))
    assert p_values.pop("log-likelihood") < 1e-10
    assert min(p_values.values()) > 1e-3
    assert found.summary()["ranks"]["log-likelihood"]["mean"] > 0.9


def test_an_image_depends_on_its_number_and_the_seed_alone(
    run: Callable[..., Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Conditioned(), images=30)
    monkeypatch.setattr(calibration, "BLOCK", 12 * SIDE**2 * 7)
    parts = run(Conditioned(), images=23)
    assert torch.equal(parts.ranks, whole.ranks[:23])
    assert torch.allclose(parts.uniform, whole.uniform[:23])
    assert torch.allclose(parts.balls, whole.balls[:23])
    assert not torch.equal(run(Conditioned(), images=23, seed=1).ranks, parts.ranks)


def test_diverged_samples_are_counted_and_left_out(run: Callable[..., Calibration]) -> None:
    # Every 5th of 12 a row: an image loses two or three.
    found = run(Conditioned(lost=5))
    assert found.diverged == 120 * 12 / 5
    assert set(found.kept.tolist()) == {9, 10}
    assert (found.ranks <= found.kept[:, None]).all()
    assert found.uniform.isfinite().all()
    assert found.summary()["p_value"] > 0.01
    assert f"{found.diverged} of 1440 samples diverged and are left out" in found.summary()["notes"]


def test_an_image_without_samples_is_left_out_and_said(
    run: Callable[..., Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Conditioned(), images=40)
    original = Conditioned.iterate

    def lose_the_first(self: Conditioned, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        for step in original(self, problem, prior, rng):
            step.x[:12] = torch.nan
            yield step

    monkeypatch.setattr(Conditioned, "iterate", lose_the_first)
    found = run(Conditioned(), images=40)
    assert found.images == 39
    assert found.uniform[0].isnan().all()
    assert torch.allclose(found.uniform[1:], whole.uniform[1:])
    assert torch.allclose(found.coverage, whole.covered[1:].mean(0))
    assert found.pixel_coverage.isfinite().all()
    assert any("of 1 image(s) every sample diverged" in note for note in found.summary()["notes"])


def test_a_calibration_of_nothing_is_refused(run: Callable[..., Calibration]) -> None:
    with pytest.raises(ValueError, match="all 240 samples diverged"):
        run(Conditioned(lost=1), images=20)


def test_pixels_are_ranked_no_finer_than_the_resolution(run: Callable[..., Calibration]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Jittered(Conditioned):
        """Right but for a thousandth."""

        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            x = torch.full((len(rng), 1, SIDE, SIDE), 0.501)
            yield Step(x, x, 0.0)

    flat = GaussianPrior(torch.full((1, SIDE, SIDE), 0.5), torch.zeros(SIDE**2, SIDE**2))
    flat.value_range = (0.0, 1.0)
    settings = {"images": 60, "num_samples": 5, "compute": Compute(device="cpu", progress=False)}
    exact = calibrate(Jittered(), flat, OPERATOR, NOISE, **settings)
    rounded = calibrate(Jittered(), flat, OPERATOR, NOISE, resolution=0.01, **settings)
    assert float(exact.coverage[9]) == 0
    assert float(rounded.coverage[9]) == pytest.approx(0.5, abs=0.05)
    assert (exact.kolmogorov_smirnov()[:4] < 1e-6).all()
    assert (rounded.kolmogorov_smirnov()[:4] > 1e-3).all()
    # A rounded quantity of an exact posterior stays calibrated.
    assert run(Conditioned(), images=200, resolution=0.2).summary()["p_value"] > 0.05


def test_truths_of_a_network_are_drawn_by_its_ode(
    digits: Prior, float32: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "ODE_STEPS", 2)
    sampler = DPS(schedule=VP(steps=1))
    found = calibrate(sampler, digits, Denoising(), GaussianNoise(0.1), images=20, num_samples=2, compute=float32)
    assert not found.exact_truth
    assert "truths are drawn by the prior's ODE, with the error of its steps" in found.summary()["notes"]
    assert found.pixel_coverage.shape == (19, *digits.shape)


def test_operators_with_parameters_per_image_are_taken_apart_with_the_images(
    run: Callable[..., Calibration], monkeypatch: pytest.MonkeyPatch, float32: Compute
) -> None:
    class Blind(Conditioned):
        """Needs no matrix, which here is another for each image."""

        def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
            x = rng.normal()
            yield Step(x, x, 0.0)

    masks = (torch.rand(30, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    settings = {"images": 30, "num_samples": 3, "compute": float32}
    whole = calibrate(Blind(), PRIOR, Inpainting(mask=masks), NOISE, **settings)
    monkeypatch.setattr(calibration, "BLOCK", 3 * SIDE**2 * 7)
    assert torch.equal(calibrate(Blind(), PRIOR, Inpainting(mask=masks), NOISE, **settings).ranks, whole.ranks)
    with pytest.raises(ValueError, match="parameters for 30 images; give one set for all, or 20"):
        calibrate(Blind(), PRIOR, Inpainting(mask=masks), NOISE, images=20, compute=float32)


def test_the_summary_is_json(run: Callable[..., Calibration]) -> None:
    summary = json.loads(json.dumps(run(Conditioned(), images=20).summary(), allow_nan=False))
    assert summary["coverage"]["0.90"][0] == pytest.approx(0.9, abs=0.1)
    assert len(summary["ranks"]) == 10


def test_bad_settings_are_refused_in_one_line() -> None:
    for settings, words in (
        ({"images": 19}, "images must be >= 20"),
        ({"num_samples": 1}, "num_samples must be >= 2"),
        ({"resolution": math.nan}, "resolution must be >= 0"),
        ({"resolution": -1.0}, "resolution must be >= 0"),
        ({"image_shape": (3, 8, 8)}, "image"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            calibrate(Conditioned(), PRIOR, OPERATOR, NOISE, **settings)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_a_prior_of_any_size_must_be_told_one() -> None:
    class AnySize(Prior):
        def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="image_shape"):
        calibrate(Conditioned(), AnySize(), OPERATOR, NOISE)


@pytest.mark.slow
def test_dps_is_found_over_confident(run: Callable[..., Calibration]) -> None:
    # The likelihood at E[x0 | x], not averaged over p(x0 | x), is too sharp: samples fit y too well.
    found = run(DPS(schedule=VP(steps=100), guidance="likelihood", clip=False), images=150)
    summary = found.summary()
    assert summary["p_value"] < 1e-6
    assert float(found.coverage[17]) + 4 * float(found.coverage_error[17]) < 0.9
    assert summary["ranks"]["mean intensity"]["spread"] > 1.1
    assert summary["ranks"]["log-likelihood"]["mean"] < 0.3


def test_red_diff_is_found_over_confident(run: Callable[..., Calibration]) -> None:
    # It looks for a mode: samples of one image differ by where they started alone.
    found = run(REDDiff(), images=60)
    assert found.summary()["p_value"] < 1e-6
    assert float(found.coverage[17]) + 4 * float(found.coverage_error[17]) < 0.9
