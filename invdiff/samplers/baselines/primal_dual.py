"""What baselines share: the least |y - A x|^2 / (2 sigma_y^2) + R(K x), by a dual field, for any linear K and norm R.

Paper       Chambolle and Pock, A First-Order Primal-Dual Algorithm for Convex Problems with Applications to Imaging,
            Journal of Mathematical Imaging and Vision 2011, Algorithm 1 with theta = 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from invdiff.problem import InverseProblem
from invdiff.samplers.moves import proximal


@dataclass(frozen=True)
class Penalty:
    """R(K x).

    forward       K, images (R, C, H, W) -> fields
    back          K^T
    within        a field -> the nearest one in the dual ball, <p, K x> <= R(K x) for all of whose p
    norm_squared  |K|^2, or more
    """

    forward: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    within: Callable[[Tensor], Tensor]
    norm_squared: float


def descend(problem: InverseProblem, x: Tensor, penalty: Penalty, step: float, iterations: int) -> Iterator[Tensor]:
    """The images of so many iterations from x, (R, C, H, W).

    step  of the image, times |K|; that of the field is 1 / step / |K|
    """
    tau, sigma = step / sqrt(penalty.norm_squared), 1 / step / sqrt(penalty.norm_squared)
    ahead, p = x, 0 * penalty.forward(x)
    for _ in range(iterations):
        p = penalty.within(p + sigma * penalty.forward(ahead))
        before, x = x, proximal(problem, x - tau * penalty.back(p), problem.noise_variance / tau)
        ahead = 2 * x - before
        yield x
