"""Optimisers that samplers share."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.problem import InverseProblem
from invdiff.shapes import nonzero, per_row, row_dot, row_norm, row_vjp


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


def explained_by_descent(
    problem: InverseProblem, x: Tensor, learning_rate: float, iterations: int, last: float = 1.0
) -> Tensor:
    """What Adam makes of x until its misfit is 1 or less, each row by itself, (R, C, H, W).

    last  learning rate of the last iteration, to which it falls geometrically, as a share of the first
    """
    adam = Adam(x, learning_rate)
    for k in range(iterations):
        adam.learning_rate = learning_rate * last ** (k / iterations)
        misfit, product = row_vjp(problem.misfit, x)
        if bool((misfit <= 1).all()):
            break
        moved = adam.step(x, product(torch.ones_like(misfit)))
        x = torch.where(per_row(misfit <= 1, x), x, moved)  # NaN moves on, and is seen
    return x


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


class LBFGS:
    """The limited-memory method of Broyden, Fletcher, Goldfarb and Shanno with halved steps; rows never mix.

    Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4. A row whose value does not fall far enough along
    its step (Armijo, 1e-4 of what the slope says) stays, and tries half of the length the next time.

    value, gradient  at x, (R,) and shaped like x
    memory           how many steps are remembered
    first            root mean square of the first step
    """

    def __init__(self, x: Tensor, value: Tensor, gradient: Tensor, *, memory: int = 10, first: float = 0.1) -> None:
        self.x, self.value, self.gradient, self.memory = x, value, gradient, memory
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale = first * x[0].numel() ** 0.5 / nonzero(row_norm(gradient))  # of the inverse Hessian
        self.length = torch.ones_like(value)

    def trial(self) -> Tensor:
        """Where to evaluate next, shaped like x."""
        direction, shares = self.gradient, []
        for step, change, inverse in reversed(self.pairs):
            shares.append(inverse * row_dot(step, direction))
            direction = direction - per_row(shares[-1], change) * change
        direction = per_row(self.scale, direction) * direction
        for (step, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            direction = direction + per_row(share - inverse * row_dot(change, direction), step) * step
        return self.x - per_row(self.length, direction) * direction

    def report(self, trial: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Take the value and the gradient at the trial; which rows moved there, (R,)."""
        step, change = trial - self.x, gradient - self.gradient
        fall = 1e-4 * row_dot(step, self.gradient).clamp(max=0)  # by rounding, a step may point uphill
        moved = ~(value > self.value + fall)  # NaN moves on, and is seen
        product = row_dot(step, change)
        convex = moved & (product > 1e-12)  # of a function whose values matter to 1 or so; below is rounding
        # A row that stays or finds no convexity remembers nothing: its pair has no weight.
        self.pairs = [*self.pairs, (step, change, torch.where(convex, 1 / nonzero(product), 0))][-self.memory :]
        self.scale = torch.where(convex, product / nonzero(row_dot(change, change)), self.scale)
        self.length = torch.where(moved, 1.0, self.length / 2)
        where = per_row(moved, trial)
        self.x, self.gradient = torch.where(where, trial, self.x), torch.where(where, gradient, self.gradient)
        self.value = torch.where(moved, value, self.value)
        return moved
