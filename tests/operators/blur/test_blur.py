"""Convolution with a given kernel against scipy and deepinv, in every boundary rule, and the files it is read from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from deepinv.physics import Blur as DeepinvBlur
from deepinv.physics import BlurFFT
from PIL import Image
from scipy.ndimage import convolve
from torch import Tensor, nn

from invdiff.operators import Blur, CircularBlur
from invdiff.operators.blur.blur import fast_length

Normal = Callable[..., Tensor]
SCIPY = {"reflect": "mirror", "symmetric": "reflect", "replicate": "nearest", "circular": "wrap", "zero": "constant"}
DEEPINV = {"reflect": "reflect", "replicate": "replicate", "circular": "circular", "zero": "constant"}


@pytest.mark.parametrize("boundary", SCIPY)
def test_every_boundary_is_scipys(boundary: str, normal: Normal) -> None:
    """Even kernels and kernels larger than the image too, where a mirror is met more than once."""
    for taps in [(5, 5), (4, 6), (1, 3), (29, 2), (2, 61)]:
        x, kernel = normal(2, 3, 12, 9), normal(*taps, seed=1).float()
        wanted = convolve(x.numpy(), kernel.double().numpy()[None, None], mode=SCIPY[boundary])
        torch.testing.assert_close(Blur(kernel, boundary=boundary)(x), torch.from_numpy(wanted), rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", SCIPY)
def test_an_image_of_one_row(boundary: str, normal: Normal) -> None:
    x, kernel = normal(1, 1, 1, 4), normal(5, 7, seed=1).float()
    wanted = convolve(x.numpy(), kernel.double().numpy()[None, None], mode=SCIPY[boundary])
    torch.testing.assert_close(Blur(kernel, boundary=boundary)(x), torch.from_numpy(wanted), rtol=0, atol=1e-11)


@pytest.mark.parametrize("boundary", DEEPINV)
def test_agrees_with_deepinv(boundary: str, normal: Normal) -> None:
    for taps in [(5, 5), (4, 6)]:
        x, kernel = normal(2, 3, 12, 17).float(), normal(2, 1, *taps, seed=1).float() / 5
        ours, theirs = Blur(kernel, boundary=boundary), DeepinvBlur(filter=kernel, padding=DEEPINV[boundary])
        torch.testing.assert_close(ours(x), theirs.A(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.adjoint(x), theirs.A_adjoint(x), rtol=0, atol=1e-5)


def test_circular_agrees_with_deepinv(normal: Normal) -> None:
    x, kernel = normal(2, 3, 12, 17).float(), normal(2, 1, 5, 4, seed=1).float() / 5
    ours, theirs = CircularBlur(kernel), BlurFFT(img_size=(3, 12, 17), filter=kernel)
    torch.testing.assert_close(ours(x), theirs.A(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.adjoint(x), theirs.A_adjoint(x), rtol=0, atol=1e-5)


def test_flip_is_the_papers_correlation(normal: Normal) -> None:
    """DPS and DAPS: reflection, then torch's Conv2d, which does not turn the kernel."""
    x, kernel = normal(1, 1, 9, 9), normal(5, 5, seed=1).float()
    wanted = nn.functional.conv2d(nn.ReflectionPad2d(2)(x), kernel.double()[None, None])
    torch.testing.assert_close(Blur(kernel, flip=True)(x), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(CircularBlur(kernel, flip=True)(x), CircularBlur(kernel.flip(0, 1))(x))


def test_adjoint_is_differentiable_twice(normal: Normal) -> None:
    operator = Blur(normal(5, 4).float())
    assert torch.autograd.gradgradcheck(operator, normal(1, 1, 4, 3).requires_grad_())
    assert torch.autograd.gradcheck(operator.adjoint, normal(1, 1, 4, 3).requires_grad_())


# -- periodic images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 6), (5, 9), (1, 4)])
def test_white_noise_stays_white(size: tuple[int, int]) -> None:
    """The matrix of V is square and orthonormal: deepinv's half spectrum has variance 1/2, 1 and 0 instead."""
    n = size[0] * size[1]
    v = CircularBlur(torch.ones(3, 3)).v(torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)).reshape(n, n)
    torch.testing.assert_close(v @ v.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("taps", [(2, 2), (4, 4), (3, 3)])
def test_frequencies_that_are_wiped_out(taps: tuple[int, int], normal: Normal, dense: Callable[..., Tensor]) -> None:
    """A box wipes out whole rows of frequencies; pinv leaves them black and misses nothing else."""
    operator, y = CircularBlur(torch.ones(taps) / 16), normal(1, 1, 8, 12)
    a = dense(operator, (1, 8, 12))
    wanted = torch.linalg.pinv(a, rtol=1e-3) @ y.flatten()
    torch.testing.assert_close(operator.pinv(y).flatten(), wanted, rtol=0, atol=1e-9)


def test_circular_boundary_solves_in_closed_form(normal: Normal) -> None:
    """`Blur` too: the same numbers as the operator that has the decomposition."""
    kernel, x = normal(3, 4, 3).float(), normal(3, 1, 9, 8)
    one, other = Blur(kernel, boundary="circular"), CircularBlur(kernel)
    assert torch.equal(one.solve(x, 0.1), other.solve(x, 0.1))
    assert torch.equal(one.pinv(x), other.pinv(x))


def test_fast_length() -> None:
    assert [fast_length(n) for n in (1, 7, 11, 31, 316, 321)] == [1, 8, 12, 32, 320, 324]


# -- where a kernel comes from -----------------------------------------------------------------------------------------


def test_kernel_files(tmp_path: Path, normal: Normal) -> None:
    kernel = normal(3, 5, 4).float()
    np.save(tmp_path / "k.npy", kernel.numpy())
    torch.save(kernel, tmp_path / "k.pt")
    for name in ("k.npy", "k.pt"):
        assert torch.equal(Blur(tmp_path / name).kernel, kernel[:, None])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_as_kernel_sums_to_one(dtype: type, tmp_path: Path) -> None:
    grey = np.array([[0, 10, 20], [200, 20, 0]], dtype=dtype) * (dtype(1) if dtype is np.uint8 else dtype(300))
    Image.fromarray(grey).save(tmp_path / "k.png")
    kernel = CircularBlur(str(tmp_path / "k.png")).kernel[0, 0]
    torch.testing.assert_close(kernel, torch.from_numpy(grey / grey.sum()).float())


@pytest.mark.parametrize("cls", [Blur, CircularBlur])
def test_without_a_kernel(cls: type[Blur]) -> None:
    with pytest.raises(ValueError, match=r"kernel is required; give operator.kernel=kernel.npy"):
        cls()


def test_bad_kernel() -> None:
    for kernel, message in [
        (torch.ones(3), "got 3"),
        (torch.ones(2, 3, 4, 4), "got 2x3x4x4"),
        (torch.ones(0, 3), "got 0x3"),
        (torch.zeros(3, 3), "a tap other than 0"),
        (torch.full((3, 3), torch.nan), "NaN"),
        (torch.ones(3, 3, dtype=torch.complex64), "must be real"),
        ("nowhere.npy", "kernel: no such file: nowhere.npy"),
    ]:
        with pytest.raises(ValueError, match=f"blur: .*{message}"):
            Blur(kernel)


def test_a_stack_of_kernels_is_one_per_image(tmp_path: Path) -> None:
    """Each page of a TIFF scaled to sum one; pages are no colours, whose mean is taken."""
    pages = np.random.default_rng(0).integers(1, 256, (3, 5, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "k.tif", pages, photometric="minisblack")
    wanted = torch.from_numpy(pages / pages.sum((1, 2), keepdims=True)).float()[:, None]
    torch.testing.assert_close(Blur(tmp_path / "k.tif").kernel, wanted)
    Image.fromarray(np.moveaxis(pages, 0, -1)).save(tmp_path / "colour.png")
    grey = torch.from_numpy(pages.mean(0) / pages.mean(0).sum()).float()[None, None]
    torch.testing.assert_close(Blur(tmp_path / "colour.png").kernel, grey)


@pytest.mark.parametrize("name", ["k.npy", "k.pt", "k.png"])
def test_broken_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("no kernel")
    with pytest.raises(ValueError, match=r"kernel: (the .* file cannot be read|not an image)"):
        Blur(tmp_path / name)


def test_a_file_with_something_else(tmp_path: Path) -> None:
    torch.save([torch.ones(3, 3)], tmp_path / "k.pt")
    with pytest.raises(ValueError, match="it holds a list, not a tensor"):
        Blur(tmp_path / "k.pt")


def test_bad_boundary() -> None:
    with pytest.raises(ValueError, match=r"boundary must be one of reflect, .*, got 'mirror'"):
        Blur(torch.ones(3, 3), boundary="mirror")
