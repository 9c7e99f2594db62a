"""Total variation of images, as the largest product with a bounded dual field, and its proximal operator.

TV(x) = sum over pixels of |(D x)|, D the forward differences along both axes, 0 past the last row and column, and the
norm over both axes and all channels: edges of a colour image are where those of its channels are.
"""

import torch
from torch import Tensor

NORM_SQUARED = 8.0  # |D|^2 is below it on images of any size


def differences(x: Tensor) -> Tensor:
    """D x: (R, C, H, W) -> (R, 2, C, H, W), down and to the right."""
    found = x.new_zeros(x.shape[0], 2, *x.shape[1:])
    found[:, 0, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    found[:, 1, :, :, :-1] = x[:, :, :, 1:] - x[:, :, :, :-1]
    return found


def back(p: Tensor) -> Tensor:
    """D^T p: (R, 2, C, H, W) -> (R, C, H, W)."""
    found = p.new_zeros(p.shape[0], *p.shape[2:])
    found[:, :, :-1] -= p[:, 0, :, :-1]
    found[:, :, 1:] += p[:, 0, :, :-1]
    found[:, :, :, :-1] -= p[:, 1, :, :, :-1]
    found[:, :, :, 1:] += p[:, 1, :, :, :-1]
    return found


def within(p: Tensor, radius: float | Tensor) -> Tensor:
    """The nearest dual field whose norm at every pixel is at most a radius >= 0, shaped to multiply p."""
    norm = torch.linalg.vector_norm(p, dim=(1, 2), keepdim=True)
    return p * (radius / norm.clamp(min=1e-30)).clamp(max=1)


def proximal_step(x: Tensor, p: Tensor, weight: float | Tensor) -> Tensor:
    """One step towards the dual field p with x - D^T p = argmin_u weight TV(u) + |u - x|^2 / 2.

    Chambolle's algorithm as projected gradient descent of the dual, Total Variation Minimization and a Class of Binary
    MRF Models, EMMCVPR 2005, step size 1 / |D|^2.

    weight  >= 0, shaped to multiply p
    """
    return within(p + differences(x - back(p)) / NORM_SQUARED, weight)
