"""Laplace noise: outliers pull no harder than small residuals."""

import torch

from invdiff.operators import LaplaceNoise


def test_every_residual_pulls_alike() -> None:
    y, clean = torch.tensor([[0.1, 1.0, 1e4, 0.0]]), torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(LaplaceNoise(0.25).nll(y, clean).sum(), clean)
    torch.testing.assert_close(gradient, torch.tensor([[-4.0, -4, -4, 0]]))


def test_draws_are_finite() -> None:
    """The logarithm of a uniform zero would not be."""
    y = LaplaceNoise(1.0).sample(torch.zeros(1, 2_000_000), [torch.Generator().manual_seed(0)])
    assert y.isfinite().all()
    assert 10 < float(y.abs().max()) < 30
