"""Optimisers that samplers share."""

import torch
from torch import Tensor


class Adam:
    """Adam, elementwise: rows never mix."""

    def __init__(self, like: Tensor, learning_rate: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.learning_rate, self.betas, self.count = learning_rate, betas, 0

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """x after one step against the gradient."""
        a, b = self.betas
        self.count += 1
        self.first = a * self.first + (1 - a) * gradient
        self.second = b * self.second + (1 - b) * gradient**2
        mean, square = self.first / (1 - a**self.count), self.second / (1 - b**self.count)
        return x - self.learning_rate * mean / (square.sqrt() + 1e-8)
