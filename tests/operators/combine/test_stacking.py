"""Several measurements of one image side by side, each with its own noise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts import check_operator
from invdiff.operators import (
    HDR,
    MRI,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearStacking,
    PoissonNoise,
    StackedNoise,
    Stacking,
    SuperResolution,
    stack,
)
from invdiff.streams import generator

Normal = Callable[..., Tensor]
SHAPE = (1, 8, 8)


def test_parts_come_back(normal: Normal) -> None:
    x = normal(2, *SHAPE)
    parts = [SuperResolution(factor=2), Inpainting(keep=0.5)]
    operator = stack(parts, image_shape=SHAPE)
    y = operator(x)
    assert y.shape == (2, 16 + 64)
    for piece, part in zip(operator.split(y), parts, strict=True):
        assert torch.equal(piece, part(x))


def test_linear_where_all_parts_are() -> None:
    assert type(stack([SuperResolution(factor=2), Inpainting(keep=0.5)], image_shape=SHAPE)) is LinearStacking
    assert type(stack([SuperResolution(factor=2), HDR()], image_shape=SHAPE)) is Stacking


@pytest.mark.parametrize("mixed", [False, True])
def test_linear_stacking_against_dense_algebra(mixed: bool, normal: Normal, dense: Callable[..., Tensor]) -> None:
    """Real measurements alone, and beside complex ones: pairs of reals, so that the adjoint is the real one."""
    second = MRI(acceleration=2) if mixed else GaussianBlur(std=torch.tensor([0.6, 0.9]), kernel_size=5)
    operator = stack([SuperResolution(factor=2), second], image_shape=SHAPE)
    x = normal(2, *SHAPE)
    assert not operator(x).is_complex()
    y = normal(*operator(x).shape, seed=1)
    for i in range(2):
        a = dense(operator, SHAPE, i)
        assert torch.allclose(operator(x)[i], a @ x[i].flatten(), atol=1e-12)
        assert torch.allclose(operator.adjoint(y)[i].flatten(), a.T @ y[i], atol=1e-12)
        wanted = torch.linalg.solve(a.T @ a + 0.3 * torch.eye(64, dtype=a.dtype), x[i].flatten())
        assert (operator.solve(x, 0.3)[i].flatten() - wanted).norm() <= 1e-5 * wanted.norm()


def test_complex_parts_alone_stay_complex(normal: Normal) -> None:
    operator = stack([MRI(acceleration=2), MRI(acceleration=4, seed=1)], image_shape=SHAPE)
    x = normal(2, *SHAPE, dtype=torch.float32)
    assert operator(x).is_complex()
    check_operator(operator, SHAPE)


@pytest.mark.parametrize("first", [SuperResolution(factor=2), MRI(acceleration=2)], ids=["real", "mixed"])
def test_masks_are_stacked(first: SuperResolution | MRI, normal: Normal) -> None:
    mask = Inpainting(keep=0.5)
    operator = stack([first, mask], image_shape=SHAPE)
    seen = operator.measured(tuple(operator(normal(1, *SHAPE)).shape[1:]))
    assert seen is not None
    assert torch.equal(seen[0, -64:], mask.measured(SHAPE).flatten())
    inner = first.measured((1, 8, 8))
    assert seen[0, :-64].all() if inner is None else int(seen[0, :-64].sum()) == 2 * int(inner.expand(1, 1, 8, 8).sum())


def test_parameters_per_image(normal: Normal) -> None:
    parts = [GaussianBlur(std=torch.tensor([0.6, 0.9, 1.2]), kernel_size=5), Inpainting.random(SHAPE, seed=0, images=3)]
    check_operator(stack(parts, image_shape=SHAPE), SHAPE)


def test_noise_of_each_part() -> None:
    """Variance, likelihood and draws are those of the parts; levels per image are selected in the parts."""
    operator = stack([SuperResolution(factor=2), Inpainting(keep=0.5)], image_shape=SHAPE)
    parts = [GaussianNoise(torch.tensor([0.1, 0.3])), PoissonNoise(0.05)]
    noise = StackedNoise(parts, operator.sizes)
    x = torch.rand(2, *SHAPE)
    clean = operator(x)
    y = noise.sample(clean, [generator(0, "measure", i) for i in range(2)], operator.measured(tuple(clean.shape[1:])))
    problem = InverseProblem(operator, noise, y)
    seen = operator.split(operator.measured(tuple(y.shape[1:])).expand(2, -1).to(y.dtype))
    wanted = sum(
        part.nll(a, b, mask.bool())
        for part, a, b, mask in zip(parts, operator.split(y), operator.split(clean), seen, strict=True)
    )
    assert torch.allclose(problem.nll(x), wanted, rtol=1e-5)
    one = problem.select(torch.tensor([1]))
    assert torch.allclose(one.nll(x[1:]), wanted[1:], rtol=1e-5)
    assert noise.variance(clean).shape == clean.shape
    assert torch.equal(noise.variance(clean)[:, 0], torch.tensor([0.1, 0.3]) ** 2)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"stacking: image_shape must be \(C, H, W\), integers >= 1, got \[8, 8\]"):
        stack([HDR()], image_shape=(8, 8))
    operator = stack([HDR()], image_shape=SHAPE)
    assert operator.mismatch((1, 9, 8)) == "stacking: image_shape is 1x8x8, the image 1x9x8; set image_shape=[1,9,8]"
    with pytest.raises(ValueError, match="parts and sizes must be as many, at least one, got 1 and 2"):
        StackedNoise([GaussianNoise(0.1)], [3, 4])
    with pytest.raises(ValueError, match="stacked noise: y must have 65 entries, got 64"):
        InverseProblem(operator, StackedNoise([GaussianNoise(0.1), PoissonNoise(0.1)], [64, 1]), torch.zeros(1, 64))
    negative = StackedNoise([GaussianNoise(0.1), PoissonNoise(0.1)], [32, 32])
    with pytest.raises(ValueError, match=r"negative|below zero"):
        InverseProblem(operator, negative, torch.full((1, 64), -1.0))
