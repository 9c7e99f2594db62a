"""One line: the images that this prior describes.

Source      Paper and code of the network: authors, title, year, file of the weights and its checksum.
Images      Size, channels, range, unit.

Copy this file to my_prior.py and put a network in place of `Shrink`. Check it and use it:

    invdiff check-prior prior=callable prior.file=my_prior.py:MyPrior
    invdiff reconstruct prior=callable prior.file=my_prior.py:MyPrior 'prior.parameters={spread: 0.3}'
"""

from torch import Tensor, nn

from invdiff.priors import Prior
from invdiff.shapes import sigma_per_row


class MyPrior(Prior):
    """A denoiser of images in [-1, 1], for images in [0, 1].

    spread  standard deviation of a pixel of the example, in [-1, 1]
    """

    shape = None  # (C, H, W), or None where any size will do
    channels = None  # 1 or 3, where `shape` is None and the network takes no other number
    sigma_range = (0.002, 80.0)  # noise levels of the training, image units
    value_range = (0.0, 1.0)  # of clean images, image units; half of it is `unit`, its middle `centre`, unless set

    def __init__(self, spread: float = 0.5) -> None:
        super().__init__()
        self.network = Shrink(spread).eval().requires_grad_(False)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x_sigma = x], (B, C, H, W); sigma is a float or (B,), both in image units.

        Another range, and another parametrisation of the network, are converted here and nowhere else.
        """
        level = sigma_per_row(sigma, x)  # a tensor that multiplies x
        return (self.network(2 * x - 1, 2 * level) + 1) / 2

    @classmethod
    def example(cls) -> "MyPrior":
        return cls()


class Shrink(nn.Module):
    """The exact denoiser of independent Gaussian pixels of mean 0."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return z * self.spread**2 / (self.spread**2 + level**2)
