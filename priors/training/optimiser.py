"""The optimiser of `invdiff train`: Muon for the convolutions, AdamW for everything else.

Paper       Jordan et al. 2024, Muon: an optimizer for hidden layers; its update has the size of AdamW's as in Liu et
            al. 2025, arXiv:2502.16982, so that one learning rate serves both.
Why         five minutes of either on the bundled photo prior, one core: 0.09 dB more mean PSNR than AdamW alone, though
            a step takes a third longer.
Departures  a 3x3 convolution is a matrix (output channels, 9 x input channels) for Muon, which takes matrices only.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def as_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight (out, in, h, w) as (out, h * w * in): a view where it is stored channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


class Optimiser:
    """Both optimisers behind the few calls that a training loop makes.

    network        its convolutions are brought to channels_last, which is how they are shared with Muon
    learning_rate  of both, to begin with
    """

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        network.to(memory_format=torch.channels_last)
        self.convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
        hidden = {id(weight) for weight in self.convolutions}
        others = [p for p in network.parameters() if id(p) not in hidden]
        # Separate parameters on the memory of the weights: Muon updates the network through them.
        self.matrices = [nn.Parameter(as_matrix(weight.detach())) for weight in self.convolutions]
        for matrix, weight in zip(self.matrices, self.convolutions, strict=True):
            if matrix.data_ptr() != weight.data_ptr():
                raise RuntimeError("a convolution's weight is not stored channels_last, so it cannot be shared")
        self.muon = torch.optim.Muon(
            self.matrices, lr=learning_rate, weight_decay=1e-3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)

    def _parts(self) -> Iterator[torch.optim.Optimizer]:
        yield self.muon
        yield self.adamw

    def set_learning_rate(self, value: float) -> None:
        for part in self._parts():
            for group in part.param_groups:
                group["lr"] = value

    def zero_grad(self) -> None:
        self.adamw.zero_grad()
        for weight in self.convolutions:
            weight.grad = None

    def step(self) -> None:
        for matrix, weight in zip(self.matrices, self.convolutions, strict=True):
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad)
        for part in self._parts():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
