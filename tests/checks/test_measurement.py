"""Scale, sign, zeros and noise of y; no finding where nothing is wrong."""

import pytest
import torch
from torch import Tensor

from helpers import noisy
from invdiff import load_prior
from invdiff.checks import CHECKS, check_measurement, measurement_checks
from invdiff.checks.measurement import causes
from invdiff.findings import Finding
from invdiff.operators import (
    CT,
    HDR,
    MRI,
    Blur,
    CodedDiffraction,
    CTTransmission,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    HadamardSensing,
    Inpainting,
    MotionBlur,
    MulticoilMRI,
    NoNoise,
    Operator,
    PhaseRetrieval,
    PoissonNoise,
    Quantisation,
    RadialMRI,
    SuperResolution,
    as_operator,
    compose,
)
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, simulate

HARMLESS = [
    Denoising(),
    Inpainting(),
    Inpainting(box=0.5),
    Inpainting(lines=2),
    GaussianBlur(std=2.0, kernel_size=15),
    Blur(torch.ones(5, 5) / 25),
    MotionBlur(kernel_size=21),
    SuperResolution(factor=4),
    HDR(),
    Quantisation(),
    CT(views=20),
    CT(geometry="fan", views=20),
    CT(angle_range=6.0, views=12),
    CTTransmission(views=20),
    HadamardSensing(order="random"),
    PhaseRetrieval(),
    CodedDiffraction(),
    MRI(),
    MRI(acceleration=2, center_fraction=0.0),
    MulticoilMRI(coils=4),
    RadialMRI(spokes=10),
    compose([GaussianBlur(std=1.0, kernel_size=9), Inpainting()]),
    as_operator(torch.square, image_shape=(1, 64, 64)),
]


@pytest.mark.parametrize("operator", HARMLESS, ids=lambda operator: type(operator).__name__)
def test_simulated_measurements_raise_no_alarm(operator: Operator, brain: Tensor, prior: Prior) -> None:
    clean = operator(brain[:1])
    size = float(clean.abs().square().mean().sqrt())
    levels = [GaussianNoise(0.01 * size), GaussianNoise(0.3 * size), NoNoise()]
    if not clean.is_complex() and clean.min() >= 0:
        levels.append(PoissonNoise(0.02 * size))
    for noise in levels:
        problem = InverseProblem(operator, noise, simulate(brain, operator, noise), image_shape=prior.shape)
        assert check_measurement(problem, prior) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "brain_small", "photo"])
def test_simulated_measurements_of_networks_raise_no_alarm(name: str) -> None:
    network, draws = load_prior(name).eval(), load_prior("digits_mixture")
    shape = network.shape or (3, 64, 64)
    images = draws.sample(4, torch.Generator().manual_seed(1)).clamp(0, 1)  # type: ignore[attr-defined]
    images = torch.nn.functional.interpolate(images, shape[-2:], mode="bilinear").expand(-1, shape[0], -1, -1)
    for operator in HARMLESS[:-2]:
        if operator.mismatch(shape) is None:
            y = simulate(images, operator, 0.02)
            assert check_measurement(InverseProblem(operator, 0.02, y, image_shape=shape), network) == []


@pytest.mark.parametrize("factor", [255.0, 65535.0, 1e-6, 100.0, 1 / 255])
@pytest.mark.parametrize(
    "operator", [Denoising(), GaussianBlur(std=1.0, kernel_size=7), CT(views=12), MRI(acceleration=2)]
)
def test_a_factor_is_found(operator: Operator, factor: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = factor * noisy(operator(brain), 0.001)
    finding = found(operator, y, 0.001 * factor)
    assert finding.keys() & {"units", "scale"}


def test_eight_bits_are_named(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = (255 * noisy(brain)).clamp(0, 255).round()
    for sigma in (0.02, 5.0):
        findings = found(Denoising(), y, sigma)
        assert list(findings) == ["units"]  # not sigma as well
        assert "divide y and noise.sigma by 255" in findings["units"].words


def test_the_norm_of_a_fourier_transform_is_named(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = 64 * noisy(MRI(acceleration=2)(brain))
    assert "operator.norm=backward" in found(MRI(acceleration=2), y)["units"].words


@pytest.mark.parametrize("operator", [Denoising(), CT(views=12), MRI(acceleration=2)])
def test_the_other_sign_is_found(operator: Operator, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    assert found(operator, -noisy(operator(brain)))["sign"].severe


def test_symmetric_range_is_found(digits: Prior) -> None:
    x = load_prior("digits_mixture").sample(1, torch.Generator().manual_seed(3)).clamp(0, 1)  # type: ignore[attr-defined]
    (finding,) = check_measurement(InverseProblem(Denoising(), 0.02, 2 * noisy(x) - 1), digits)
    assert finding.kind == "range"
    assert "[-1, 1]" in finding.words


def test_masks_that_contradict_y(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    kept = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    y = torch.where(kept, noisy(brain), 0)
    assert found(Inpainting(mask=kept), y) == {}
    assert list(found(Inpainting(mask=~kept), y)) == ["mask inverted"]
    assert list(found(Inpainting(mask=kept.flip(0)), y)) == ["mask differs"]
    assert list(found(Inpainting(), y)) == ["mask differs"]  # drawn from a seed
    assert list(found(Denoising(), y)) == ["mask forgotten"]


def test_masks_of_kspace_that_contradict_y(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    sampled = MRI(acceleration=2).mask_of((64, 64))
    y = torch.where(sampled, noisy(MRI(acceleration=1)(brain)), 0)
    assert found(MRI(mask=sampled), y) == {}
    assert list(found(MRI(mask=~sampled), y)) == ["mask inverted"]
    assert list(found(MRI(mask=sampled.roll(1, -1)), y)) == ["mask differs"]
    assert list(found(MRI(acceleration=1), y)) == ["mask forgotten"]


@pytest.mark.parametrize("axis", [0, 1])
def test_missing_lines_are_found(axis: int, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    lines = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5
    y = torch.where(lines[:, None] if axis == 0 else lines, noisy(brain), 0)
    assert list(found(Denoising(), y)) == ["mask forgotten"]


def test_black_areas_of_a_picture_are_no_mask(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    eight_bits = (255 * noisy(brain)).clamp(0, 255).round() / 255
    assert (eight_bits == 0).float().mean() > 0.1
    assert "mask forgotten" not in found(Denoising(), eight_bits)
    assert found(Inpainting(mask=torch.rand(64, 64) < 0.5), eight_bits).keys() <= {"sigma"}


def test_differences_of_flat_areas_are_no_mask(brain: Tensor, prior: Prior) -> None:
    operator = as_operator(lambda x: x.diff(dim=-1), image_shape=(1, 64, 64))
    y = operator(brain.clamp(min=0.1))
    assert (y == 0).float().mean() > 0.1
    assert check_measurement(InverseProblem(operator, NoNoise(), y), prior) == []


def test_masks_with_more_than_two_values(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    soft = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    holed = (soft < 0.5).float().masked_fill(soft > 0.9, torch.nan)
    assert "mask > 0.5" in found(Inpainting(mask=soft), noisy(brain))["mask values"].words
    assert "NaN" in found(Inpainting(mask=holed), noisy(brain))["mask values"].words


@pytest.mark.parametrize("operator", [Denoising(), GaussianBlur(std=2.0, kernel_size=15), CT(views=12)])
def test_noise_in_other_units(operator: Operator, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    unit = float(operator(brain).abs().square().mean().sqrt())
    y = noisy(operator(brain), 0.1 * unit)
    assert "sigma" not in found(operator, y, 0.1 * unit)
    assert found(operator, y, 20 * unit)["sigma"].severe
    assert "at most about" in found(operator, y, 0.5 * unit)["sigma"].words
    much = noisy(operator(brain), 2 * unit)
    assert "the noise of y is about" in found(operator, much, 0.001 * unit)["sigma"].words


def test_noise_of_each_part_of_a_complex_number(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(MRI(acceleration=1)(brain), 0.3 * 2**0.5)
    assert "sqrt(2)" in found(MRI(acceleration=1), y, 0.3)["sigma per part"].words
    assert found(MRI(acceleration=1), y, 0.3 * 2**0.5) == {}


def test_zeros_alone(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    assert "only zeros" in found(Denoising(), torch.zeros_like(brain))["zeros"].words


def test_only_the_first_images_are_looked_at(brain: Tensor, prior: Prior) -> None:
    y = torch.cat([noisy(brain[:1]), 255 * noisy(brain[1:])])
    problem = InverseProblem(Denoising(), 0.02, y)
    assert check_measurement(problem, prior, images=1) == []
    assert check_measurement(problem, prior, images=2)[0].words.startswith("image 1: ")


def test_every_rule_has_a_verdict(brain: Tensor, prior: Prior) -> None:
    verdicts = list(measurement_checks(InverseProblem(Denoising(), 0.02, 255 * noisy(brain)), prior))
    assert [verdict.rule for verdict in verdicts] == list(CHECKS)
    assert {verdict.rule for verdict in verdicts if verdict.result == "n/a"} == {
        *("centre of k-space", "coil sensitivities", "kernel", "sinogram"),
    }
    assert verdicts[0].result == "failed"


def test_a_consequence_is_left_out() -> None:
    cause, follows, other = (Finding(kind, "", True) for kind in ("units", "sigma", "mask values"))
    assert causes([follows, cause, other]) == [cause, other]
