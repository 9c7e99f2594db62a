"""Muon for convolutions, AdamW for the rest, and both on the memory of the network."""

import copy

import torch
from torch import Tensor, nn

from invdiff.priors.training.optimiser import Optimiser


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1), nn.Flatten())


def gradients(network: nn.Module, seed: int = 0) -> None:
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    network(x).square().sum().backward()


def as_rows(weight: Tensor) -> Tensor:
    """Columns in any order: an orthogonal update is one whatever their order."""
    return weight.detach().flatten(1)


def test_a_step_on_convolutions_is_an_orthogonal_matrix() -> None:
    """Muon's update has all singular values about equal, of the size that AdamW's would have."""
    network = small_network()
    before = [as_rows(network[i].weight).clone() for i in (0, 3)]
    optimiser = Optimiser(network, 1e-2)
    gradients(network)
    optimiser.step()
    for i, old in zip((0, 3), before, strict=True):
        update = (as_rows(network[i].weight) - old * (1 - 1e-2 * 1e-3)) / 1e-2
        s = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)  # match_rms_adamw
        assert ((s > 0.6) & (s < 1.3)).all()


def test_a_step_on_the_rest_is_adamw() -> None:
    network, twin = small_network(), small_network()
    optimiser = Optimiser(network, 1e-2)
    adamw = torch.optim.AdamW(twin[1].parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=1e-3)
    for model in (network, twin):
        gradients(model)
    optimiser.step()
    adamw.step()
    for ours, theirs in zip(network[1].parameters(), twin[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_learning_rate_zero_and_cleared_gradients_change_nothing() -> None:
    network = small_network()
    optimiser = Optimiser(network, 1e-2)
    gradients(network)
    wanted = [p.clone() for p in network.parameters()]
    optimiser.set_learning_rate(0.0)
    optimiser.step()
    optimiser.set_learning_rate(1e-2)
    optimiser.zero_grad()
    optimiser.step()
    for found, old in zip(network.parameters(), wanted, strict=True):
        assert torch.equal(found, old)


def test_resumes_where_it_stopped() -> None:
    network = small_network()
    optimiser = Optimiser(network, 1e-2)
    gradients(network)
    optimiser.step()
    twin = small_network()
    twin.load_state_dict(network.state_dict())
    resumed = Optimiser(twin, 1e-2)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # torch would share the tensors
    for model, optimiser_of_it in ((network, optimiser), (twin, resumed)):
        optimiser_of_it.zero_grad()
        gradients(model, seed=1)
        optimiser_of_it.step()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
