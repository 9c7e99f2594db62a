"""Conjugate gradients for a batch of independent symmetric positive systems."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.shapes import per_row, row_dot


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 500,
) -> Tensor:
    """Solve M x = b for each row, from x = 0; on a singular M this gives the solution of least norm.

    apply         x (B, ...) -> M x, rows independent
    precondition  r -> P r, symmetric positive, near the inverse of M, rows independent; None: none
    tolerance     a row stops when its residual is below this fraction of its right-hand side; None: 1e-6, or 1e-12 in
                  float64

    A row does not change after it has stopped: results do not depend on the batch. A row with a non-finite entry, or
    with a non-finite product M x, stops at once and is NaN in the result.
    """
    if tolerance is None:
        tolerance = 1e-12 if b.dtype == torch.float64 else 1e-6
    sound = b.flatten(1).isfinite().all(1)
    # Rows are scaled to one: squares of a field in its own unit may leave the range of float32.
    largest = b.detach().flatten(1).abs().amax(1)
    scale = torch.where(sound & (largest > 0), largest, 1)
    residual = torch.where(per_row(sound, b), b / per_row(scale, b), 0)
    x = torch.zeros_like(b)
    direction = z = residual if precondition is None else precondition(residual)
    energy, power = row_dot(residual, residual), row_dot(residual, z)
    goal = energy * tolerance**2
    for _ in range(max_iterations):
        active = energy > goal
        if not active.any():
            break
        product = apply(direction)
        curvature = row_dot(direction, product)
        sound = sound & (curvature.isfinite() | ~active)
        active = active & (curvature > 0)  # else a direction in the null space: nothing more to gain in this row
        step = torch.where(active, power / curvature.where(active, 1), 0)
        x = x + per_row(step, b) * direction
        residual = residual - per_row(step, b) * product
        z = residual if precondition is None else precondition(residual)
        energy = torch.where(active, row_dot(residual, residual), 0)  # 0: this row is done
        new_power = torch.where(active, row_dot(residual, z), 0)
        ratio = torch.where(active, new_power / power.where(active, 1), 0)
        direction = z + per_row(ratio, b) * direction
        power = new_power
    return torch.where(per_row(sound, b), x * per_row(scale, b), torch.nan)
