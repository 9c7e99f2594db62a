"""Krylov solvers of a fixed number of iterations, for systems whose products are network VJPs; each row by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.shapes import nonzero, per_row, row_dot, row_norm

# p -> (sigma^2 A J^T A^T p, J^T A^T p): the product of the system, and its part in image space.
Product = Callable[[Tensor], tuple[Tensor, Tensor]]

# Relative to the sizes that were subtracted.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


def generalised_minimal_residual(product: Product, variance: Tensor | float, b: Tensor, iterations: int) -> Tensor:
    """J^T A^T v for the v of this many iterations of GMRES on (variance + product) v = b, of each row; like an image.

    Each iteration leaves the least residual that its products can give; where nothing is left to gain a row stays.
    """
    residual, found = b, torch.zeros((), device=b.device)
    earlier: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        signal, w = product(residual)
        q = variance * residual + signal
        size = row_norm(q)
        for q_before, w_before in earlier:
            along = row_dot(q_before, q)
            q, w = q - per_row(along, q) * q_before, w - per_row(along, w) * w_before
        norm = row_norm(q)
        # What is left of a direction that was there before is rounding: it would be blown up to length one.
        scale = torch.where(norm > ROUNDING[norm.dtype] * size, 1 / nonzero(norm), torch.where(norm.isnan(), norm, 0))
        q, w = per_row(scale, q) * q, per_row(scale, w) * w
        step = row_dot(q, residual)
        residual, found = residual - per_row(step, q) * q, found + per_row(step, w) * w
        earlier.append((q, w))
    return found


def conjugate_gradient(product: Product, variance: Tensor | float, b: Tensor, iterations: int) -> Tensor:
    """The same by conjugate gradients, for a symmetric, positive product; a row where it shows not to be stays."""
    residual, direction, found = b, b, torch.zeros((), device=b.device)
    energy = row_dot(residual, residual)
    start = energy
    for _ in range(iterations):
        signal, w = product(direction)
        q = variance * direction + signal
        curvature = row_dot(direction, q)
        going = (energy > ROUNDING[energy.dtype] ** 2 * start) & (row_dot(direction, signal) > 0)
        step = torch.where(going | curvature.isnan(), energy / nonzero(curvature), 0)
        residual, found = residual - per_row(step, q) * q, found + per_row(step, w) * w
        left = row_dot(residual, residual)
        direction = residual + per_row(torch.where(going, left / nonzero(energy), 0), direction) * direction
        energy = left
    return found


def square_root(product: Callable[[Tensor], Tensor], v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """J^(1/2) v of each row, for a product v -> J v with eigenvalues about [0, 1], and the quotient v.J v / v.v, (R,).

    It is taken in the Krylov space of v that this many products span (Lanczos; with all vectors orthogonalised, as the
    J of a network is only about symmetric), where J is made symmetric and negative eigenvalues are zero. Its square
    is v.J v at any number of steps.
    """
    length = row_norm(v)
    basis = [v / per_row(nonzero(length), v)]
    small = v.new_zeros(len(v), steps, steps)  # J in the basis
    for j in range(steps):
        w = product(basis[j])
        size = row_norm(w)
        for i, q in 2 * list(enumerate(basis)):  # twice: once leaves directions that are not orthogonal to rounding
            part = row_dot(q, w)
            small[:, i, j] += part
            w = w - per_row(part, w) * q
        if j + 1 < steps:
            norm = row_norm(w)
            # What is left of a direction that was there before is rounding: it would be blown up to length one.
            norm = torch.where(norm > ROUNDING[norm.dtype] * size, norm, torch.where(norm.isnan(), norm, 0))
            small[:, j + 1, j] = norm
            basis.append(per_row((norm != 0) / nonzero(norm), w) * w)
    sound = small.isfinite().flatten(1).all(1)
    small = torch.where(per_row(sound, small), small, 0)  # one row that diverged would end the decomposition of all
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    along = (vectors * values.clamp(min=0).sqrt()[:, None] @ vectors[:, 0, :, None])[..., 0]
    along = torch.where(per_row(sound, along), along, torch.nan)
    root = torch.stack([per_row(length * along[:, j], v) * q for j, q in enumerate(basis)]).sum(0)
    return root, small[:, 0, 0]
