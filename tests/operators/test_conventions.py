"""The conventions of measurements, one test for each row of docs/conventions.md that names it."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import Tomography
from PIL import Image
from scipy.ndimage import convolve
from skimage.transform import radon
from torch import Tensor

from invdiff.io import load_measurement
from invdiff.operators import (
    CT,
    HDR,
    MRI,
    Blur,
    CircularBlur,
    CTTransmission,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    LinearOperator,
    MotionBlur,
    MulticoilMRI,
    NonlinearBlur,
    Operator,
    compose,
)
from invdiff.problem import InverseProblem

Normal = Callable[..., Tensor]


def disc(size: int) -> Tensor:
    """A lopsided smooth image (1, 1, size, size), zero outside the circle that scikit-image reconstructs."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    places = ((-0.12, 0.08, 0.08), (0.15, 0.12, 0.06), (0.02, -0.2, 0.05))
    blobs = [
        torch.exp(-((axis[:, None] - a * size) ** 2 + (axis - b * size) ** 2) / (2 * (c * size) ** 2))
        for a, b, c in places
    ]
    inside = axis[:, None] ** 2 + axis**2 < (size / 2 - 1.5) ** 2
    return (torch.stack(blobs).sum(0) * inside)[None, None]


def off(y: Tensor, wanted: Tensor) -> float:
    return float((y - wanted).norm() / wanted.norm())


# -- computed tomography -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("circle", [True, False])
def test_scikit_image_sinogram(size: int, circle: bool) -> None:
    """Axis of rotation n // 2, sense, order of axes and unit: it measures what `radon` does, read otherwise it does
    not where a size is even."""
    x, angles = disc(size), np.array([0.0, 20.0, 45.0, 77.0, 90.0, 135.0, 200.0, 301.0])
    theirs = torch.from_numpy(radon(x[0, 0].numpy(), angles, circle=circle))[None, None]
    more = {} if circle else {"detectors": theirs.shape[2], "size": (size, size)}
    operator = CT(angles=angles, convention="skimage", **more)
    assert off(operator(x), theirs) < 1e-6
    plain = CT(angles=angles, detectors=theirs.shape[2], size=(size, size))
    assert (off(plain(x), theirs) > 0.05) == (size % 2 == 0 or theirs.shape[2] % 2 == 0)


@pytest.mark.slow
def test_scikit_image_sinogram_is_reconstructed_like_our_own() -> None:
    """Least squares, and filtered back-projection, from 60 views."""
    x, angles = ((disc(128) > 0.2).float() + (disc(128) > 0.7).float()) / 2, np.arange(60) * 3.0
    operator = CT(angles=angles, convention="skimage")
    theirs = torch.from_numpy(radon(x[0, 0].numpy(), angles))[None, None]
    for guess in (operator.first_guess, lambda y: operator.solve(operator.adjoint(y), 1.0)):
        own, other = (float((guess(y) - x).square().mean().log10() * -10) for y in (operator(x), theirs))
        assert abs(own - other) < 0.3, (own, other)


@pytest.mark.parametrize("size", [32, 33, 36, 37])
def test_deepinv_sinogram(size: int) -> None:
    """Also where image and detector are not both even or both odd, and deepinv's axis is half a pixel off."""
    x = disc(size)
    theirs = Tomography(10, size, normalize=False, dtype=torch.float64)(x)
    assert off(CT(views=10, convention="deepinv")(x), theirs) < 1e-5


def test_deepinv_fan() -> None:
    """Up to the length of oblique rays, which deepinv forgets: a quarter turn ahead, cells the other way."""
    size, x = 40, disc(40)
    fan = {"pixel_spacing": 1.0, "source_radius": 80.0, "detector_radius": 80.0, "n_detector_pixels": 71}
    theirs = Tomography(
        torch.tensor([0.0, 37.0, 90.0, 200.0]),
        size,
        normalize=False,
        fan_beam=True,
        fan_parameters=fan | {"detector_spacing": 2.0},
        dtype=torch.float64,
    )(x)
    options = {"geometry": "fan", "detectors": 71, "detector_spacing": 2.0, "size": (size, size)}
    ours = CT(angles=[0.0, 37.0, 90.0, 200.0], convention="deepinv", **options)(x)
    assert off(ours, theirs) < 0.05
    assert off(CT(angles=[0.0, 37.0, 90.0, 200.0], **options)(x), theirs) > 0.5


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
@pytest.mark.parametrize("size", [30, 31])
def test_astra_geometry(geometry: str, size: int) -> None:
    """Against rays by ASTRA's documented vectors, x right and y up, through a blob whose line integrals are known.

    parallel  direction (sin a, -cos a), cell i at (i - (n - 1) / 2) (cos a, sin a)
    fanflat   source at (sin a, -cos a) DSO, middle of the detector at (-sin a, cos a) DOD, cells along (cos a, sin a)
    """
    angles, n, source, detector, std = [0.0, 33.0, 90.0, 150.0, 280.0], 47, 75.0, 45.0, 3.0
    across, up = 4.0, 6.5
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x = torch.exp(-((axis - across) ** 2 + (-axis[:, None] - up) ** 2) / (2 * std**2))[None, None]
    wanted = torch.zeros(len(angles), n, dtype=torch.float64)
    for view, a in enumerate(math.radians(angle) for angle in angles):
        u, toward = np.array([math.cos(a), math.sin(a)]), np.array([math.sin(a), -math.cos(a)])
        for i in range(n):
            if geometry == "parallel":
                start, direction = (i - (n - 1) / 2) * u, toward
            else:
                start = source * toward
                direction = -detector * toward + (i - (n - 1) / 2) * 1.6 * u - start
            direction = direction / np.linalg.norm(direction)
            offset = np.array([across, up]) - start
            distance = offset[0] * direction[1] - offset[1] * direction[0]
            wanted[view, i] = math.sqrt(2 * math.pi) * std * math.exp(-(distance**2) / (2 * std**2))
    options = {"geometry": geometry, "angles": angles, "detectors": n, "size": (size, size)}
    if geometry == "fan":
        options |= {"source_distance": source / size, "detector_distance": detector / size, "detector_spacing": 1.6}
    y = CT(convention="astra", **options)(x)
    assert y.shape == (1, 1, len(angles), n)
    assert off(y[0, 0], wanted) < 0.02
    flipped = CT(**options)(x).mT
    assert (off(flipped[0, 0], wanted) > 0.15) == (geometry == "fan")


def test_angles_are_degrees_of_every_view(tmp_path: Path, normal: Normal) -> None:
    x = normal(1, 1, 9, 9)
    whole = CT(views=18)(x)
    chosen = [3, 0, 7, 8]
    angles = [10.0 * view for view in chosen]
    text, binary = tmp_path / "angles.txt", tmp_path / "angles.npy"
    text.write_text("# degrees\n30\n0\n70\n80\n")
    np.save(binary, np.array(angles)[:, None])
    for given in (angles, np.array(angles), torch.tensor(angles), text, str(binary)):
        operator = CT(angles=given)
        assert operator.views == 4
        torch.testing.assert_close(operator(x), whole[..., chosen])


@pytest.mark.parametrize("views", [np.arange(60) * 3.0, np.arange(60) * 111.246 % 180, np.arange(1, 91) * 4.0])
def test_backprojection_of_given_angles(views: np.ndarray) -> None:
    """Evenly spaced, golden, and shuffled over a whole turn: the level of the image is kept."""
    x = disc(40)
    for angles in (views, np.random.default_rng(0).permutation(views)):
        operator = CT(angles=angles)
        assert off(operator.first_guess(operator(x)), x) < 0.04


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
@pytest.mark.parametrize(("centre", "offset"), [(1.3, 0.0), (0.0, -2.0), (0.75, 1.5)])
def test_axis_beside_the_middle_of_the_detector(geometry: str, centre: float, offset: float) -> None:
    """The projection of a small blob on the axis of rotation stays on cell (n - 1) / 2 + centre - detector_offset, and
    back-projection puts the image where it was."""
    axis = torch.arange(41, dtype=torch.float64) - 20
    blob = torch.exp(-(axis**2 + axis[:, None] ** 2) / 8)[None, None]
    options = {"views": 64, "geometry": geometry, "detectors": 81, "size": (41, 41)}
    operator = CT(centre=centre, detector_offset=offset, **options)
    y = operator(blob)[0, 0]
    found = (y * torch.arange(81)[:, None]).sum(0) / y.sum(0)
    torch.testing.assert_close(found, torch.full_like(found, 40 + centre - offset), rtol=0, atol=0.02)
    x = disc(41)
    assert off(operator.first_guess(operator(x)), x) < 0.05
    assert off(CT(**options).first_guess(operator(x)), x) > 0.08


def test_in_a_fan_the_two_offsets_differ() -> None:
    """`centre` moves the axis out of the central ray, `detector_offset` the cells; with parallel rays the same."""
    x, options = disc(20), {"views": 8, "detectors": 41, "size": (20, 20)}
    for geometry, same in (("parallel", True), ("fan", False)):
        moved = CT(geometry=geometry, centre=2.0, **options)(x)
        pushed = CT(geometry=geometry, detector_offset=-2.0, **options)(x)
        assert torch.allclose(moved, pushed, atol=1e-9) == same


def test_transmission_shares_the_geometry(normal: Normal) -> None:
    x, options = normal(1, 1, 8, 8).abs(), {"angles": [0, 10, 95], "convention": "astra", "centre": 0.4}
    y = CTTransmission(attenuation=1.0, **options)(x)
    torch.testing.assert_close(y, torch.exp(-CT(**options)(x) / 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angles": [0, 1], "views": 3}, "views must be the number of angles, 2, got 3"),
        ({"angles": [0, 1], "angle_range": 90}, "give angle_range, for evenly spaced views, or angles, got both"),
        ({"angles": [0, math.nan]}, "angles must be finite degrees, one per view"),
        ({"angles": [[0, 1], [2, 3]]}, "angles must be finite degrees, one per view, got 2x2"),
        ({"angles": "none.txt"}, "angles: none.txt must be a file|angles: .*none.txt"),
        ({"convention": "matlab"}, "convention must be one of invdiff, skimage, deepinv, astra, got 'matlab'"),
        ({"convention": "skimage", "geometry": "fan"}, "convention=skimage is for parallel beams"),
        ({"centre": math.inf}, "centre, in cells from the middle of the detector, must be finite"),
    ],
)
def test_wrong_geometry(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ct: {message}"):
        CT(**options)


# -- magnetic resonance imaging ----------------------------------------------------------------------------------------

NUMPY = {
    "centred": lambda x, **norm: np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x), **norm)),
    "numpy": np.fft.fft2,
    "fftshift": lambda x, **norm: np.fft.fftshift(np.fft.fft2(x, **norm)),
    "ifftshift": lambda x, **norm: np.fft.fft2(np.fft.ifftshift(x), **norm),
}


@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
@pytest.mark.parametrize("fft", NUMPY)
@pytest.mark.parametrize("size", [(6, 8), (7, 6), (5, 9)])
def test_fourier_transform(fft: str, norm: str, size: tuple[int, int], normal: Normal, dense: Callable) -> None:
    """Each is the expression of NumPy that it is named after; adjoint, inverse and decomposition follow."""
    mask = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.6
    x = normal(1, 2, *size)
    wanted = torch.from_numpy(NUMPY[fft](torch.complex(x[0, 0], x[0, 1]).numpy(), norm=norm))
    maps = torch.ones(1, *size, dtype=torch.complex64)
    for complex_image in (True, False):
        image = x if complex_image else x[:, :1]
        truth = wanted if complex_image else torch.from_numpy(NUMPY[fft](x[0, 0].numpy(), norm=norm))
        for operator in (
            MRI(mask=mask, fft=fft, norm=norm, complex_image=complex_image),
            MulticoilMRI(mask=mask, maps=maps, fft=fft, norm=norm, complex_image=complex_image),
        ):
            y = operator(image)
            torch.testing.assert_close(y[0, 0], torch.where(mask, truth, 0))
            a = dense(operator, tuple(image.shape[1:]))
            flat = torch.view_as_real(y).flatten()
            torch.testing.assert_close(operator.adjoint(y).flatten(), a.T @ flat)
            solved = torch.linalg.solve(a.T @ a + 0.3 * torch.eye(a.shape[1]), image.flatten())
            torch.testing.assert_close(operator.solve(image, 0.3).flatten(), solved, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                operator.pinv(y).flatten(), torch.linalg.pinv(a, rtol=1e-9) @ flat, rtol=1e-5, atol=1e-5
            )
        exact = MRI(mask=mask, fft=fft, norm=norm, complex_image=complex_image)
        torch.testing.assert_close(exact.v(exact.vt(image)), image)
        torch.testing.assert_close(exact.u(exact.singular_values(image) * exact.vt(image)), exact(image))


@pytest.mark.parametrize("fft", NUMPY)
def test_whole_lines_in_every_convention(fft: str, normal: Normal, dense: Callable) -> None:
    """The row-wise decomposition of several coils, and the drawn mask: its full centre is about frequency 0."""
    operator = MulticoilMRI(coils=3, acceleration=2, center_fraction=0.3, fft=fft, norm="backward")
    x = normal(1, 1, 6, 10)
    a = dense(operator, (1, 6, 10))
    solved = torch.linalg.solve(a.T @ a + 2.0 * torch.eye(60), x.flatten())
    torch.testing.assert_close(operator.solve(x, 2.0).flatten(), solved, rtol=1e-6, atol=1e-8)
    zero = 5 if fft in ("centred", "fftshift") else 0
    assert operator.mask_of((6, 10))[0, 0, :, [zero - 1, zero, (zero + 1) % 10]].all()
    flat = MulticoilMRI(coils=3, acceleration=1, center_fraction=0, fft=fft, norm="backward")
    torch.testing.assert_close(flat.zero_filled(flat(x)), x)


def test_sigma_of_complex_data() -> None:
    """sigma^2 is the variance of the complex number, half of it for each part; or sigma is that of a part."""
    clean = torch.zeros(1, 1, 200, 200, dtype=torch.complex64)
    stream = [torch.Generator().manual_seed(0)]
    whole, part = GaussianNoise(0.5), GaussianNoise(0.5, per_component=True)
    assert float(whole.sample(clean, stream).abs().square().mean().sqrt()) == pytest.approx(0.5, rel=0.02)
    noisy = part.sample(clean, stream)
    assert float(noisy.real.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noisy.imag.std()) == pytest.approx(0.5, rel=0.02)
    assert float(part.misfit(noisy, clean)) == pytest.approx(1, abs=0.02)
    assert float(whole.misfit(noisy, clean)) == pytest.approx(2, abs=0.04)
    real = torch.zeros(1, 1, 4, 4)
    assert whole.mismatch(real) is None
    for refused in (lambda: InverseProblem(Denoising(), part, real), lambda: part.sample(real, stream)):
        with pytest.raises(ValueError, match="per_component=true requires a complex measurement, got a real one"):
            refused()


# -- blurs -------------------------------------------------------------------------------------------------------------

KERNEL = torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.0, 0.5, 0.2, 0.0], [0.05, 0.0, 0.1, 0.05]])


def test_kernel_origin_and_direction() -> None:
    """A true convolution about tap size // 2: a point of light gives the kernel, as in scipy."""
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    for boundary in ("zero", "circular"):
        torch.testing.assert_close(Blur(KERNEL, boundary=boundary)(x)[0, 0, 3:6, 2:6], KERNEL)
    wanted = torch.from_numpy(convolve(x[0, 0].numpy(), KERNEL.numpy(), mode="constant"))
    torch.testing.assert_close(Blur(KERNEL, boundary="zero")(x)[0, 0], wanted)


@pytest.mark.parametrize("operator", [Blur, CircularBlur])
def test_kernel_of_any_sum(operator: type) -> None:
    counts = 1000 * torch.stack([KERNEL, 2 * KERNEL])
    assert torch.equal(operator(counts).kernel[:, 0], counts)
    torch.testing.assert_close(operator(counts, normalise=True).kernel[:, 0], torch.stack([KERNEL, KERNEL]))
    with pytest.raises(ValueError, match="normalise=true requires a kernel with a sum > 0, got -1"):
        operator(-KERNEL, normalise=True)
    with pytest.raises(ValueError, match="normalise=true requires a kernel with a sum > 0, got 0"):
        operator(torch.tensor([[1.0, -1.0]]), normalise=True)


SCENES = [
    pytest.param(Blur(KERNEL, boundary="valid"), Blur(KERNEL), id="blur"),
    pytest.param(
        MotionBlur(kernel_size=15, seed=3, boundary="valid"), MotionBlur(kernel_size=15, seed=3), id="motion_blur"
    ),
    pytest.param(GaussianBlur(std=1.3, boundary="valid"), GaussianBlur(std=1.3), id="gaussian_blur"),
    pytest.param(
        NonlinearBlur(kernel_size=9, boundary="valid"), NonlinearBlur(kernel_size=9), id="nonlinear_blur"
    ),
    pytest.param(
        compose([Blur(KERNEL, boundary="valid"), HDR()]), compose([Blur(KERNEL), HDR()]), id="composition"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("valid", "reflect"), SCENES)
def test_the_scene_goes_on_outside_the_frame(valid: Operator, reflect: Operator, normal: Normal) -> None:
    """y is the blur of a larger scene, cut to what no boundary rule touches; `frame` cuts images to the same part."""
    scene = normal(2, 1, 40, 44).abs()
    y = valid(scene)
    assert y.shape[-1] < 44
    assert valid.measurement_shape((1, 40, 44)) == tuple(y.shape[1:])
    assert valid.image_shape(tuple(y.shape[1:])) == (1, 40, 44)
    torch.testing.assert_close(y, valid.frame(reflect(scene)))
    assert torch.equal(reflect.frame(scene), scene)
    reason = valid.mismatch((1, 3, 2))
    assert reason is not None
    assert "boundary=valid requires images of" in reason


@pytest.mark.parametrize("operator", [Blur(KERNEL, boundary="valid"), GaussianBlur(std=0.8, boundary="valid")])
def test_valid_blur_is_linear_algebra(operator: LinearOperator, normal: Normal, dense: Callable) -> None:
    shape = (1, 12, 11)
    b, a = normal(3, *shape), dense(operator, shape)
    y = normal(3, *operator.measurement_shape(shape))
    torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ a)
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    for rho in (1e-4, 1.0):
        wanted = torch.linalg.solve(a.T @ a + rho * eye, b.flatten(1).T).T
        torch.testing.assert_close(operator.solve(b, rho).flatten(1), wanted, rtol=1e-4, atol=1e-5)
    guess = operator.first_guess(y)
    assert guess.shape == b.shape
    assert torch.equal(operator.frame(guess), y)


def test_the_margin_is_that_of_the_batch_for_each_image(normal: Normal) -> None:
    blurs = GaussianBlur(std=torch.tensor([0.5, 1.0]), boundary="valid")
    x = normal(2, 1, 16, 16)
    torch.testing.assert_close(blurs.select(torch.tensor([0]))(x[:1]), blurs(x)[:1])
    kernels = torch.zeros(2, 5, 5)
    kernels[0, 2, 2], kernels[1, 2, 3] = 1, 1
    blurs = Blur(kernels, boundary="valid")  # the outer rows are zero in both, the outer columns too
    assert blurs.kernel.shape == (2, 1, 1, 3)
    torch.testing.assert_close(blurs(x), torch.stack([x[0, :, :, 1:-1], x[1, :, :, :-2]]))


def test_every_row_of_the_table_names_a_test_of_this_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| |")][1:]
    named = [re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1]) for row in rows]
    assert len(rows) == 13
    assert all(names and all(callable(globals().get(name)) for name in names) for names in named), named


def test_axes_and_range_of_pictures(tmp_path: Path) -> None:
    """Row 0 is the upper one, colours are channels, white is 1."""
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 2] = 255, 0, 51
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    x = load_measurement(str(tmp_path / "picture.png")).y.squeeze(0)
    assert x.shape == (3, 2, 3)
    torch.testing.assert_close(x[:, 0, 2], torch.tensor([1.0, 0.0, 0.2]))
    assert float(x.sum()) == pytest.approx(1.2)
