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


@pytest.mark.parametrize("scale", [1.0, 1e-6, 64.0])
@pytest.mark.parametrize("masked", ["its own mask", "a centred mask", "no mask", "complete"])
def test_numpy_kspace_is_found(masked: str, scale: float, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    centred = MRI(acceleration=2).mask_of((64, 64))
    own = ifftshift(centred, AXES)
    y = torch.where(own, noisy(numpy_kspace(brain)), 0) if masked != "complete" else noisy(numpy_kspace(brain))
    masks = {"its own mask": own, "a centred mask": centred, "complete": torch.ones(64)}
    operator = MRI() if masked == "no mask" else MRI(mask=masks[masked])
    findings = found(operator, scale * y, 0.02 * scale)
    assert "operator.fft=numpy" in findings["fourier"].words
    assert ("units" in findings) == (scale != 1)


def test_centred_kspace_of_an_image_with_its_origin_in_the_corner(brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(fftshift(numpy_kspace(brain), AXES))
    assert list(found(MRI(acceleration=1), y)) == ["fourier image"]
    # Half of NumPy's convention: the image has its origin in the middle.
    half = noisy(numpy_kspace(ifftshift(brain, AXES)))
    words = found(MRI(acceleration=1), half)["fourier"].words
    assert "np.fft.fftshift(y)" in words
    assert "operator.fft=ifftshift" in words
    assert found(MRI(acceleration=1), fftshift(half, AXES)) == {}


@pytest.mark.parametrize("right", ["centred", "numpy", "fftshift", "ifftshift"])
def test_every_convention_is_told_from_every_other(right: str, brain: Tensor, found) -> None:  # type: ignore[no-untyped-def]
    y = noisy(MRI(acceleration=1, fft=right)(brain))
    for fft in ("centred", "numpy", "fftshift", "ifftshift"):
        findings = found(MRI(acceleration=1, fft=fft), y)
        if fft == right:
            assert not {"fourier", "fourier image"} & set(findings)
        else:
            assert f"operator.fft={right}" in " ".join(finding.words for finding in findings.values())
    coils = MulticoilMRI(acceleration=2, coils=4, fft=right)
    known = MulticoilMRI(maps=coils.maps_of((64, 64), brain), mask=coils.mask_of((64, 64)), fft=right)
    assert not {"fourier", "fourier image", "coil maps differ"} & set(found(known, noisy(known(brain))))
    other = MulticoilMRI(maps=known.maps_of((64, 64), brain).roll(1, 1), mask=coils.mask_of((64, 64)), fft=right)
    assert "in the order of its coils" in found(other, noisy(known(brain)))["coil maps differ"].words


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
