"""Velocity networks: both directions of time, and the checkpoints of the rectified-flow authors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff.priors import FlowPrior
from invdiff.priors.networks.ncsnpp_network import NCSNppNetwork, NCSNppSpec

TIMES = torch.linspace(0.01, 0.99, 10, dtype=torch.float64)


def velocity(x_t: Tensor, t: Tensor) -> Tensor:
    return (3 * x_t + t.reshape(-1, 1, 1, 1)).sin()


@pytest.mark.parametrize("data_at", [0, 1])
def test_denoiser_of_a_velocity(data_at: int, normal: Callable) -> None:
    """Rectified flow: z = x_t + (1 - t) v, image at 1. Stable Diffusion 3: z = x_t - t v, image at 0."""
    x_t, t = normal(10, 3, 4, 4), TIMES.reshape(-1, 1, 1, 1)
    image, noise = (t, 1 - t) if data_at == 1 else (1 - t, t)
    v = velocity(x_t, 1000 * TIMES)
    wanted = x_t + (1 - t) * v if data_at == 1 else x_t - t * v
    prior = FlowPrior(velocity, data_at=data_at, time_scale=1000)  # type: ignore[arg-type]
    ours = prior.denoise((x_t / image + 1) / 2, (noise / image / 2).flatten())
    assert torch.allclose(2 * ours - 1, wanted, rtol=0, atol=1e-6)


def test_outside_its_times_the_network_is_told_the_nearest(normal: Callable) -> None:
    told = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return velocity(x, t)

    prior = FlowPrior(network, data_at=1, margin=0.01)
    x = normal(2, 3, 4, 4)
    assert torch.allclose(prior.denoise(x, 0.0), x)
    prior.denoise(x, 1e4)
    assert torch.allclose(torch.stack(told), torch.tensor([[0.99, 0.99], [0.01, 0.01]], dtype=torch.float64))


@pytest.fixture(params=[True, False], ids=["CelebA-HQ", "CIFAR-10"])
def network(request: pytest.FixtureRequest) -> NCSNppNetwork:
    fourier = request.param
    skips = ("input_skip", "output_skip") if fourier else ("none", "none")
    spec = NCSNppSpec(3, 16, (1, 2), 1, (1,), fourier, fourier, *skips)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = NCSNppNetwork(spec, exploding=False, sigmas=torch.logspace(2, -2, 10))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_checkpoint_of_the_rectified_flow_authors(network: NCSNppNetwork, tmp_path: Path, normal: Callable) -> None:
    """It is told 999 t; its network for large images has its output divided by that."""
    torch.save({"model": network.state_dict(), "step": 3}, tmp_path / "a.pth")
    prior = FlowPrior.load(tmp_path / "a.pth", image_size=8)
    x_t, t = normal(10, 3, 8, 8, dtype=torch.float32), TIMES.float().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        v = network(x_t, 999 * t.flatten()) / (999 * t if network.spec.fourier else 1)
    ours = 2 * prior.denoise((x_t / t + 1) / 2, ((1 - t) / t / 2).flatten()) - 1
    error = (ours - (x_t + (1 - t) * v)).abs().amax((1, 2, 3)) * t.flatten().clamp(max=1)
    assert (error < 1e-4).all(), error
    assert prior.shape == (3, 8, 8)


def test_what_does_not_fit_is_refused(network: NCSNppNetwork, tmp_path: Path) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="multiple of 2"):
        FlowPrior.load(tmp_path / "a.pth", image_size=9)
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="NCSN"):
        FlowPrior.load(tmp_path / "b.pth")
