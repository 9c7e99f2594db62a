"""Angles in radians, transposed arrays, an axis off the centre, counts."""

import math

import numpy as np
import pytest
import torch
from skimage.transform import radon
from torch import Tensor

from helpers import noisy
from invdiff.operators import CT, CTTransmission
from invdiff.priors import Prior


@pytest.mark.parametrize("span", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_angles_in_radians(span: float, geometry: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(CT(views=30, geometry=geometry, angle_range=math.degrees(span))(brain), 0.2)
    finding = found(CT(views=30, geometry=geometry, angle_range=span), y, 0.2)["sinogram angles"]
    assert finding.severe
    assert "180 / pi" in finding.words


def test_a_list_of_angles_in_radians(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    turns = torch.linspace(0, 3, 25)
    y = noisy(CT(angles=turns.rad2deg())(brain), 0.2)
    assert found(CT(angles=turns.rad2deg()), y, 0.2) == {}
    assert "sinogram angles" in found(CT(angles=turns), y, 0.2)


def test_angles_in_radians_of_transmission(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(CTTransmission(views=30)(brain), 0.01)
    assert "sinogram angles" in found(CTTransmission(views=30, angle_range=math.pi), y, 0.01)


def test_a_transposed_sinogram(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    operator = CT(views=91)  # as many as detectors
    y = noisy(operator(brain), 0.2)
    assert found(operator, y, 0.2) == {}
    assert "np.swapaxes" in found(operator, y.mT.contiguous(), 0.2)["sinogram transposed"].words


@pytest.mark.parametrize("cells", [-4, -1, 2])
def test_an_axis_off_the_centre(cells: int, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    operator = CT(views=30)
    y = noisy(operator(brain).roll(cells, -2), 0.1)
    assert f"operator.centre={cells:.1f}" in found(operator, y, 0.1)["sinogram axis"].words


@pytest.mark.parametrize("convention", ["skimage", "deepinv", "astra"])
def test_sinograms_of_other_libraries(convention: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    operator = CT(views=30, convention=convention, centre=1.5)
    y = noisy(operator(brain), 0.1)
    assert found(operator, y, 0.1) == {}
    shifted = y.roll(2, -1 if convention == "astra" else -2)
    words = found(operator, shifted, 0.1)["sinogram axis"].words
    assert float(words.rpartition("operator.centre=")[2]) == pytest.approx(3.5, abs=0.3)  # skimage cuts the corners off


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_the_axis_of_scikit_image(sigma: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    """Half a cell from that of other libraries; each convention of the two is named for the sinograms of the other."""
    axis = torch.linspace(-1, 1, 64)
    inside = brain * (axis[:, None].square() + axis.square() < 0.9)  # as radon(circle=True) demands
    detector = {"detectors": 64, "size": (64, 64)}
    ours, skimage = CT(views=60, **detector), CT(views=60, convention="skimage")
    theirs = torch.stack([torch.from_numpy(radon(x[0].numpy(), np.arange(60) * 3.0))[None] for x in inside]).float()
    assert found(skimage, noisy(theirs, sigma), sigma) == {}
    assert found(ours, noisy(ours(inside), sigma), sigma) == {}
    assert "operator.convention=skimage;" in found(ours, noisy(theirs, sigma), sigma)["sinogram axis"].words
    assert "leave out" in found(skimage, noisy(ours(inside), sigma), sigma)["sinogram axis"].words


def test_two_views_do_not_tell_the_axis(found) -> None:  # type: ignore[no-untyped-def]
    x = torch.zeros(1, 1, 64, 64)
    x[..., 34:44, 34:50] = 0.8
    assert "sinogram axis" not in found(CT(views=2), noisy(CT(views=2)(x), 0.1), 0.1)
    assert "sinogram axis" not in found(CT(views=3), noisy(CT(views=3)(x), 0.1), 0.1)


def test_images_cut_off_by_the_detector_have_no_axis(prior: Prior, found) -> None:  # type: ignore[no-untyped-def]
    operator = CT(views=60, detectors=64, size=(64, 64))
    x = torch.zeros(1, 1, 64, 64)
    x[..., 4:30, 2:40] = 0.8  # its corner projects beyond the detector
    assert "sinogram axis" not in found(operator, noisy(operator(x), 0.1), 0.1)


@pytest.mark.parametrize("photons", [1.0, 1e4])
def test_counts_for_line_integrals(photons: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(photons * torch.exp(-CT(views=30)(brain) / 20), 0.01 * photons)
    assert list(found(CT(views=30), y, 0.01 * photons)) == ["sinogram counts"]


def test_line_integrals_for_counts(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(CT(views=30)(brain), 0.2)
    assert "operator=ct" in found(CTTransmission(views=30), y, 0.2)["sinogram counts"].words
