"""Salt and pepper: how many, and that they pull nowhere."""

import torch

from invdiff.operators import ImpulseNoise


def test_half_are_salt_and_half_are_pepper() -> None:
    y = ImpulseNoise(0.2, 0.001).sample(torch.full((1, 100_000), 0.5), [torch.Generator().manual_seed(0)])
    for value, wanted in ((0, 0.1), (0.5, 0.8), (1, 0.1)):
        assert abs(float(((y - value).abs() < 0.01).double().mean()) - wanted) <= 0.005


def test_an_impulse_pulls_nowhere_and_any_other_entry_like_gaussian_noise() -> None:
    noise = ImpulseNoise(0.1, 0.05)
    y, clean = torch.tensor([[0.0, 1.0, 0.6, 5.0]]), torch.full((1, 4), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise.nll(y, clean).sum(), clean)
    wanted = (0.5 - y) / 0.05**2
    assert gradient[0, :2].abs().max() <= 1e-10
    torch.testing.assert_close(gradient[0, 2], wanted[0, 2])
    assert gradient[0, 3] == 0  # nearer to salt than to the image

    far = torch.full((1, 4), 1e4, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise.nll(y, far).sum(), far)
    assert (gradient == 0).all()
    assert noise.nll(y, far).isfinite().all()
