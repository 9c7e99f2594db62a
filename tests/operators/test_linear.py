"""What every linear operator must satisfy, against dense linear algebra in float64."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from deepinv.physics import Blur as DeepinvBlur
from deepinv.physics import Inpainting as DeepinvInpainting
from torch import Tensor

from invdiff.operators import (
    Blur,
    CircularBlur,
    CompressedSensing,
    Denoising,
    GaussianBlur,
    Inpainting,
    LinearBlackBox,
    LinearCallableOperator,
    LinearOperator,
    MatrixOperator,
    SpaceVaryingBlur,
    SpectralOperator,
    SuperResolution,
    as_operator,
)
from invdiff.operators.core.separable import BOUNDARIES, SeparableOperator

Shape = tuple[int, ...]
Normal = Callable[..., Tensor]
Build = Callable[[Shape, int, Path], LinearOperator]


# -- the operators -----------------------------------------------------------------------------------------------------
# Functions at module level, so that operators made of them can be pickled.


def differences(x: Tensor) -> Tensor:
    return x.diff(dim=-1)


def differences_adjoint(y: Tensor) -> Tensor:
    return torch.nn.functional.pad(y, (1, 0)) - torch.nn.functional.pad(y, (0, 1))


def half_fourier(x: Tensor) -> Tensor:
    return torch.fft.rfft2(x, norm="ortho")[..., ::2, :]


def numpy_differences(image: np.ndarray) -> np.ndarray:
    return np.diff(image)


def numpy_differences_adjoint(y: np.ndarray) -> np.ndarray:
    return np.pad(y, ((0, 0), (0, 0), (1, 0))) - np.pad(y, ((0, 0), (0, 0), (0, 1)))


def numpy_inverse_fourier(y: np.ndarray) -> np.ndarray:
    return np.fft.ifft2(y, norm="forward")


def random_matrix(shape: Shape, seed: int = 0) -> np.ndarray:
    """Half as many measurements as pixels, half of the entries zero, exact in single precision."""
    n = int(np.prod(shape))
    draws = np.random.default_rng(seed).integers(-4, 5, (max(1, n // 2), n))
    return (draws * (draws % 2)).astype(np.float64) / n**0.5 // 2**-12 * 2**-12


def random_bits(*shape: int) -> Tensor:
    bits = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.5
    bits[..., 0, 0] = True
    return bits


def mask_file(shape: Shape, folder: Path) -> Path:
    np.save(folder / "mask.npy", random_bits(*shape[-2:]).numpy())
    return folder / "mask.npy"


def deepinv_blur(images: int) -> LinearOperator:
    taps = torch.randn(images, 1, 5, 3, generator=torch.Generator().manual_seed(8))
    taps[..., 2, 1] += 12  # well conditioned, so that conjugate gradients are quick
    return as_operator(DeepinvBlur(filter=taps, padding="reflect"))


def sharp_taps(*shape: int) -> Tensor:
    """(B, 1, h, w), lopsided, and well conditioned under every boundary rule."""
    taps = torch.randn(shape[0], 1, *shape[1:], generator=torch.Generator().manual_seed(9))
    taps[..., shape[1] // 2, shape[2] // 2] += taps.abs().sum((-2, -1))
    return taps


def deepinv_masks(shape: Shape, images: int) -> LinearOperator:
    return as_operator(DeepinvInpainting(img_size=shape, mask=random_bits(images, 1, *shape[-2:]).float()))


ANY_SIZE: dict[str, Build] = {
    "denoising": lambda shape, images, folder: Denoising(),
    "inpainting-keep": lambda shape, images, folder: Inpainting(keep=0.4, seed=3),
    "inpainting-box": lambda shape, images, folder: Inpainting(box=0.5),
    "inpainting-mask": lambda shape, images, folder: Inpainting(mask=random_bits(*shape[-2:])),
    "inpainting-per-image": lambda shape, images, folder: Inpainting.random(shape, keep=0.3, seed=1, images=images),
    "inpainting-file": lambda shape, images, folder: Inpainting(mask=mask_file(shape, folder)),
    "blur-per-image": lambda shape, images, folder: GaussianBlur(std=torch.linspace(0.5, 1.1, images), kernel_size=7),
    "callable": lambda shape, images, folder: LinearCallableOperator(differences, image_shape=shape),
    "callable-adjoint": lambda shape, images, folder: LinearCallableOperator(
        differences, image_shape=shape, adjoint=differences_adjoint
    ),
    "callable-complex": lambda shape, images, folder: LinearCallableOperator(half_fourier, image_shape=shape),
    "deepinv": lambda shape, images, folder: deepinv_blur(1),
    "deepinv-blur-per-image": lambda shape, images, folder: deepinv_blur(images),
    "deepinv-masks-per-image": lambda shape, images, folder: deepinv_masks(shape, images),
}
ANY_SIZE |= {
    "black-box": lambda shape, images, folder: LinearBlackBox(
        numpy_differences, numpy_differences_adjoint, image_shape=shape
    ),
    "black-box-batched-complex": lambda shape, images, folder: LinearBlackBox(
        np.fft.fft2, numpy_inverse_fourier, image_shape=shape, batched=True, max_batch=2
    ),
    "matrix-dense": lambda shape, images, folder: MatrixOperator(random_matrix(shape), image_shape=shape),
    "matrix-sparse": lambda shape, images, folder: MatrixOperator(
        scipy.sparse.csr_array(random_matrix(shape)), image_shape=shape, column_major=True
    ),
    "matrix-complex": lambda shape, images, folder: MatrixOperator(
        random_matrix(shape) + 1j * random_matrix(shape, seed=1), image_shape=shape
    ),
    "matrix-sparse-complex-channelwise": lambda shape, images, folder: MatrixOperator(
        scipy.sparse.coo_array(random_matrix(shape[1:]) * (1 + 2j)), image_shape=shape
    ),
    "scipy-operator": lambda shape, images, folder: as_operator(
        scipy.sparse.linalg.aslinearoperator(random_matrix(shape)), image_shape=shape
    ),
}
ANY_SIZE |= {
    f"blur-{boundary}": lambda shape, images, folder, boundary=boundary: GaussianBlur(
        std=0.8, kernel_size=9, boundary=boundary
    )
    for boundary in BOUNDARIES
}
ANY_SIZE |= {
    "inpainting-margin": lambda shape, images, folder: Inpainting(box=1, margin=1, seed=2),
    "inpainting-lines": lambda shape, images, folder: Inpainting(lines=0.5, seed=2),
    "inpainting-text": lambda shape, images, folder: Inpainting(text="l"),
    "inpainting-lines-per-image": lambda shape, images, folder: Inpainting.random(
        shape, lines=0.5, axis="columns", seed=1, images=images
    ),
    "compressed-sensing": lambda shape, images, folder: CompressedSensing(image_shape=shape, ratio=0.3),
    "compressed-sensing-channelwise": lambda shape, images, folder: CompressedSensing(
        image_shape=shape, ratio=0.3, channelwise=True
    ),
}
ANY_SIZE |= {
    f"convolution-{boundary}": lambda shape, images, folder, boundary=boundary: Blur(
        sharp_taps(images, 4, 3), boundary=boundary
    )
    for boundary in BOUNDARIES
}
ANY_SIZE |= {
    "convolution-larger-than-the-image": lambda shape, images, folder: Blur(sharp_taps(1, 25, 2)),
    "circular-blur": lambda shape, images, folder: CircularBlur(sharp_taps(1, 5, 4)),
    "circular-blur-per-image": lambda shape, images, folder: CircularBlur(sharp_taps(images, 3, 25)),
    "space-varying-blur": lambda shape, images, folder: SpaceVaryingBlur(std_corner=0.6, kernel_size=5),
    "space-varying-blur-per-image": lambda shape, images, folder: SpaceVaryingBlur(
        filters=sharp_taps(2, 3, 4)[:, 0], multipliers=random_bits(images, 2, *shape[-2:]) + 0.5
    ),
}
FACTORS = (2, 4, 8)
BY_FACTOR: dict[str, tuple[Build, int]] = {
    f"super-resolution-{factor}-{kernel}": (
        lambda shape, images, folder, factor=factor, kernel=kernel: SuperResolution(factor=factor, kernel=kernel),
        factor,
    )
    for factor in FACTORS
    for kernel in ("bicubic", "average")
}
BUILDERS = {name: (build, 1) for name, build in ANY_SIZE.items()} | BY_FACTOR


class Case(NamedTuple):
    build: Build
    shape: Shape
    images: int


def cases(*prefixes: str) -> list[Any]:
    found = []
    for name, (build, factor) in BUILDERS.items():
        if not name.startswith(prefixes):
            continue
        shapes = [((1, 8, 9), 4), ((3, 7, 6), 3)] if factor == 1 else [((1, 16, 8), 4), ((3, 8, 8), 3)]
        found += [
            pytest.param(Case(build, shape, images), id=f"{name}-{'x'.join(map(str, shape))}")
            for shape, images in shapes
        ]
    return found


@pytest.fixture(params=cases(""))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def operator(case: Case, tmp_path: Path) -> LinearOperator:
    return case.build(case.shape, case.images, tmp_path).double()


@pytest.fixture
def x(case: Case, normal: Normal) -> Tensor:
    return normal(case.images, *case.shape, seed=1)


@pytest.fixture
def y(operator: LinearOperator, x: Tensor, normal: Normal) -> Tensor:
    """Not in the range of A, as noisy measurements are not."""
    like = operator(x)
    return normal(*like.shape, seed=2, dtype=like.dtype)


@pytest.fixture
def rho(case: Case) -> Tensor:
    return torch.logspace(-1, 1, case.images, dtype=torch.float64)


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BUILDERS)
def test_adjoint(
    name: str,
    seed: int,
    dtype: torch.dtype,
    tolerance: float,
    tmp_path: Path,
    normal: Normal,
    flatten: Callable[[Tensor], Tensor],
) -> None:
    """Odd and even sizes, one channel and three, one image and several: wherever an index could be off by one."""
    build, factor = BUILDERS[name]
    rng = np.random.default_rng(seed)
    low, high = (3, 21) if factor == 1 else (1, 5)
    shape = (int(rng.choice([1, 3])), *(int(n) * factor for n in rng.integers(low, high, 2)))
    images = 1 + seed
    operator = build(shape, images, tmp_path).to(dtype)
    x = normal(images, *shape, seed=seed, dtype=dtype)
    ax = operator(x)
    y = normal(*ax.shape, seed=seed + 100, dtype=ax.dtype)
    aty = operator.adjoint(y)
    assert aty.shape == x.shape
    assert aty.dtype == x.dtype
    left, right = (flatten(ax) * flatten(y)).sum(1), (x * aty).flatten(1).sum(1)
    scale = flatten(ax).norm(dim=1) * flatten(y).norm(dim=1)
    assert ((left - right).abs() <= tolerance * scale).all()


def test_linear(operator: LinearOperator, x: Tensor, case: Case, normal: Normal) -> None:
    z = normal(*x.shape, seed=5)
    torch.testing.assert_close(operator(2.5 * x - 0.5 * z), 2.5 * operator(x) - 0.5 * operator(z))
    assert (operator(torch.zeros_like(x)) == 0).all()


def test_solve(operator: LinearOperator, x: Tensor, rho: Tensor, case: Case, dense: Callable[..., Tensor]) -> None:
    """With one rho for all and with one per row; a matrix per image catches parameters given to the wrong row."""
    shared, per_row = operator.solve(x, 0.3), operator.solve(x, rho)
    for i in range(case.images):
        a = dense(operator, case.shape, i)
        for got, level in ((shared, 0.3), (per_row, rho[i])):
            wanted = torch.linalg.solve(a.T @ a + level * torch.eye(a.shape[1], dtype=a.dtype), x[i].flatten())
            assert (got[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()


def test_pinv(
    operator: LinearOperator,
    y: Tensor,
    case: Case,
    dense: Callable[..., Tensor],
    flatten: Callable[[Tensor], Tensor],
) -> None:
    got = operator.pinv(y)
    cutoff = operator.cutoff if isinstance(operator, SpectralOperator) else 1e-9
    for i in range(case.images):
        wanted = torch.linalg.pinv(dense(operator, case.shape, i), rtol=cutoff) @ flatten(y)[i]
        assert (got[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()
    if type(operator).first_guess is LinearOperator.first_guess:  # else it knows better
        torch.testing.assert_close(operator.first_guess(y), got)


def test_vjp_is_the_adjoint(operator: LinearOperator, x: Tensor, y: Tensor) -> None:
    """Samplers that differentiate and samplers that transpose must follow the same operator."""
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y), rtol=1e-10, atol=1e-10)


def test_adjoint_is_differentiable(operator: LinearOperator, x: Tensor, y: Tensor) -> None:
    """A sampler may differentiate through a data step: the gradient of <A'y, x> in y is A x, never a silent zero."""
    with torch.enable_grad():
        y = y.requires_grad_(True)
        (gradient,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
    torch.testing.assert_close(gradient, operator(x), rtol=1e-10, atol=1e-10)


def test_rows_do_not_depend_on_the_batch(operator: LinearOperator, x: Tensor, y: Tensor, rho: Tensor) -> None:
    together = operator(x), operator.adjoint(y), operator.pinv(y), operator.solve(x, rho)
    for i in range(len(x)):
        one, row = operator.select(torch.tensor([i])), slice(i, i + 1)
        alone = one(x[row]), one.adjoint(y[row]), one.pinv(y[row]), one.solve(x[row], rho[row])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row], part, rtol=1e-9, atol=1e-11)


def test_a_blank_row_harms_no_other(operator: LinearOperator, x: Tensor, y: Tensor) -> None:
    """deepinv's LSQR gives up on the whole batch where one image has A'y = 0."""
    blank_x, blank_y = x.clone(), y.clone()
    blank_x[0], blank_y[0] = 0, 0
    for whole, blank in (
        (operator.pinv(y), operator.pinv(blank_y)),
        (operator.solve(x, 0.1), operator.solve(blank_x, 0.1)),
    ):
        assert (blank[0] == 0).all()
        torch.testing.assert_close(blank[1:], whole[1:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("warm", [False, True])
def test_select(operator: LinearOperator, x: Tensor, y: Tensor, rho: Tensor, warm: bool) -> None:
    """Rows in any order and repeated, as several samples per image are; before and after decompositions were kept."""
    if warm:
        operator.pinv(y)
    index = torch.tensor([2, 0, 0, 1])
    some = operator.select(index)
    assert some.images in (1, len(index))
    wanted = operator(x)[index], operator.adjoint(y)[index], operator.pinv(y)[index], operator.solve(x, rho)[index]
    got = some(x[index]), some.adjoint(y[index]), some.pinv(y[index]), some.solve(x[index], rho[index])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    again = some.select(torch.tensor([3]))
    torch.testing.assert_close(again(x[1:2]), operator(x)[1:2], rtol=1e-9, atol=1e-11)


def test_chunks_make_the_whole(operator: LinearOperator, x: Tensor) -> None:
    chunks = torch.arange(len(x)).split(2)
    parts = [operator.select(chunk)(x[chunk]) for chunk in chunks]
    torch.testing.assert_close(torch.cat(parts), operator(x), rtol=1e-10, atol=1e-12)


def test_deterministic(operator: LinearOperator, case: Case, x: Tensor, tmp_path: Path) -> None:
    """The same configuration is the same operator, in this process and in the next."""
    first = operator(x)
    assert torch.equal(operator(x), first)
    assert torch.equal(case.build(case.shape, case.images, tmp_path).double()(x), first)


def test_image_shape(operator: LinearOperator, case: Case, x: Tensor) -> None:
    assert operator.mismatch(case.shape) is None
    found = operator.image_shape(tuple(operator(x).shape[1:]))
    assert found is None or found == case.shape


def test_deep_copy(operator: LinearOperator, x: Tensor) -> None:
    wanted = operator(x)
    assert torch.equal(copy.deepcopy(operator)(x), wanted)


@pytest.mark.parametrize(
    "case",
    cases("denoising", "inpainting", "compressed", "blur", "circular", "space", "super", "callable"),
    indirect=True,
)
def test_pickle(operator: LinearOperator, x: Tensor) -> None:
    """To other processes, with what it keeps for speed. deepinv's physics hold a lambda and cannot go."""
    wanted = operator(x)
    assert torch.equal(pickle.loads(pickle.dumps(operator))(x), wanted)


def test_keeps_single_precision(case: Case, tmp_path: Path, normal: Normal, rho: Tensor) -> None:
    """Parameters per image, rho included, must not promote images to double."""
    operator = case.build(case.shape, case.images, tmp_path)
    x = normal(case.images, *case.shape, dtype=torch.float32)
    y = operator(x)
    assert y.real.dtype == torch.float32
    for image in (operator.adjoint(y), operator.pinv(y), operator.solve(x, rho), operator.solve(x, 0.1)):
        assert image.dtype == torch.float32
        assert image.shape == x.shape


def test_holds_no_double(case: Case, tmp_path: Path) -> None:
    """Some accelerators have no float64 and refuse to take a module that holds one."""
    operator = case.build(case.shape, case.images, tmp_path)
    assert all(buffer.dtype not in (torch.float64, torch.complex128) for buffer in operator.buffers())


def test_first_call_in_inference_mode(operator: LinearOperator, x: Tensor, normal: Normal) -> None:
    """What an operator keeps for speed must serve a later call that differentiates."""
    with torch.inference_mode():
        like = operator(x.clone())
    y = normal(*like.shape, seed=2, dtype=like.dtype)
    torch.testing.assert_close(operator.vjp(x, y), operator.adjoint(y), rtol=1e-10, atol=1e-10)


# -- spectral operators ------------------------------------------------------------------------------------------------


SPECTRAL = pytest.mark.parametrize(
    "case", cases("denoising", "inpainting", "compressed", "blur", "circular", "super"), indirect=True
)


@pytest.fixture
def spectral(operator: LinearOperator) -> SpectralOperator:
    assert isinstance(operator, SpectralOperator)
    assert operator.spectral
    return operator


@SPECTRAL
def test_v_is_orthonormal(spectral: SpectralOperator, x: Tensor, normal: Normal) -> None:
    z = normal(*x.shape, seed=3)
    torch.testing.assert_close(spectral.vt(spectral.v(z)), z, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(spectral.v(spectral.vt(x)), x, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close((spectral.v(z) * x).flatten(1).sum(1), (z * spectral.vt(x)).flatten(1).sum(1))


@SPECTRAL
def test_u_is_orthonormal_where_a_sees(spectral: SpectralOperator, x: Tensor, y: Tensor, normal: Normal) -> None:
    z = normal(*x.shape, seed=3)
    seen = spectral.singular_values(z) > 0
    torch.testing.assert_close(spectral.ut(spectral.u(z)), torch.where(seen, z, 0), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close((spectral.u(z) * y).flatten(1).sum(1), (z * spectral.ut(y)).flatten(1).sum(1))
    assert (spectral.ut(y).masked_select(~seen) == 0).all()
    assert (spectral.u(torch.where(seen, 0, z)) == 0).all()


@SPECTRAL
def test_a_is_usvt(spectral: SpectralOperator, x: Tensor, y: Tensor) -> None:
    s = spectral.singular_values(x)
    assert s.shape[0] in (1, len(x))
    assert s.shape[1] in (1, x.shape[1])
    assert s.shape[2:] == x.shape[2:]
    assert (s >= 0).all()
    torch.testing.assert_close(spectral(x), spectral.u(s * spectral.vt(x)), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(spectral.adjoint(y), spectral.v(s * spectral.ut(y)), rtol=1e-10, atol=1e-11)


@SPECTRAL
def test_singular_values(spectral: SpectralOperator, x: Tensor, case: Case, dense: Callable[..., Tensor]) -> None:
    s = spectral.singular_values(x).expand_as(x).flatten(1).sort(dim=1, descending=True).values
    for i in range(case.images):
        wanted = torch.linalg.svdvals(dense(spectral, case.shape, i))
        torch.testing.assert_close(s[i, : len(wanted)], wanted, rtol=1e-8, atol=1e-8)
        assert (s[i, len(wanted) :] == 0).all()


class Gain(SeparableOperator):
    """An amplifier per image, along both axes."""

    per_image = ("gain",)

    def __init__(self, gain: list[float]) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))

    def matrix(self, length: int) -> Tensor:
        return self.gain[:, None, None].double() * torch.eye(length, dtype=torch.float64)

    def image_length(self, measured: int) -> int:
        return measured


def test_pinv_judges_each_image_by_its_own_spectrum(normal: Normal) -> None:
    """A faint image beside a bright one is inverted as it is alone."""
    operator, x = Gain([1.0, 1e-4]), normal(2, 1, 5, 5)
    torch.testing.assert_close(operator.pinv(operator(x)), x)


def test_generic_spectral_forward_and_adjoint(normal: Normal) -> None:
    """What a subclass inherits when it writes the decomposition only."""
    operator, x, y = SuperResolution(factor=2), normal(2, 3, 6, 8), normal(2, 3, 3, 4, seed=1)
    torch.testing.assert_close(SpectralOperator.forward(operator, x), operator(x))
    torch.testing.assert_close(SpectralOperator.adjoint(operator, y), operator.adjoint(y))


# -- what a subclass that says less gets -------------------------------------------------------------------------------


class Sum(LinearOperator):
    """Only `forward`: the adjoint by autograd needs a shape that it does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True)


def test_adjoint_without_image_shape_says_what_to_define() -> None:
    with pytest.raises(ValueError, match=r"Sum must define image_shape\(\) or adjoint\(\)"):
        Sum().adjoint(torch.ones(1, 1))
