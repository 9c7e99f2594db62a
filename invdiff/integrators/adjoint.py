"""Gradients through the whole flow, with the memory of one call of the network.

Papers  Pan et al., Towards Accurate Guided Diffusion Sampling through Symplectic Adjoint Method, CVPR 2024,
        arXiv:2312.12030; Chen et al., Neural Ordinary Differential Equations, NeurIPS 2018, arXiv:1806.07366. The
        symplectic adjoint of an explicit method is the transposed map of its steps: it gives the gradient of the steps
        themselves to rounding, not that of the continuous flow.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from invdiff.integrators.base import Denoiser
from invdiff.shapes import row_vjp


def flow(denoise: Denoiser, x: Tensor, sigmas: Sequence[float]) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Where Euler's steps lead x from sigmas[0] to every later level, and v -> J^T v, J the Jacobian of the last one.

    Each step keeps its image, not the activations of the network: one call a step, and one call and one VJP more a step
    for each product.
    """
    path = [x]
    for sigma, after in pairwise(sigmas):
        path.append(path[-1] + (after - sigma) / sigma * (path[-1] - denoise(path[-1], sigma)))

    def product(v: Tensor) -> Tensor:
        for start, (sigma, after) in reversed(list(zip(path[:-1], pairwise(sigmas), strict=True))):
            _, pull = row_vjp(lambda x, sigma=sigma: denoise(x, sigma), start)  # type: ignore[misc]
            v = after / sigma * v + (1 - after / sigma) * pull(v)
        return v

    return path[1:], product
