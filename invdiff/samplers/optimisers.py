"""Optimisers that samplers share."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.shapes import nonzero, per_row, row_dot


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


def conjugate_descent(
    slope: Callable[[Tensor], Tensor], x: Tensor, iterations: int, reach: float, convexity: float
) -> Tensor:
    """Where nonlinear conjugate gradients of Polak and Ribiere lead from x, each row by itself, (R, C, H, W).

    A step goes as far as the curvature along it says, measured by a second gradient: of a quadratic function these are
    the conjugate gradients of linear algebra. Two gradients an iteration.

    slope      gradient of the function
    reach      largest difference of a pixel over which curvature is measured
    convexity  least curvature, of a part of the function that is known; > 0
    """
    gradient = slope(x)
    direction = -gradient
    for k in range(iterations):
        shift = per_row(reach / nonzero(direction.abs().flatten(1).amax(1)), x)
        square = row_dot(direction, direction)
        curvature = row_dot(slope(x + shift * direction) - gradient, direction) / shift.flatten()
        x = (
            x
            - per_row(row_dot(gradient, direction) / nonzero(torch.maximum(curvature, convexity * square)), x)
            * direction
        )
        if k + 1 < iterations:
            fresh = slope(x)
            share = row_dot(fresh, fresh - gradient) / nonzero(row_dot(gradient, gradient))
            gradient, direction = fresh, per_row(share.clamp(min=0), x) * direction - fresh
    return x
