"""Bayer mosaics: which colour where, and the bilinear baseline against its textbook formulas."""

from collections.abc import Callable

import pytest
import torch
from deepinv.physics import Demosaicing as DeepinvDemosaicing
from torch import Tensor

from invdiff.operators import Demosaicing
from invdiff.operators.pixels.demosaicing import PATTERNS

Normal = Callable[..., Tensor]


def test_layout() -> None:
    """An image that is 1 in red, 2 in green and 3 in blue spells the pattern out."""
    for size in [(4, 4), (5, 3)]:
        for pattern in PATTERNS:
            x = torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(1, 3, *size)
            y = Demosaicing(pattern=pattern)(x)
            assert y.shape == (1, 1, *size)
            for i in range(size[0]):
                for j in range(size[1]):
                    assert "-RGB"[int(y[0, 0, i, j])] == pattern[2 * (i % 2) + j % 2]


def test_against_dense_algebra(normal: Normal, dense: Callable[..., Tensor]) -> None:
    for size in [(2, 2), (3, 4)]:
        for pattern in PATTERNS:
            operator, shape = Demosaicing(pattern=pattern).double(), (3, *size)
            a = dense(operator, shape)
            assert torch.equal(a @ a.T, torch.eye(len(a), dtype=a.dtype))  # each pixel sees one colour of its own
            x, y = normal(2, *shape, seed=1), normal(2, 1, *size, seed=2)
            assert torch.equal(operator.adjoint(y).flatten(1), y.flatten(1) @ a)
            assert torch.equal(operator.pinv(y), operator.adjoint(y))
            rho = torch.tensor([0.1, 3.0], dtype=torch.float64)
            for row, level in enumerate(rho):
                wanted = torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1], dtype=a.dtype), x[row].flatten())
                torch.testing.assert_close(operator.solve(x, rho)[row].flatten(), wanted)
            s = operator.singular_values(x).flatten().sort(descending=True).values
            torch.testing.assert_close(s[: len(a)], torch.linalg.svdvals(a))
            assert (s[len(a) :] == 0).all()


def test_adjoint(normal: Normal) -> None:
    operator, x, y = Demosaicing(), normal(3, 3, 7, 10), normal(3, 1, 7, 10, seed=1)
    torch.testing.assert_close((operator(x) * y).sum(), (x * operator.adjoint(y)).sum(), rtol=1e-12, atol=1e-12)


def test_agrees_with_deepinv(normal: Normal) -> None:
    """deepinv has BGGR only, and keeps three channels with zeros: their sum is the mosaic."""
    x = normal(2, 3, 6, 7, dtype=torch.float32)
    operator, physics = Demosaicing(pattern="BGGR"), DeepinvDemosaicing(img_size=(3, 6, 7))
    y = operator(x)
    torch.testing.assert_close(y, physics.A(x).sum(1, keepdim=True))
    torch.testing.assert_close(operator.adjoint(y), physics.A_adjoint(physics.A(x)))


# -- first guess -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_first_guess_is_bilinear(pattern: str, normal: Normal) -> None:
    """Away from the edges: the mean of the two or four nearest pixels of the colour, written out."""
    y = normal(1, 1, 6, 6)
    guess = Demosaicing(pattern=pattern).first_guess(y)[0]
    m = y[0, 0]
    for i in range(1, 5):
        for j in range(1, 5):
            across, down = (m[i, j - 1] + m[i, j + 1]) / 2, (m[i - 1, j] + m[i + 1, j]) / 2
            corners = (m[i - 1, j - 1] + m[i - 1, j + 1] + m[i + 1, j - 1] + m[i + 1, j + 1]) / 4
            own = pattern[2 * (i % 2) + j % 2]
            beside = pattern[2 * (i % 2) + (j + 1) % 2]
            if own == "G":
                wanted = {"G": m[i, j], beside: across, "RB".replace(beside, ""): down}
            else:
                wanted = {own: m[i, j], "G": (across + down) / 2, "RB".replace(own, ""): corners}
            for channel, colour in enumerate("RGB"):
                torch.testing.assert_close(guess[channel, i, j], wanted[colour])


def test_first_guess_up_to_the_edges(normal: Normal) -> None:
    """One colour stays that colour everywhere, and what was measured stays as it was."""
    for size in [(2, 2), (2, 5), (5, 4)]:
        for pattern in PATTERNS:
            operator = Demosaicing(pattern=pattern)
            colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[:, None, None].expand(1, 3, *size)
            torch.testing.assert_close(operator.first_guess(operator(colour)), colour)
            y = normal(2, 1, *size)
            assert torch.equal(operator(operator.first_guess(y)), y)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_unknown_pattern() -> None:
    with pytest.raises(ValueError, match="pattern must be one of RGGB, GRBG, GBRG, BGGR, got 'RGBG'"):
        Demosaicing(pattern="RGBG")


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (3, 1, 8), (3, 8, 1)])
def test_refuses(shape: tuple[int, int, int], normal: Normal) -> None:
    """No RGB, or so small that a colour is missing altogether."""
    words = f"an image must be RGB, 3xHxW, with H and W >= 2, got {'x'.join(map(str, shape))}"
    assert words in str(Demosaicing().mismatch(shape))
    with pytest.raises(ValueError, match=words):
        Demosaicing()(normal(1, *shape))


def test_three_channels_are_no_mosaic() -> None:
    with pytest.raises(ValueError, match="a measurement must be a mosaic, 1xHxW, got 3x8x8"):
        Demosaicing().image_shape((3, 8, 8))
