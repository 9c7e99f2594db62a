"""The flow and its transposed Jacobian."""

from itertools import pairwise

import torch
from torch import Tensor

from helpers import gaussian, normal, smooth
from invdiff.integrators.adjoint import flow
from invdiff.schedules import karras

SHAPE = (1, 3, 3)


def curved(x: Tensor, sigma: float) -> Tensor:
    """A denoiser whose Jacobian is neither constant nor symmetric."""
    return (x.roll(1, -1) + 0.3 * x).tanh() / (1 + sigma)


def test_product_is_backpropagation() -> None:
    sigmas, x, v = (5.0, 1.0, 0.2, 0.0), normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    path, product = flow(curved, x, sigmas)
    there = x.clone().requires_grad_(True)
    end = there
    for sigma, after in pairwise(sigmas):
        end = end + (after - sigma) * (end - curved(end, sigma)) / sigma
    end.backward(v)
    assert (path[-1] - end.detach()).abs().max() < 1e-12
    assert (product(v) - there.grad).abs().max() < 1e-12
    assert not path[-1].requires_grad


def test_many_steps_are_the_flow_of_a_gaussian() -> None:
    """x = m + (S + sigma^2)^(1/2) u is carried to m + S^(1/2) u."""
    mean, covariance = normal(9, seed=1), smooth(3, 3, std=0.5)
    prior = gaussian(mean.reshape(SHAPE), covariance)
    values, vectors = torch.linalg.eigh(covariance)
    x = normal(2, *SHAPE)
    path, _ = flow(prior.denoise, x, [*karras(2.0, 0.001, 400).tolist(), 0.0])
    gain = vectors @ torch.diag((values / (values + 4)).sqrt()) @ vectors.T
    wanted = mean + (x.flatten(1) - mean) @ gain
    assert (path[-1].flatten(1) - wanted).abs().max() < 0.01
