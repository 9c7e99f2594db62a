"""Angles in radians, transposed arrays, an axis off the centre, counts."""

import math

import pytest
import torch
from torch import Tensor

from helpers import noisy
from invdiff.operators import CT, CTTransmission


@pytest.mark.parametrize("span", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_angles_in_radians(span: float, geometry: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(CT(views=30, geometry=geometry, angle_range=math.degrees(span))(brain), 0.2)
    finding = found(CT(views=30, geometry=geometry, angle_range=span), y, 0.2)["sinogram angles"]
    assert finding.severe
    assert "180 / pi" in finding.words


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
def test_conventions_of_others(convention: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    """What fits is found fitting, and the axis is named as this convention counts it."""
    own = CT(views=30, convention=convention, centre=0.5, detectors=91, size=(64, 64))
    y = noisy(own(brain), 0.1)
    assert found(own, y, 0.1) == {}
    shifted = noisy(own(brain).roll(3, -1 if convention == "astra" else -2), 0.1)
    assert "operator.centre=3.5" in found(own, shifted, 0.1)["sinogram axis"].words


@pytest.mark.parametrize("photons", [1.0, 1e4])
def test_counts_for_line_integrals(photons: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(photons * torch.exp(-CT(views=30)(brain) / 20), 0.01 * photons)
    assert list(found(CT(views=30), y, 0.01 * photons)) == ["sinogram counts"]


def test_line_integrals_for_counts(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(CT(views=30)(brain), 0.2)
    assert "operator=ct" in found(CTTransmission(views=30), y, 0.2)["sinogram counts"].words
