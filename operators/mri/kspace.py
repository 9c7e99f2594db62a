"""k-space: the centred Fourier transform, complex images as two channels, and sampling masks.

Spec    By default transform and inverse are orthonormal, with the origin of image and k-space in the middle, at index
        n // 2 of even and odd n alike, as in fastMRI, InverseBench and deepinv. Masks of lines along the columns (phase
        encoding along the width) hold floor(width / acceleration) lines, floor(center_fraction * width) of them the
        fully sampled centre, as in InverseBench; `equispaced` has the same number, unlike theirs.
Paper   `gaussian`: the density of Schlemper et al. (2017), arXiv:1704.02422, a Gaussian of width / 10 with a floor.
        `radial`: spokes at golden-angle steps, Winkelmann et al. (2007), on the Cartesian grid.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invdiff.files import as_measured, mask_values
from invdiff.shapes import describe_shape

from ..core.base import Drawn, LinearOperator

PATTERNS = ("random", "equispaced", "gaussian", "radial")
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2


class Convention(NamedTuple):
    """Where the origins are, in the middle or in the first entry, and where the factor 1 / (H W) is."""

    image_centred: bool = True
    kspace_centred: bool = True
    norm: str = "ortho"

    def scale(self, size: tuple[int, ...]) -> float:
        """The transform of an (H, W) image in units of the orthonormal one."""
        return (size[-2] * size[-1]) ** {"ortho": 0.0, "backward": 0.5, "forward": -0.5}[self.norm]


# By the expression of NumPy that makes k-space of an image: numpy is fft2(x), fftshift is fftshift(fft2(x)),
# ifftshift is fft2(ifftshift(x)), and centred shifts both.
ORIGINS = {"centred": (True, True), "numpy": (False, False), "fftshift": (False, True), "ifftshift": (True, False)}
NORMS = {"ortho": "ortho", "backward": "forward", "forward": "backward"}  # that of the transform: that of its transpose
CENTRED = Convention()


def as_convention(fft: str, norm: str) -> Convention:
    if fft not in ORIGINS:
        raise ValueError(f"mri: fft must be one of {', '.join(ORIGINS)}, got {fft!r}")
    if norm not in NORMS:
        raise ValueError(f"mri: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return Convention(*ORIGINS[fft], norm)


def to_kspace(x: Tensor, convention: Convention = CENTRED) -> Tensor:
    """Images (..., H, W) -> k-space, complex."""
    axes = (-2, -1)
    k = torch.fft.fft2(torch.fft.ifftshift(x, axes) if convention.image_centred else x, norm=convention.norm)
    return torch.fft.fftshift(k, axes) if convention.kspace_centred else k


def from_kspace(y: Tensor, convention: Convention = CENTRED) -> Tensor:
    """k-space (..., H, W) -> complex images: the conjugate transpose of `to_kspace`, its inverse where orthonormal."""
    axes = (-2, -1)
    k = torch.fft.ifftshift(y, axes) if convention.kspace_centred else y
    x = torch.fft.ifft2(k, norm=NORMS[convention.norm])
    return torch.fft.fftshift(x, axes) if convention.image_centred else x


def negated(kspace: Tensor, convention: Convention = CENTRED) -> Tensor:
    """k-space with the values at k and -k exchanged."""
    odd = [n % 2 if convention.kspace_centred else 0 for n in kspace.shape[-2:]]
    return kspace.flip(-2, -1).roll((1 - odd[0], 1 - odd[1]), (-2, -1))


def as_complex(x: Tensor) -> Tensor:
    """Images of one channel unchanged, of two channels (real and imaginary part) as one complex channel."""
    return torch.complex(x[:, :1], x[:, 1:]) if x.shape[1] == 2 else x


def as_image(z: Tensor, complex_image: bool) -> Tensor:
    """(B, 1, H, W) complex -> the image: real and imaginary part as two channels, or the real part alone."""
    return torch.cat([z.real, z.imag], 1) if complex_image else z.real


def channel_mismatch(channels: int, complex_image: bool) -> str | None:
    if complex_image and channels != 2:
        return f"mri: complex_image=true requires 2 channels, real and imaginary part, got {channels}"
    if not complex_image and channels != 1:
        hint = "; set complex_image=true for a real and an imaginary part" if channels == 2 else ""
        return f"mri: a real image must have 1 channel, got {channels}{hint}"
    return None


# -- masks -------------------------------------------------------------------------------------------------------------


class CartesianSampling(LinearOperator):
    """Base of operators that sample k-space on its grid, by a mask that is given or drawn once per image size."""

    complex_measurement = True
    mask: Tensor | None

    def _set_sampling(
        self,
        acceleration: float | None,
        center_fraction: float,
        pattern: str,
        mask: str | Path | Tensor | np.ndarray | None,
        seed: int,
        complex_image: bool,
        fft: str,
        norm: str,
    ) -> None:
        self.fft, self.norm, self.convention = fft, norm, as_convention(fft, norm)
        if mask is not None and acceleration is not None:
            raise ValueError("mri: give acceleration, to draw a mask, or mask, got both")
        self.acceleration = 4.0 if acceleration is None else acceleration
        self.center_fraction, self.pattern, self.seed = center_fraction, pattern, seed
        self.complex_image = complex_image
        check_sampling(self.acceleration, center_fraction, pattern)
        self.register_buffer("mask", None if mask is None else given_mask(mask))
        self._drawn: dict[tuple, Tensor] = {}  # masks are a pure function of the size; drawn once for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        given = self.mask is not None
        return {**super().drawn, **({} if given else {"mask": Drawn("operator.mask=FILE", rule=("acceleration",))})}

    def mask_of(self, size: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """The sampled positions of k-space of this (H, W): bool (1 or B, 1, H, W)."""
        if self.mask is not None:
            height, width = self.mask.shape[-2:]
            if width != size[1] or height not in (1, size[0]):
                own = f"{width} lines" if height == 1 else describe_shape((height, width))
                raise ValueError(f"mri: the mask is {own}, the image {describe_shape(size)}")
            return self.mask.to(device).expand(-1, -1, *size)
        key = (size, torch.device(device))
        if key not in self._drawn:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                generator = torch.Generator().manual_seed(self.seed)
                drawn = draw_mask(size, self.acceleration, self.center_fraction, self.pattern, generator)
                if not self.convention.kspace_centred:
                    drawn = torch.fft.ifftshift(drawn, (-2, -1))
                self._drawn[key] = drawn.to(device)
        return self._drawn[key]

    def _sampled(self, y: Tensor) -> Tensor:
        """y with zeros at unsampled positions; by `where` and not by a product, for y may be NaN there."""
        return torch.where(self.mask_of(tuple(y.shape[-2:]), y.device), y, 0)

    def measured(self, measurement_shape: tuple[int, ...]) -> Tensor:
        return self.mask_of(measurement_shape[-2:], "cpu" if self.mask is None else self.mask.device)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return 1, *image_shape[1:]

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2 if self.complex_image else 1, *measurement_shape[-2:])

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        try:
            self.mask_of(tuple(shape[-2:]))
        except ValueError as error:
            return str(error)
        return channel_mismatch(shape[0], self.complex_image)


def check_sampling(acceleration: float, center_fraction: float, pattern: str) -> None:
    if not 1 <= acceleration < math.inf:
        raise ValueError(f"mri: acceleration must be >= 1, got {acceleration}")
    if not 0 <= center_fraction <= 1:
        raise ValueError(f"mri: center_fraction must be a fraction of k-space in [0, 1], got {center_fraction}")
    if pattern not in PATTERNS:
        raise ValueError(f"mri: pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")


def draw_masks(
    shape: tuple[int, ...], acceleration: float, center_fraction: float, pattern: str, seed: int, images: int
) -> Tensor:
    """A different mask for each of `images` images of this (C, H, W): bool (images, 1, H, W)."""
    check_sampling(acceleration, center_fraction, pattern)
    generator = torch.Generator().manual_seed(seed)
    size = tuple(shape[-2:])
    return torch.cat([draw_mask(size, acceleration, center_fraction, pattern, generator) for _ in range(images)])


def draw_mask(
    size: tuple[int, ...], acceleration: float, center_fraction: float, pattern: str, generator: torch.Generator
) -> Tensor:
    """bool (1, 1, H, W), True at sampled positions of k-space."""
    if pattern == "radial":
        return radial_mask(size, acceleration, center_fraction, generator)[None, None]
    lines = line_mask(size[1], acceleration, center_fraction, pattern, generator)
    return lines.expand(1, 1, *size).clone()


def line_mask(
    width: int, acceleration: float, center_fraction: float, pattern: str, generator: torch.Generator
) -> Tensor:
    """bool (width,), True at sampled columns; an exact count, at least one."""
    budget = max(1, whole(width / acceleration))
    centre = whole(center_fraction * width)
    if centre > budget:
        raise ValueError(
            f"mri: center_fraction={center_fraction} is {centre} of {width} lines, but acceleration={acceleration} "
            f"allows {budget}; lower one of them"
        )
    sampled = torch.zeros(width, dtype=torch.bool)
    first = width // 2 - centre // 2
    sampled[first : first + centre] = True
    outer = (~sampled).nonzero()[:, 0]
    wanted = budget - centre
    if pattern == "equispaced":
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        chosen = ((torch.arange(wanted) + offset) * len(outer) / max(wanted, 1)).long()
    else:
        weights = torch.ones(len(outer), dtype=torch.float64)
        if pattern == "gaussian":
            weights = torch.exp(-0.5 * ((outer - width // 2) / (width / 10)) ** 2) + 1 / (2 * acceleration)
        # Sampling without replacement with these weights: the smallest of exponential waiting times.
        waiting = -torch.rand(len(outer), generator=generator, dtype=torch.float64).log() / weights
        chosen = waiting.argsort()[:wanted]
    sampled[outer[chosen]] = True
    return sampled


def radial_mask(
    size: tuple[int, ...], acceleration: float, center_fraction: float, generator: torch.Generator
) -> Tensor:
    """bool (H, W): spokes through the centre, up to H W / acceleration positions.

    center_fraction  diameter of the fully sampled centre, as a fraction of the height and of the width
    """
    height, width = size
    budget = whole(height * width / acceleration)
    ky, kx = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size)
    centre = (2 * ky[:, None] / height) ** 2 + (2 * kx / width) ** 2 < center_fraction**2
    if centre.sum() > budget:
        raise ValueError(
            f"mri: center_fraction={center_fraction} is {int(centre.sum())} of {height * width} positions, but "
            f"acceleration={acceleration} allows {budget}; lower one of them"
        )
    spokes = 2 * (height + width)  # enough to reach every position
    start = math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    angles = start + GOLDEN_ANGLE * torch.arange(spokes)
    direction = torch.stack([angles.sin(), angles.cos()])
    direction = direction / direction.abs().amax(0)  # one position at each step along the steeper axis
    steps = torch.arange(-max(size), max(size) + 1)
    rows, columns = ((steps * axis[:, None]).round().long() + n // 2 for axis, n in zip(direction, size, strict=True))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # For each position the first spoke through it; spokes are nested, so that the budget is met to within one spoke.
    first = torch.full((height * width,), spokes)
    number = torch.arange(spokes)[:, None].expand_as(rows)
    first.scatter_reduce_(0, (rows * width + columns)[inside], number[inside], "amin")
    first[centre.flatten()] = -1
    reached = first.sort().values
    last = int(reached[budget]) if budget < len(reached) else spokes + 1
    return (first < max(last, 1)).reshape(height, width)  # at least one spoke


def given_mask(mask: str | Path | Tensor | np.ndarray) -> Tensor:
    """bool (1 or B, 1, 1 or H, W), from a file or an array, (W,), (H, W), (B, H, W) or (B, 1, H, W)."""
    array = mask_values(mask, "mri: mask")
    if array.ndim == 0 or array.ndim > 4 or (array.ndim == 4 and array.shape[1] != 1):
        raise ValueError(
            "mri: mask must be (W,), one value per line, or (H, W), (B, H, W) or (B, 1, H, W), "
            f"got {describe_shape(tuple(array.shape))}"
        )
    height = array.shape[-2] if array.ndim > 1 else 1
    sampled = torch.from_numpy(as_measured(array, "mri: mask")).reshape(-1, 1, height, array.shape[-1])
    if not sampled.flatten(1).any(1).all():
        raise ValueError("mri: mask must sample at least one position of each image")
    return sampled


def whole(number: float) -> int:
    """The floor, up to rounding errors of a product such as 0.29 * 100 = 28.999999999999996."""
    return math.floor(number + 1e-9)
