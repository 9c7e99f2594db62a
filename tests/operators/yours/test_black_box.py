"""Simulators outside torch: what they are given, what is made of what they give, and what is refused."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.operators import BlackBox, GaussianNoise, LinearBlackBox, as_operator
from invdiff.samplers import DAPS

Normal = Callable[..., Tensor]
SHAPE = (1, 8, 8)


def halves(image: np.ndarray) -> np.ndarray:
    return image[0, ::2] ** 2


def wasteful(image: np.ndarray) -> np.ndarray:
    """Works in place, and gives float64."""
    image += 1.0
    return image.astype(np.float64)


def phases(images: np.ndarray) -> np.ndarray:
    return np.exp(1j * images)


def brightness(image: np.ndarray) -> float:
    return float(image.sum())


def scaled(image: np.ndarray, *, factor: float) -> np.ndarray:
    return factor * image


# -- what goes in and what comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_image_by_image(dtype: torch.dtype, normal: Normal) -> None:
    x = normal(3, *SHAPE, dtype=dtype)
    y = BlackBox(halves)(x)
    assert y.dtype == dtype
    assert torch.equal(y, x[:, 0, ::2] ** 2)


def test_in_batches_of_a_largest_size(normal: Normal) -> None:
    given: list[tuple[int, ...]] = []

    def simulator(images: np.ndarray) -> np.ndarray:
        given.append(images.shape)
        return 2 * images

    x = normal(5, *SHAPE)
    assert torch.equal(BlackBox(simulator, batched=True, max_batch=2)(x), 2 * x)
    assert given == [(2, *SHAPE), (2, *SHAPE), (1, *SHAPE)]
    given.clear()
    BlackBox(simulator, batched=True)(x)
    assert given == [(5, *SHAPE)]


def test_workers_call_at_the_same_time(normal: Normal) -> None:
    """Two calls wait for each other: one after the other, they would wait for ever."""
    both = threading.Barrier(2, timeout=10)

    def simulator(image: np.ndarray) -> np.ndarray:
        both.wait()
        return 2 * image

    x = normal(4, *SHAPE)
    assert torch.equal(BlackBox(simulator, workers=2)(x), 2 * x)


def test_a_worker_that_fails_says_so(normal: Normal) -> None:
    with pytest.raises(ZeroDivisionError):
        BlackBox(lambda image: 1 / 0, workers=2)(normal(4, *SHAPE))


def test_images_of_any_layout(normal: Normal) -> None:
    x = normal(2, 8, 8, 1).permute(0, 3, 1, 2)
    assert torch.equal(BlackBox(partial(scaled, factor=3.0))(x), 3 * x)
    assert torch.equal(BlackBox(np.flip)(x), x.flip((1, 2, 3)))


# -- linear, with an adjoint -------------------------------------------------------------------------------------------


def test_autograd_goes_through_the_adjoint(normal: Normal) -> None:
    """Once and twice, although NumPy does the work."""
    operator = LinearBlackBox(partial(scaled, factor=3.0), partial(scaled, factor=3.0), image_shape=SHAPE)
    x, v = normal(2, *SHAPE).requires_grad_(True), normal(2, *SHAPE, seed=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator(x).square().sum(), x, create_graph=True)
    assert torch.allclose(gradient, 18 * x)
    (again,) = torch.autograd.grad((gradient * v).sum(), x)
    assert torch.allclose(again, 18 * v)
    (through,) = torch.autograd.grad(operator.adjoint(v).sum(), v)
    assert torch.allclose(through, torch.full_like(v, 3.0))


def test_an_adjoint_that_gives_no_images(normal: Normal) -> None:
    operator = LinearBlackBox(halves, halves, image_shape=SHAPE)
    with pytest.raises(ValueError, match="halves must return images, 1x8x8, got 2"):
        operator.adjoint(normal(2, 8, 4))


def test_a_sampler_with_a_scipy_operator() -> None:
    """In the middle of a reconstruction, as an exact data step needs it."""
    from invdiff.contracts.toys import COMPUTE, WhitePrior

    rows = scipy.sparse.linalg.aslinearoperator(scipy.sparse.random(40, 64, density=0.2, rng=np.random.default_rng(0)))
    operator = as_operator(rows, image_shape=SHAPE)
    x = torch.full((1, *SHAPE), 0.4)
    problem = InverseProblem(operator, GaussianNoise(0.01), operator(x))
    posterior = DAPS.example().sample(problem, WhitePrior(), num_samples=2, compute=COMPUTE)
    assert not posterior.diverged.any()
    assert posterior.cost.operator_calls > 0


def test_scipy_operators_that_do_not_fit() -> None:
    forward_only = scipy.sparse.linalg.LinearOperator((3, 64), matvec=lambda v: v[:3], dtype=np.float32)
    with pytest.raises(ValueError, match="must define rmatvec"):
        as_operator(forward_only, image_shape=SHAPE)
    with pytest.raises(ValueError, match="must have 16 columns, the entries of an image of 1x4x4, got 64"):
        as_operator(forward_only, image_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"image_shape=\(C, H, W\) of the images is required"):
        as_operator(forward_only)


# -- what is refused ---------------------------------------------------------------------------------------------------


def sizes(image: np.ndarray) -> np.ndarray:
    return image[0, : 4 if image[0, 0, 0] > 0 else 5]


def nothing(image: np.ndarray) -> None:
    return None


def text(image: np.ndarray) -> str:
    return "done"


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (nothing, {}, r"nothing must return an array of numbers, got None"),
        (text, {}, "text must return an array of numbers, got str of <U4"),
        (sizes, {}, "sizes must return one shape for images of one size, got 4x8 and 5x8"),
        (brightness, {"batched": True}, "brightness must return one row per image, got scalar for 2 images"),
        (halves, {"batched": True}, r"halves must return one row per image, got 1x8x8 for 2 images; set batched=false"),
        (partial(scaled, factor=None), {}, "unsupported operand"),
    ],
    ids=["nothing", "text", "sizes", "number", "one-image", "raises"],
)
def test_what_is_no_measurement(function: Any, options: dict[str, Any], words: str) -> None:
    x = torch.ones(2, *SHAPE)
    x[1] = -1
    with pytest.raises((ValueError, TypeError), match=words):
        BlackBox(function, **options)(x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 2}, "max_batch=2 requires batched=true"),
        ({"max_batch": 0, "batched": True}, "max_batch must be an integer >= 1, got 0"),
        ({"workers": 0}, "workers must be an integer >= 1, got 0"),
        ({"image_shape": (8, 8)}, r"image_shape must be \(C, H, W\), integers >= 1, got \[8, 8\]"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlackBox(halves, **options)


def test_images_of_another_size() -> None:
    assert BlackBox(halves, image_shape=SHAPE).mismatch((1, 9, 8)) == (
        "black box: image_shape is 1x8x8, the image 1x9x8; set image_shape=[1,9,8]"
    )
