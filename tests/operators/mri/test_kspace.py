"""Sampling masks, the centred transform, and what is said about bad ones."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.operators import MRI, MulticoilMRI
from invdiff.operators.mri.kspace import draw_mask, from_kspace, negated, to_kspace

Normal = Callable[..., Tensor]
LINES = ("random", "equispaced", "gaussian")


def lines_of(pattern: str, width: int, *, acceleration: float, center_fraction: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = draw_mask((5, width), acceleration, center_fraction, pattern, generator)
    assert mask.shape == (1, 1, 5, width)
    assert (mask == mask[..., :1, :]).all()
    return mask[0, 0, 0]


# -- transform ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (4, 9)])
def test_transform_is_the_sum_about_the_middle(size: tuple[int, int], normal: Normal) -> None:
    """Even and odd sizes: exp(-2 pi i k p / n), k and p from the middle n // 2."""
    x = normal(*size, dtype=torch.complex128)
    factors = []
    for n in size:
        place = torch.arange(n, dtype=torch.float64) - n // 2
        factors.append(torch.exp(-2j * math.pi * place[:, None] * place / n) / math.sqrt(n))
    torch.testing.assert_close(to_kspace(x), factors[0] @ x @ factors[1].mT)
    torch.testing.assert_close(from_kspace(to_kspace(x)), x)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (4, 9)])
def test_negated_is_the_conjugate_of_a_real_image(size: tuple[int, int], normal: Normal) -> None:
    y = to_kspace(normal(*size))
    torch.testing.assert_close(negated(y), y.conj())


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", LINES)
def test_the_budget_is_exact(pattern: str) -> None:
    """InverseBench's counts; their equispaced masks overshoot. 0.29 * 100 is below 29 in floating point."""
    for width, acceleration, center_fraction, lines, centre in [
        (320, 4, 0.08, 80, 25),
        (320, 8, 0.04, 40, 12),
        (101, 3.3, 0.1, 30, 10),
        (16, 2, 0, 8, 0),
        (100, 2, 0.29, 50, 29),
    ]:
        mask = lines_of(pattern, width, acceleration=acceleration, center_fraction=center_fraction)
        assert mask.sum() == lines
        first = width // 2 - centre // 2
        assert mask[first : first + centre].all()


@pytest.mark.parametrize("pattern", LINES)
def test_another_seed_is_another_mask(pattern: str) -> None:
    first, again, other = (lines_of(pattern, 64, acceleration=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_equispaced_lines_are_equally_spaced() -> None:
    places = lines_of("equispaced", 60, acceleration=4).nonzero()[:, 0]
    assert (places.diff() == 4).all()
    # 9 of the 30 lines are the centre, 41 to 49; the others lie every 81 / 21 lines.
    places = lines_of("equispaced", 90, acceleration=3, center_fraction=0.1).nonzero()[:, 0]
    for side in (places[places < 41], places[places > 49]):
        assert set(side.diff().tolist()) == {3, 4}


def frequencies(pattern: str) -> Tensor:
    masks = [lines_of(pattern, 100, acceleration=4, seed=seed).double() for seed in range(400)]
    return torch.stack(masks).mean(0)


def test_gaussian_lines_are_denser_near_the_centre() -> None:
    often = frequencies("gaussian")
    assert often[45:56].mean() > 0.45
    assert 0.05 < often[[*range(20), *range(80, 100)]].mean() < 0.2


def test_random_lines_are_everywhere_as_dense() -> None:
    often = frequencies("random")
    assert (often - 0.25).abs().max() < 0.1


def test_everything_is_sampled_at_acceleration_one() -> None:
    for pattern in (*LINES, "radial"):
        assert draw_mask((7, 10), 1.0, 0.1, pattern, torch.Generator().manual_seed(0)).all()


def test_at_least_one_line_is_sampled() -> None:
    assert lines_of("random", 3, acceleration=8).sum() == 1


# -- spokes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (33, 48)])
def test_spokes_meet_the_budget_to_within_one(size: tuple[int, int]) -> None:
    mask = draw_mask(size, 4, 0.1, "radial", torch.Generator().manual_seed(0))[0, 0]
    budget = mask.numel() // 4
    assert budget - 2 * max(size) < mask.sum() <= budget
    assert mask[size[0] // 2, size[1] // 2]
    y, x = (torch.arange(n) - n // 2 for n in size)
    assert mask[(2 * y[:, None] / size[0]) ** 2 + (2 * x / size[1]) ** 2 < 0.01].all()


def test_spokes_are_lines_through_the_centre() -> None:
    mask = draw_mask((65, 65), 20, 0, "radial", torch.Generator().manual_seed(3))[0, 0]
    assert torch.equal(mask, mask.flip(0, 1))  # odd: every spoke goes as far on either side
    radius = (torch.arange(65)[:, None] - 32).square() + (torch.arange(65) - 32).square()
    inner, outer = (mask[(radius > a**2) & (radius <= b**2)].double().mean() for a, b in ((2, 8), (24, 32)))
    assert inner > 3 * outer


# -- given masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lines", "positions", "batch", "deepinv", "npy", "npz"])
def test_a_mask_in_every_form(form: str, tmp_path: Path, normal: Normal) -> None:
    lines = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    mask: object = lines
    if form in ("positions", "batch", "deepinv"):
        axes = {"positions": 1, "batch": 2, "deepinv": 3}[form]
        mask = lines.expand(*[1] * (axes - 1), 6, 8).float()
    if form == "npy":
        np.save(tmp_path / "mask.npy", lines.numpy())
        mask = tmp_path / "mask.npy"
    if form == "npz":
        np.savez(tmp_path / "mask.npz", mask=lines.expand(6, 8).numpy())
        mask = str(tmp_path / "mask.npz")
    x = normal(2, 1, 6, 8)
    torch.testing.assert_close(MRI(mask=mask)(x), lines * to_kspace(x))  # type: ignore[arg-type]


def test_a_mask_per_image() -> None:
    masks = MRI.random((1, 8, 16), acceleration=4, seed=2, images=3).mask
    assert masks is not None
    assert masks.shape == (3, 1, 8, 16)
    assert not torch.equal(masks[0], masks[1])
    assert (masks.flatten(1).sum(1) == 32).all()
    assert MRI.random((2, 8, 16), seed=2).complex_image


def test_a_mask_is_drawn_once(monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    operator, x = MRI(), normal(1, 1, 8, 8)
    y = operator(x)
    monkeypatch.setattr("invdiff.operators.mri.kspace.draw_mask", lambda *_: pytest.fail("drawn again"))
    torch.testing.assert_close(operator(x), y)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_sampling() -> None:
    for options, message in [
        ({"acceleration": 0.5}, "acceleration must be >= 1, got 0.5"),
        ({"acceleration": float("nan")}, "acceleration must be >= 1, got nan"),
        ({"center_fraction": -0.1}, r"center_fraction must be a fraction of k-space in \[0, 1\], got -0.1"),
        ({"center_fraction": 1.5}, r"center_fraction must be a fraction of k-space in \[0, 1\], got 1.5"),
        ({"pattern": "spiral"}, "pattern must be one of random, equispaced, gaussian, radial, got 'spiral'"),
        ({"acceleration": 2, "mask": torch.ones(4)}, "give acceleration, to draw a mask, or mask, got both"),
        ({"mask": torch.zeros(4)}, "mask must sample at least one position"),
        ({"mask": torch.ones(2, 2, 4, 4)}, r"mask must be \(W,\), .* got 2x2x4x4"),
        ({"mask": "no_such.npy"}, "mask: no such file: no_such.npy"),
    ]:
        for cls in [MRI, MulticoilMRI]:
            with pytest.raises(ValueError, match=message):
                cls(**options)


def test_random_checks_too() -> None:
    with pytest.raises(ValueError, match="acceleration must be >= 1"):
        MRI.random((1, 8, 8), acceleration=0.5, seed=0)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_broken_mask_file(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"mask: the NumPy file cannot be read: .*mask.{suffix}"):
        MRI(mask=path)


def test_a_centre_above_the_budget() -> None:
    operator = MRI(acceleration=4, center_fraction=0.5)
    message = "center_fraction=0.5 is 32 of 64 lines, but acceleration=4 allows 16; lower one of them"
    assert message in str(operator.mismatch((1, 8, 64)))
    with pytest.raises(ValueError, match=message):
        operator(torch.ones(1, 1, 8, 64))
    spokes = MRI(acceleration=10, center_fraction=0.9, pattern="radial")
    assert "of 256 positions, but acceleration=10 allows 25" in str(spokes.mismatch((1, 16, 16)))


def test_refuses_images_that_cannot_be_measured() -> None:
    assert "set complex_image=true" in str(MRI().mismatch((2, 16, 16)))
    assert "1 channel, got 3" in str(MRI().mismatch((3, 16, 16)))
    assert "2 channels, real and imaginary part, got 1" in str(MRI(complex_image=True).mismatch((1, 16, 16)))
    assert "the mask is 8x8, the image 8x16" in str(MRI(mask=torch.ones(8, 8)).mismatch((1, 8, 16)))
    assert "the mask is 8 lines, the image 16x16" in str(MRI(mask=torch.ones(8)).mismatch((1, 16, 16)))
