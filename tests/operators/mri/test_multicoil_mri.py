"""Multi-coil MRI against deepinv, and SENSE."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import MultiCoilMRI as DeepinvMultiCoilMRI
from torch import Tensor

from invdiff.operators import MRI, LinearOperator, MulticoilMRI
from invdiff.operators.mri import multicoil_mri as module

Normal = Callable[..., Tensor]


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_agrees_with_deepinv(size: tuple[int, int], normal: Normal) -> None:
    maps = normal(2, 3, *size, dtype=torch.complex64)
    mask = MRI.random((2, *size), acceleration=2, seed=0, images=2).mask
    operator = MulticoilMRI(maps=maps, mask=mask, complex_image=True)
    theirs = DeepinvMultiCoilMRI(mask=mask.float(), coil_maps=maps, img_size=(2, *size))
    x = normal(2, 2, *size, seed=1, dtype=torch.float32)
    y = operator(x)
    pairs = torch.stack([y.real, y.imag], 1)
    torch.testing.assert_close(pairs, theirs.A(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(operator.adjoint(y), theirs.A_adjoint(pairs), rtol=0, atol=1e-5)


def test_one_coil_is_mri(normal: Normal) -> None:
    x = normal(2, 1, 8, 9)
    many, one = MulticoilMRI(coils=1, acceleration=2), MRI(acceleration=2)
    y = many(x)
    torch.testing.assert_close(y, one(x))
    torch.testing.assert_close(many.pinv(y), one.pinv(y))
    torch.testing.assert_close(many.solve(x, 0.1), one.solve(x, 0.1))


@pytest.mark.parametrize("channels", [1, 2])
def test_coils_unfold_what_lines_alias(channels: int, normal: Normal) -> None:
    """Every second line, four coils, no noise: SENSE is exact where a single coil is not."""
    x = normal(2, channels, 12, 12)
    operator = MulticoilMRI(
        coils=4, acceleration=2, center_fraction=0, pattern="equispaced", complex_image=channels == 2
    )
    y = operator(x)
    torch.testing.assert_close(operator.pinv(y), x, rtol=1e-6, atol=1e-6)
    assert (operator.zero_filled(y) - x).norm() > 0.3 * x.norm()


@pytest.mark.parametrize("channels", [1, 2])
def test_rows_and_iterations_give_the_same(channels: int, monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    operator = MulticoilMRI.random((channels, 8, 9), coils=4, acceleration=1.5, seed=1, images=2)
    x = normal(2, channels, 8, 9)
    y = normal(2, 4, 8, 9, seed=1, dtype=torch.complex128)
    exact = operator.solve(x, 0.1), operator.pinv(y), operator.first_guess(y)
    monkeypatch.setattr(module, "ROOM", 0)
    iterated = operator.solve(x, 0.1), operator.pinv(y), operator.first_guess(y)
    for one, other in zip(exact, iterated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_decompositions_are_kept_for_selections(monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    operator = MulticoilMRI.random((1, 8, 8), acceleration=2, seed=1, images=3)
    x = normal(3, 1, 8, 8)
    whole = operator.solve(x, 0.1)
    monkeypatch.setattr(MulticoilMRI, "_decompose", lambda *_: pytest.fail("decomposed again"))
    part = operator.select(torch.tensor([2, 2, 0]))
    torch.testing.assert_close(part.solve(x[[2, 2, 0]], 0.1), whole[[2, 2, 0]])


def test_decompositions_do_not_outgrow_their_room(monkeypatch: pytest.MonkeyPatch, normal: Normal) -> None:
    operator = MulticoilMRI.random((1, 8, 8), acceleration=2, seed=1, images=3)
    x = normal(3, 1, 8, 8)
    whole = operator.solve(x, 0.1)
    operator._rows.clear()
    monkeypatch.setattr(module, "ROOM", 2 * 8**3)
    for i in (0, 1, 2, 0):
        torch.testing.assert_close(operator.select(torch.tensor([i])).solve(x[i : i + 1], 0.1), whole[i : i + 1])
        assert len(operator._rows) <= 2


def test_the_scale_of_the_maps_does_not_matter(normal: Normal) -> None:
    """As maps come from a calibration: of any scale, zero outside the body."""
    maps = 7 * normal(4, 8, 8, dtype=torch.complex64)
    maps[:, :, :2] = 0
    x = normal(1, 2, 8, 8)
    x[..., :2] = 0
    for scale in (1.0, 1e-3):
        operator = MulticoilMRI(maps=scale * maps, acceleration=1, center_fraction=0, complex_image=True)
        y = operator(x)
        torch.testing.assert_close(operator.pinv(y), x)
        torch.testing.assert_close(operator.zero_filled(y), x)
        wanted = LinearOperator.solve(operator, x, 0.1 * scale**2)
        torch.testing.assert_close(operator.solve(x, 0.1 * scale**2), wanted)
        assert (operator.first_guess(y) - x).norm() < 0.1 * x.norm()


def test_first_guess_withstands_noise(normal: Normal) -> None:
    """The pseudo-inverse of gaps between random lines blows up noise; the first guess beats it and zero-filling."""
    operator = MulticoilMRI(coils=6, acceleration=3)
    x = torch.ones(1, 1, 48, 48)
    x[..., 10:30, 14:40] = 0.3
    y = operator(x) + 0.02 * normal(1, 6, 48, 48, dtype=torch.complex64)
    errors = {name: (getattr(operator, name)(y) - x).norm() for name in ("first_guess", "pinv", "zero_filled")}
    assert errors["first_guess"] < 0.8 * min(errors["pinv"], errors["zero_filled"])


def test_a_mask_and_maps_for_different_batches() -> None:
    with pytest.raises(ValueError, match="mask and maps must be for equally many images, got 2 and 3"):
        MulticoilMRI(mask=torch.ones(2, 4, 4), maps=torch.ones(3, 2, 4, 4))
