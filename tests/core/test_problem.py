"""The inverse problem: checks with messages, and a likelihood per image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.operators import (
    MRI,
    CallableOperator,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    Operator,
    PoissonNoise,
    SuperResolution,
    as_operator,
)

SHAPE = (1, 8, 8)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InverseProblem(Denoising(), GaussianNoise(), torch.zeros(4)), r"batch axis.*got shape \(4,\)"),
        (lambda: InverseProblem(Denoising(), GaussianNoise(), torch.zeros(0, *SHAPE)), r"no image.*\(0, 1, 8, 8\)"),
        (
            lambda: InverseProblem(lambda x: x, GaussianNoise(), torch.zeros(1, *SHAPE)),
            r"CallableOperator does not determine the image shape from y: give image_shape=\(C, H, W\)",
        ),
        (
            lambda: InverseProblem(
                SuperResolution(factor=2), GaussianNoise(), torch.zeros(1, 1, 4, 4), image_shape=(1, 4, 4)
            ),
            "belongs to images of 1x8x8, but image_shape is 1x4x4",
        ),
        (
            lambda: InverseProblem(Inpainting(box=10), GaussianNoise(), torch.zeros(1, *SHAPE)),
            "box .* does not fit an image of 8x8",
        ),
        (
            lambda: InverseProblem(
                Inpainting.random(SHAPE, keep=0.5, seed=0, images=3), GaussianNoise(), torch.zeros(2, *SHAPE)
            ),
            "parameters for 3 images, y has 2",
        ),
        (
            lambda: InverseProblem(Denoising(), GaussianNoise(torch.tensor([0.1, 0.2, 0.3])), torch.zeros(2, *SHAPE)),
            "levels are for 3 images, y has 2",
        ),
        (
            lambda: InverseProblem(Denoising(), GaussianNoise(torch.tensor([0.1, 0.2])), torch.zeros(3, *SHAPE)),
            "levels are for 2 images, y has 3",
        ),
        (
            lambda: InverseProblem(
                Denoising(), GaussianNoise(), torch.tensor([0.0, torch.nan, torch.inf, 1.0]).reshape(1, 1, 2, 2)
            ),
            "holds 2 NaN or infinite",
        ),
        (
            lambda: InverseProblem(Denoising(), PoissonNoise(torch.tensor([0.1, 0.2])), torch.ones(3, *SHAPE)),
            "levels are for 2 images, y has 3",
        ),
        (
            lambda: InverseProblem(Denoising(), PoissonNoise(), torch.full((1, *SHAPE), -0.5)),
            "photon counts must be >= 0, got 64 value",
        ),
        (
            lambda: InverseProblem(
                LinearCallableOperator(torch.fft.fft2, image_shape=SHAPE),
                PoissonNoise(),
                torch.ones(1, *SHAPE, dtype=torch.complex64),
            ),
            "PoissonNoise requires a real measurement, got a complex one",
        ),
        (
            lambda: InverseProblem(
                CallableOperator(lambda x: x[..., ::2]), GaussianNoise(), torch.zeros(1, *SHAPE), image_shape=SHAPE
            ),
            "CallableOperator measures 1x8x4 from an image of 1x8x8, but y is 1x8x8",
        ),
    ],
)
def test_a_problem_that_does_not_fit_raises_one_line(make: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_no_forward_model_runs_where_the_shapes_are_declared() -> None:
    class Halved(Operator):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a measurement for nothing")

        def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
            return (image_shape[0], image_shape[1] // 2, image_shape[2])

    assert InverseProblem(Halved(), 0.1, torch.zeros(1, 1, 4, 8), image_shape=SHAPE).image_shape == SHAPE
    with pytest.raises(ValueError, match="Halved measures 1x4x8 from an image of 1x8x8, but y is 1x8x8"):
        InverseProblem(Halved(), 0.1, torch.zeros(1, *SHAPE), image_shape=SHAPE)
    with pytest.raises(ValueError, match="Halved measures real numbers, but y is complex, complex64"):
        InverseProblem(Halved(), 0.1, torch.zeros(1, 1, 4, 8, dtype=torch.complex64), image_shape=SHAPE)


@pytest.mark.parametrize("noise", ["0.1", None, True])
def test_something_that_is_no_noise(noise: object) -> None:
    with pytest.raises(
        TypeError, match=r"noise must be a Noise of invdiff\.operators or the standard deviation of Gaussian noise, got"
    ):
        InverseProblem(Denoising(), noise, torch.zeros(1, *SHAPE))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [lambda x: x + 0.1 * torch.rand_like(x), lambda x: (x + torch.rand_like(x)) * 1j])
def test_a_function_that_adds_noise_is_refused_without_reconstruct_too(function: Callable) -> None:
    y = function(images(1))
    with pytest.raises(ValueError, match="another measurement of the same image at the second call"):
        InverseProblem(function, 0.1, y, image_shape=SHAPE)


@pytest.mark.parametrize("function", [torch.log, lambda x: x > 0.5, lambda x: x.round().long()])
def test_functions_of_any_kind_of_number_repeat(function: Callable) -> None:
    assert InverseProblem(function, 0.1, torch.zeros(1, *SHAPE), image_shape=SHAPE).images == 1


def test_something_that_is_no_operator() -> None:
    with pytest.raises(TypeError, match="operator must be an invdiff Operator"):
        InverseProblem("blur", GaussianNoise(), torch.zeros(1, *SHAPE))


def test_nan_is_allowed_where_nothing_was_measured_and_only_there() -> None:
    mask = torch.ones(8, 8)
    mask[0, 0] = 0
    y = images(2)
    y[:, :, 0, 0] = torch.nan
    InverseProblem(Inpainting(mask=mask), GaussianNoise(), y)
    y[1, :, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="holds 1 NaN"):
        InverseProblem(Inpainting(mask=mask), GaussianNoise(), y)


def test_complex_measurements_are_checked_too() -> None:
    operator = LinearCallableOperator(lambda x: torch.fft.fft2(x), image_shape=SHAPE)
    y = operator(images(1))
    assert InverseProblem(operator, GaussianNoise(), y).image_shape == SHAPE
    y[0, 0, 1, 1] = complex(0, torch.nan)
    with pytest.raises(ValueError, match="holds 1 NaN"):
        InverseProblem(operator, GaussianNoise(), y)


def test_a_callable_and_its_shape() -> None:
    problem = InverseProblem(torch.tanh, GaussianNoise(), torch.zeros(2, *SHAPE), image_shape=list(SHAPE))  # type: ignore[arg-type]
    assert problem.image_shape == SHAPE
    assert isinstance(problem.operator, CallableOperator)


# -- likelihood --------------------------------------------------------------------------------------------------------


def test_likelihood_residual_and_misfit_by_hand() -> None:
    """Two images with their own noise and their own mask; unmeasured entries of y are NaN."""
    operator = Inpainting.random(SHAPE, keep=0.5, seed=3, images=2)
    assert operator.mask is not None
    sigma = torch.tensor([0.1, 0.4])
    mask = operator.mask
    y, x = images(2, seed=1), images(2, seed=2)
    problem = InverseProblem(operator, GaussianNoise(sigma), torch.where(mask, y, torch.nan))
    r = torch.where(mask, y - x, 0)
    assert torch.allclose(problem.residual(x), r)
    assert torch.allclose(problem.nll(x), r.square().flatten(1).sum(1) / (2 * sigma**2), rtol=1e-5)
    chi = r.square().flatten(1).sum(1) / sigma**2 / mask.flatten(1).sum(1)
    assert torch.allclose(problem.misfit(x), chi, rtol=1e-5)
    gradient = -r / sigma.reshape(2, 1, 1, 1) ** 2
    assert torch.allclose(problem.nll_gradient(x), gradient, rtol=1e-4, atol=1e-5)
    assert problem.images == 2


def test_the_gradient_of_a_nonlinear_operator_with_counting_noise() -> None:
    """Against finite differences in float64, with gradients switched off by the caller."""
    operator = CallableOperator(lambda x: x**2 + 0.1, image_shape=(1, 2, 2))
    x = 0.2 + images(1)[:, :, :2, :2].double()
    problem = InverseProblem(operator, PoissonNoise(0.05), operator(x) + 0.05)
    d = torch.tensor([[[[1.0, -0.3], [0.2, 0.7]]]], dtype=torch.float64)
    with torch.no_grad():
        gradient = problem.nll_gradient(x)
        slope = (problem.nll(x + 1e-6 * d) - problem.nll(x - 1e-6 * d)) / 2e-6
    assert not gradient.requires_grad
    assert float((gradient * d).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_gradients_of_images_do_not_mix() -> None:
    problem = InverseProblem(GaussianBlur(std=1.0, kernel_size=5), GaussianNoise(0.1), images(3))
    x = images(3, seed=5)
    together = problem.nll_gradient(x)
    for i in range(3):
        one = problem.select(torch.tensor([i]))
        assert torch.allclose(one.nll_gradient(x[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-4)


# -- select ------------------------------------------------------------------------------------------------------------


def test_select_takes_parameters_of_operator_and_noise_along() -> None:
    """In the given order, with repetitions, as for chunks and particles."""
    operator = Inpainting.random(SHAPE, keep=0.5, seed=3, images=3)
    problem = InverseProblem(operator, GaussianNoise(torch.tensor([0.1, 0.2, 0.3])), operator(images(3)))
    index = torch.tensor([2, 0, 0, 1])
    chosen = problem.select(index)
    x = images(4, seed=7)
    assert chosen.images == 4
    assert torch.equal(chosen.y, problem.y[index])
    for row, image in enumerate(index.tolist()):
        one = InverseProblem(
            Inpainting(mask=operator.mask[image]),  # type: ignore[index]
            GaussianNoise(problem.noise.sigma[image]),  # type: ignore[index]
            problem.y[image : image + 1],
        )
        assert torch.allclose(chosen.nll(x)[row], one.nll(x[row : row + 1])[0])
    assert problem.images == 3
    assert torch.equal(operator(images(3)), problem.y)


def test_select_shares_what_all_images_share() -> None:
    problem = InverseProblem(GaussianBlur(std=1.0, kernel_size=5), GaussianNoise(0.1), images(3))
    chosen = problem.select(torch.tensor([1]))
    assert chosen.operator is problem.operator
    assert chosen.noise is problem.noise
    assert chosen.image_shape == problem.image_shape


def deepinv_mask() -> Operator:
    from deepinv.physics import Inpainting as Physics

    return as_operator(Physics(img_size=SHAPE, mask=torch.ones(2, *SHAPE)))


@pytest.mark.parametrize(
    "make",
    [lambda: Inpainting.random(SHAPE, keep=0.5, seed=0, images=2), lambda: GaussianBlur(std=1.0), deepinv_mask],
    ids=["mask", "blur", "deepinv"],
)
def test_to_takes_copies_along_and_leaves_the_caller_where_it_is(make: Callable[[], Operator]) -> None:
    """`Module.to` works in place: the caller's operator would end up on the GPU after a run there."""
    problem = InverseProblem(make(), GaussianNoise(torch.tensor([0.1, 0.2])), images(2))
    before = problem.nll(images(2, seed=1))
    moved = problem.to("meta")
    for part in (moved.operator, moved.noise):
        assert {t.device.type for t in [*part.buffers(), *part.parameters()]} <= {"meta"}
    assert moved.y.device.type == "meta"
    assert torch.equal(problem.nll(images(2, seed=1)), before)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.arange(16.0).reshape(1, 1, 4, 4)[..., ::-1], torch.float64),  # a mirrored view
        (np.arange(16).reshape(1, 1, 4, 4).astype(">f4"), torch.float32),  # of another byte order, as in FITS
        (np.arange(16).reshape(1, 1, 4, 4).astype(np.uint16), torch.float32),
        (np.arange(16).reshape(1, 1, 4, 4).astype(np.float16), torch.float32),
        (np.ones((1, 1, 4, 4), bool), torch.float32),
        (np.arange(16).reshape(1, 1, 4, 4).tolist(), torch.float32),
        (torch.arange(16).reshape(1, 1, 4, 4), torch.float32),
        (torch.ones(1, 1, 4, 4, dtype=torch.bfloat16), torch.float32),
        (torch.ones(1, 1, 4, 4, dtype=torch.float64), torch.float64),
    ],
)
def test_y_is_settled_at_the_door(given: Any, dtype: torch.dtype) -> None:
    y = InverseProblem(Inpainting(), 0.1, given).y
    assert y.dtype == dtype
    values = given.double().numpy() if isinstance(given, Tensor) else np.asarray(given, dtype=float)
    assert np.array_equal(y.double().numpy(), values)


@pytest.mark.parametrize(("kind", "dtype"), [(np.complex64, torch.complex64), (np.complex128, torch.complex128)])
def test_complex_y_is_settled_at_the_door(kind: Any, dtype: torch.dtype) -> None:
    assert InverseProblem(MRI(), 0.1, np.ones((1, 1, 8, 8), kind)).y.dtype == dtype


def test_arrays_that_are_no_measurement() -> None:
    """Masked entries hold anything: taken for measured they would be a wrong answer without a word."""
    masked = np.ma.masked_array(np.ones((1, 1, 4, 4)), mask=np.eye(4, dtype=bool)[None, None])
    with pytest.raises(ValueError, match="give its mask to the operator"):
        InverseProblem(Inpainting(), 0.1, masked)
    with pytest.raises(ValueError, match="must be an array of numbers, got numpy's <U1"):
        InverseProblem(Inpainting(), 0.1, np.full((1, 1, 4, 4), "x"))
