"""The measurement of image i depends on (seed, operator, i) alone."""

import pytest
import torch

from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting
from invdiff.problem import simulate

X = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_not_on_what_else_is_measured() -> None:
    operator, noise = GaussianBlur(std=1.0, kernel_size=7), GaussianNoise(0.1)
    y = simulate(X, operator, noise, seed=3)
    assert torch.equal(simulate(X[2:], operator, noise, 3, index=[2, 3]), y[2:])
    assert torch.equal(simulate(X[[3, 1]], operator, noise, 3, index=[3, 1]), y[[3, 1]])
    assert not torch.equal(simulate(X, operator, noise, seed=4), y)
    noisy = y - operator(X)
    assert not torch.allclose(noisy[0], noisy[1]), "the images share their noise"


def test_parameters_go_with_their_image() -> None:
    operator = Inpainting.random((1, 16, 16), keep=0.5, seed=0, images=4)
    noise = GaussianNoise(torch.tensor([0.0001, 0.1, 0.2, 0.3]))
    y = simulate(X, operator, noise, seed=0)
    assert torch.equal(simulate(X[1:3], operator, noise, index=[1, 2]), y[1:3])
    observed = operator.measured(tuple(y.shape[1:]))
    assert observed is not None
    assert not y[~observed.expand(y.shape)].any()


def test_too_few_parameters() -> None:
    operator = Inpainting.random((1, 16, 16), keep=0.5, seed=0, images=3)
    with pytest.raises(ValueError, match="the operator has parameters for 3 images, there are 4"):
        simulate(X, operator, 0.1)
    with pytest.raises(ValueError, match="the noise has parameters for 2 images, there are 4"):
        simulate(X, GaussianBlur(std=1.0, kernel_size=7), torch.tensor([0.1, 0.2]))
