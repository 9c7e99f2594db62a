"""Motion blur along the random path of a shaken camera.

Model   A x = k * x, k a random path, equal for all channels.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit.
Spec    The law of L. Borodenko's `motionblur`, which DPS and DAPS use with 61 taps, intensity 0.5 and reflection at
        the boundary; not the camera shake of Boracchi and Foi, nor deepinv's Gaussian process. Two deviations: the
        kernel is centred on its centre of mass (there, on the mean of the corners of its path), so that the blur does
        not shift the image; and the line is evaluated at each pixel from its distance instead of painted at twice the
        size in 8 bits and shrunk. DPS and DAPS draw a new kernel in every process; here it is drawn from `seed`.
"""

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from ..core.base import Drawn, Variants
from .blur import Blur, trimmed


class MotionBlur(Blur):
    """Blur by the path of a shaken camera.

    intensity    curvature of the path, 0 (a straight line) to 1
    kernel_size  taps, odd; paths are up to 1.06 (1 + intensity^2) times as long, in pixels, and cut at its edge
    boundary     as in `Blur`
    seed         determines the path, for all images

    `MotionBlur.random(images=B, seed=...)` draws one path per image.
    """

    def __init__(
        self, *, intensity: float = 0.5, kernel_size: int = 61, boundary: str = "reflect", seed: int = 0
    ) -> None:
        super().__init__(motion_kernels(intensity, kernel_size, seed), boundary=boundary)

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"kernel": Drawn("operator=blur operator.kernel=FILE")}

    @classmethod
    def random(
        cls, *, images: int, seed: int, intensity: float = 0.5, kernel_size: int = 61, boundary: str = "reflect"
    ) -> Self:
        """A different path for each of `images` images; the first is the path of the class with the same seed."""
        operator = cls(intensity=intensity, kernel_size=kernel_size, boundary=boundary, seed=seed)
        taps = motion_kernels(intensity, kernel_size, seed, images)
        operator.kernel = trimmed(taps) if boundary == "valid" else taps
        return operator

    @classmethod
    def example(cls) -> tuple["MotionBlur", tuple[int, ...]]:
        return cls(kernel_size=9), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example(), "per-image": (cls.random(images=3, seed=1, kernel_size=7), (1, 8, 9))}


def motion_kernels(intensity: float, kernel_size: int, seed: int, images: int = 1) -> Tensor:
    """Kernels of independent paths, float32 (images, 1, kernel_size, kernel_size), each summing to one."""
    if not 0 <= intensity <= 1:
        raise ValueError(f"motion_blur: intensity must be a number in [0, 1], got {intensity}")
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"motion_blur: kernel_size must be an odd integer >= 3, got {kernel_size}")
    generator = torch.Generator().manual_seed(seed)
    kernels = [draw_path(motion_path(intensity, kernel_size, generator), kernel_size) for _ in range(images)]
    return torch.stack(kernels)[:, None].float()


def motion_path(intensity: float, kernel_size: int, generator: torch.Generator) -> Tensor:
    """Corners of a random path as complex numbers, column + i row, in pixels: complex128 (corners,).

    Lengths are in units of the diagonal of the kernel, angles are those of the steps themselves, not of the turns.
    """

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    length = 0.75 * (uniform() + uniform(0, intensity**2))
    longest = 1 - intensity + 0.1
    # Steps follow longest * Beta(1, 30), truncated at the length of the path: inversion of the distribution function.
    below = 1 - (1 - min(length / longest, 1)) ** 30
    steps: list[float] = []
    while sum(steps) < length:
        steps.append(longest * (1 - (1 - below * uniform()) ** (1 / 30)))

    widest = uniform(0, intensity * math.pi)
    # Beta(2, 20) is the law of the second smallest of 21 uniform numbers.
    jitter = sorted(uniform() for _ in range(21))[1]
    angles = [uniform(-widest, widest)]
    while len(angles) < len(steps):
        size = triangular(uniform(), intensity * widest, widest + 0.1)
        sign = math.copysign(1, angles[-1]) if angles[-1] else 0  # 0: a straight path stays straight
        angles.append(size * (-sign if uniform() < jitter else sign))

    moves = torch.polar(torch.tensor(steps, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(uniform(0, math.pi), dtype=torch.float64))
    return math.sqrt(2) * kernel_size * turn * moves.cumsum(0)


def triangular(u: float, mode: float, right: float) -> float:
    """The quantile u of the triangular law on [0, right]."""
    if u * right < mode:
        return math.sqrt(u * right * mode)
    return right - math.sqrt((1 - u) * right * (right - mode))


def draw_path(path: Tensor, kernel_size: int) -> Tensor:
    """A path as kernel, float64 (kernel_size, kernel_size): sum one, centre of mass at its centre.

    Precise to 0.01 pixels, or 0.5 pixels for a path that is cut at the edge of the kernel.
    """
    # Half pixels: the law is defined on a grid of twice the size.
    diagonal = 2 * math.sqrt(2) * kernel_size
    width, std = max(1, int(diagonal / 150)) / 2, max(1, int(diagonal / 100)) / 2
    axis = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    pixels = torch.complex(axis.expand(kernel_size, -1), axis[:, None].expand(-1, kernel_size))
    path = path - path.mean()
    # A shift across the edge of the kernel changes the centre of mass again.
    for _ in range(10):
        distance = distance_to_path(pixels, path)
        # The profile of a line of this width, blurred by a Gaussian.
        kernel = torch.special.ndtr((width / 2 - distance) / std) - torch.special.ndtr((-width / 2 - distance) / std)
        kernel = kernel / kernel.sum()
        centre = (kernel * pixels).sum()
        if centre.abs() < 0.01:
            break
        path = path - centre
    return kernel


def distance_to_path(points: Tensor, path: Tensor) -> Tensor:
    """Distance of complex points (...) to the nearest point of a path through these corners, (...)."""
    start, step = path[:-1], path.diff()
    offset = points[..., None] - start
    along = ((offset * step.conj()).real / step.abs().square().clamp(min=1e-300)).clamp(0, 1)
    return (offset - along * step).abs().amin(-1)
