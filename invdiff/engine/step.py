"""What a sampler yields."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """State after one iteration.

    x      (R, C, H, W) iterate at noise level `sigma`; in the last step, sigma = 0, it is the sample
    x0     (R, C, H, W) current estimate of the clean image
    sigma  noise level of x, image units
    mean   (R, C, H, W) estimate of E[x0 | y] so far, in the last step one with less variance than the sample; None, in
           every step: the sampler gives none
    """

    x: Tensor
    x0: Tensor
    sigma: float
    mean: Tensor | None = field(default=None, kw_only=True)
