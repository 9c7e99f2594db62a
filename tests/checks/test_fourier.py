"""Conventions of k-space, Fourier magnitudes and coil sensitivities."""

import pytest
import torch
from torch import Tensor
from torch.fft import fft2, fftshift, ifftshift

from helpers import noisy
from invdiff.operators import MRI, MulticoilMRI, PhaseRetrieval

AXES = (-2, -1)


def numpy_kspace(x: Tensor) -> Tensor:
    return fft2(x.to(torch.complex64), norm="ortho")


MADE = {
    "centred": lambda x: fftshift(numpy_kspace(ifftshift(x, AXES)), AXES),
    "numpy": numpy_kspace,
    "fftshift": lambda x: fftshift(numpy_kspace(x), AXES),
    "ifftshift": lambda x: numpy_kspace(ifftshift(x, AXES)),
}


@pytest.mark.parametrize("scale", [1.0, 1e-6, 64.0])
@pytest.mark.parametrize("masked", ["its own mask", "a centred mask", "no mask", "complete"])
def test_numpy_kspace_is_found(masked: str, scale: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    centred = MRI(acceleration=2).mask_of((64, 64))
    own = ifftshift(centred, AXES)
    y = torch.where(own, noisy(numpy_kspace(brain)), 0) if masked != "complete" else noisy(numpy_kspace(brain))
    masks = {"its own mask": own, "a centred mask": centred, "complete": torch.ones(64)}
    operator = MRI() if masked == "no mask" else MRI(mask=masks[masked])
    findings = found(operator, scale * y, 0.02 * scale)
    assert "operator.fft=numpy fits, not centred" in findings["fourier"].words
    assert ("units" in findings) == (scale != 1)


@pytest.mark.parametrize("stated", MADE)
@pytest.mark.parametrize("made", MADE)
def test_the_convention_that_fits_is_named(made: str, stated: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(MADE[made](brain))
    findings = found(MRI(acceleration=1, fft=stated), y)
    if made == stated:
        assert findings == {}
    else:
        assert f"operator.fft={made} fits, not {stated}" in findings["fourier"].words


@pytest.mark.parametrize("fft", ["numpy", "fftshift"])
def test_coils_in_other_conventions(fft: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    scan = MulticoilMRI(acceleration=2, coils=4, fft=fft)
    assert found(scan, noisy(scan(brain))) == {}
    maps = scan.maps_of((64, 64), brain)
    other = MulticoilMRI(mask=scan.mask_of((64, 64)), maps=maps.roll(1, 1), fft=fft)
    assert "coil maps differ" in found(other, noisy(scan(brain)))


@pytest.mark.parametrize("oversampling", [1.0, 2.0])
def test_magnitudes_with_their_centre_in_the_corner(oversampling: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    operator = PhaseRetrieval(oversampling=oversampling)
    y = noisy(operator(brain))
    assert list(found(operator, ifftshift(y, AXES))) == ["fourier"]


def test_maps_of_another_scan_are_found(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    scan = MulticoilMRI(acceleration=2, coils=4)
    maps, mask = scan.maps_of((64, 64), brain), scan.mask_of((64, 64))
    turned = maps * torch.tensor([1, 1j, -1, -1j]).reshape(4, 1, 1)  # another phase in each coil
    y = noisy(MulticoilMRI(mask=mask, maps=turned)(brain))
    assert found(MulticoilMRI(mask=mask, maps=turned), y) == {}
    for other in (turned.roll(1, 1), turned.mT.contiguous()):
        assert "in the order of its coils" in found(MulticoilMRI(mask=mask, maps=other), y)["coil maps differ"].words
    assert "simulated" in found(MulticoilMRI(mask=mask, coils=4), y)["coil maps differ"].words


@pytest.mark.parametrize("scale", [10.0, 0.1])
def test_maps_of_another_scale_are_found(scale: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    scan = MulticoilMRI(acceleration=2, coils=4)
    maps = scan.maps_of((64, 64), brain)
    y = noisy(scan(brain))
    finding = found(MulticoilMRI(acceleration=2, maps=scale * maps), y)["coil scale"]
    assert finding.severe
    assert "sum_c |S_c|^2" in finding.words
    own = found(MulticoilMRI(acceleration=2, maps=scale * maps), noisy(scale * scan(brain), 0.02 * scale), 0.02 * scale)
    assert not own["coil scale"].severe  # y has that scale too
