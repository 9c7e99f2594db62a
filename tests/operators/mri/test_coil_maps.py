"""Simulated and given sensitivity maps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.operators import MulticoilMRI, RadialMRI
from invdiff.operators.mri.coil_maps import RADIUS, simulated_maps

Normal = Callable[..., Tensor]


def test_simulated_maps_have_sum_one() -> None:
    for coils in [1, 2, 3, 8, 32]:
        maps = simulated_maps(coils, (24, 17))
        assert maps.shape == (1, coils, 24, 17)
        torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(1, 24, 17, dtype=torch.float64))


@pytest.mark.parametrize("coils", [2, 3, 8])
def test_simulated_maps_are_smooth_and_all_different(coils: int) -> None:
    maps = simulated_maps(coils, (64, 64))[0]
    for axis in (1, 2):
        assert maps.diff(dim=axis).abs().max() < 0.2  # of at most 1, from one pixel to the next
    assert torch.linalg.matrix_rank(maps.flatten(1), rtol=1e-2) == coils


def test_each_coil_sees_its_own_side() -> None:
    maps = simulated_maps(4, (33, 33))[0].abs()
    right, bottom, left, top = ((16, 32), (32, 16), (16, 0), (0, 16))
    for coil, (row, column) in enumerate((right, bottom, left, top)):
        assert maps[:, row, column].argmax() == coil


def test_simulated_maps_obey_biot_and_savart() -> None:
    """Long wires, their field summed over short pieces: the maps are the same up to the scale of each pixel."""
    coils, size = 3, (5, 6)
    half = 3.0
    z = np.linspace(-400, 400, 80_001)
    fields = np.zeros((coils, *size), complex)
    for coil in range(coils):
        for side in (1, -1):
            angle = 2 * np.pi * coil / coils + side * np.pi / (coils + 1)
            wire = RADIUS * np.array([np.cos(angle), np.sin(angle)])
            for row in range(size[0]):
                for column in range(size[1]):
                    dx, dy = (column - 2.5) / half - wire[0], (row - 2.0) / half - wire[1]
                    # Current along z: dl x r = (-dy, dx, 0) dz.
                    strength = np.trapezoid((dx**2 + dy**2 + z**2) ** -1.5, z)
                    fields[coil, row, column] += side * (-dy - 1j * dx) * strength
    fields /= np.sqrt((np.abs(fields) ** 2).sum(0))
    maps = simulated_maps(coils, size)[0].numpy()
    turn = maps[0, 0, 0] / fields[0, 0, 0]  # a phase of no meaning, common to all
    np.testing.assert_allclose(maps, turn * fields, atol=1e-4)


@pytest.mark.parametrize("cls", [MulticoilMRI, RadialMRI])
def test_maps_from_a_file(cls: type[MulticoilMRI] | type[RadialMRI], tmp_path: Path, normal: Normal) -> None:
    maps, x = normal(3, 8, 8, dtype=torch.complex64), normal(2, 1, 8, 8)
    np.save(tmp_path / "maps.npy", maps.numpy())
    operator = cls(maps=tmp_path / "maps.npy")
    assert operator.coils == 3
    assert torch.equal(operator(x), cls(maps=maps)(x))
    torch.testing.assert_close(operator.coil_images(x), maps * x, check_dtype=False)


def test_bad_coils() -> None:
    for options, message in [
        ({"coils": 0}, "coils must be an integer >= 1, got 0"),
        ({"coils": 2, "maps": torch.ones(2, 8, 8)}, "give coils, to simulate their maps, or maps, got both"),
        ({"maps": torch.ones(8, 8)}, r"maps must be \(coils, H, W\) .* got 8x8"),
        ({"maps": torch.full((2, 8, 8), torch.nan)}, "maps must be finite, got 128 NaN or infinite value"),
        ({"maps": "no_such.npy"}, "maps: no such file: no_such.npy"),
    ]:
        for cls in [MulticoilMRI, RadialMRI]:
            with pytest.raises(ValueError, match=message):
                cls(**options)


def test_maps_of_another_size() -> None:
    operator = MulticoilMRI(maps=torch.ones(2, 8, 8))
    message = "the sensitivity maps are 8x8 pixels, the image 8x9"
    assert message in str(operator.mismatch((1, 8, 9)))
    with pytest.raises(ValueError, match=message):
        operator(torch.ones(1, 1, 8, 9))
