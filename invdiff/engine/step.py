"""What a sampler yields."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """State after one iteration.

    x      (R, C, H, W) iterate at noise level `sigma`; in the last step, sigma = 0, it is the sample
    x0     (R, C, H, W) current estimate of the clean image
    sigma  noise level of x, image units
    """

    x: Tensor
    x0: Tensor
    sigma: float
