"""Phase retrieval: a camera in the far field measures the magnitude of the Fourier transform, without its phase.

Model   A x = |F P x| for each channel: P pads with zeros, F is the orthonormal Fourier transform with frequency zero in
        the centre. The gradient of a magnitude that is zero is set to zero.
Shapes  x (B, C, H, W) in [0, 1] -> y (B, C, padded H, padded W), amplitudes (not intensities) in image units; F
        preserves energy: y has the norm of x.
Spec    The "oversample 2" of the posterior-sampling papers pads a quarter of the image on each side, 256 to 384 pixels:
        `oversampling` 1.5 here. DAPS measures images in [0, 1], as here; DPS images in [-1, 1], 2x - 1, a different
        problem because of the padding.
"""

import math

import torch
from torch import Tensor

from ..core.base import Operator, Variants


class PhaseRetrieval(Operator):
    """Fourier amplitudes of the padded image.

    oversampling  padded size over image size along each axis, >= 1. At >= 2, the amplitudes determine almost every
                  image up to a rotation by 180 degrees, a shift and the sign, which `align` removes
    """

    # Largest fraction of the norm of an image that a shift may move over an edge: reconstructions are black there up to
    # noise. It reappears at the other edge, so that y changes by at most twice this fraction.
    border: float = 0.02

    def __init__(self, *, oversampling: float = 2.0) -> None:
        super().__init__()
        self.oversampling = check_oversampling("phase_retrieval", oversampling)

    def forward(self, x: Tensor) -> Tensor:
        return centred_amplitude(x, self.oversampling)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *size = image_shape
        return channels, *(padded_length(n, self.oversampling) for n in size)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(measurement_shape) != 3:
            return None
        channels, *padded = measurement_shape
        sizes = [image_length(n, self.oversampling) for n in padded]
        return None if None in sizes else (channels, *(n for n in sizes if n))

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        """The nearest of all rotations by 180 degrees, shifts and signs of each channel of each image.

        Only shifts that keep the image within its frame preserve A x; see `border`.
        """
        height, width = x.shape[-2:]
        turns = torch.stack([x, x.flip((-2, -1))], dim=2)  # (B, C, 2, H, W)
        # Inner products with the reference, for every circular shift: all candidates have the same norm, so that the
        # largest product is that of the nearest image.
        spectrum = torch.fft.rfft2(reference)[:, :, None] * torch.fft.rfft2(turns).conj()
        products = torch.fft.irfft2(spectrum, s=(height, width))
        if any(padded_length(n, self.oversampling) > n for n in (height, width)):  # otherwise every shift preserves A x
            allowed = lost_by_shift(turns) <= self.border**2
            products = torch.where(allowed, products, 0)
        products = products.flatten(2)
        best = products.abs().argmax(2, keepdim=True)  # (B, C, 1)
        turn, down, right = best // (height * width), best // width % height, best % width
        rows = (torch.arange(height, device=x.device) - down) % height  # (B, C, H)
        columns = (torch.arange(width, device=x.device) - right) % width
        turned = turns.take_along_dim(turn[..., None, None], dim=2).squeeze(2)
        moved = turned.take_along_dim(rows[..., None], dim=2).take_along_dim(columns[..., None, :], dim=3)
        return torch.where(products.gather(2, best)[..., None] < 0, -moved, moved)

    def first_guess(self, y: Tensor) -> Tensor | None:
        """Hybrid input-output, 200 iterations, then 50 of error reduction; support within the frame, values >= 0."""
        shape = self.image_shape(tuple(y.shape[1:]))
        if shape is None:
            return None
        # Both halves of the spectrum of a real image have equal amplitudes; their mean is less noisy.
        amplitude = torch.fft.ifftshift(y, dim=(-2, -1))
        mirrored = amplitude.flip((-2, -1)).roll((1, 1), (-2, -1))
        amplitude = ((amplitude + mirrored) / 2).clamp(min=0)[..., : y.shape[-1] // 2 + 1]
        size = y.shape[-2:]
        inside = torch.zeros(size, dtype=torch.bool, device=y.device)
        inside[: shape[-2], : shape[-1]] = True
        # One start for all images: a guess depends on its own measurement alone.
        start = torch.rand((1, *y.shape[1:]), generator=torch.Generator().manual_seed(0))
        x = torch.where(inside, start.to(y), 0).expand_as(y)
        for iteration in range(250):
            fitted = torch.fft.irfft2(amplitude * torch.fft.rfft2(x, norm="ortho").sgn(), s=size, norm="ortho")
            outside = x - 0.9 * fitted if iteration < 200 else torch.zeros_like(x)
            x = torch.where(inside & (fitted >= 0), fitted, outside)
        return x[..., : shape[-2], : shape[-1]]

    @classmethod
    def example(cls) -> tuple["PhaseRetrieval", tuple[int, ...]]:
        return cls(), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {"example": cls.example()} | {f"oversampling-{n}": (cls(oversampling=n), (3, 7, 6)) for n in (1.0, 1.5)}


def check_oversampling(name: str, value: float) -> float:
    if not 1 <= value < math.inf:
        raise ValueError(
            f"{name}: oversampling, padded size over image size along each axis, must be >= 1, got {value}"
        )
    return float(value)


def padded_length(length: int, oversampling: float) -> int:
    return math.floor(oversampling * length + 0.5)


def image_length(padded: int, oversampling: float) -> int | None:
    """The image size that is padded to this one, None where there is none."""
    near = round(padded / oversampling)
    return next((n for n in (near - 1, near, near + 1) if n > 0 and padded_length(n, oversampling) == padded), None)


def centred_fourier(x: Tensor, oversampling: float) -> Tensor:
    """Orthonormal Fourier transform of zero-padded images, frequency zero in the centre.

    Padding follows the image, for its position in the frame changes the phase alone.
    """
    size = tuple(padded_length(n, oversampling) for n in x.shape[-2:])
    return torch.fft.fftshift(torch.fft.fft2(x, s=size, norm="ortho"), dim=(-2, -1))


def centred_amplitude(x: Tensor, oversampling: float) -> Tensor:
    """`centred_fourier(x, oversampling).abs()`, from half of the spectrum, which is symmetric for a real image.

    With its gradient 1.8 times faster (128x128, one thread), which dominates the time of Markov chains.
    """
    height, width = (padded_length(n, oversampling) for n in x.shape[-2:])
    half = torch.fft.rfft2(x, s=(height, width), norm="ortho").abs()
    half = torch.fft.fftshift(half, dim=-2)
    negative = half[..., 1 : width // 2 + 1].flip((-2, -1))
    if height % 2 == 0:  # the lowest frequency of an even height mirrors onto itself
        negative = negative.roll(1, -2)
    return torch.cat([negative, half[..., : (width + 1) // 2]], dim=-1)


def lost_by_shift(x: Tensor) -> Tensor:
    """Fraction of the energy of (..., H, W) that each circular shift moves over an edge, shaped like x.

    [s, t] is the shift by s rows and t columns. A shift by s is also one by s - H: the smaller fraction counts.
    """
    energy = torch.nn.functional.pad(x.square().cumsum(-2).cumsum(-1), (1, 0, 1, 0))
    first = energy.flip((-2, -1))[..., :-1, :-1]  # rows and columns that do not wrap around
    rows, columns, total = first[..., :, :1], first[..., :1, :], first[..., :1, :1]
    parts = torch.stack([first, rows - first, columns - first, total - rows - columns + first])
    return (total - parts.amax(0)) / total.clamp(min=torch.finfo(x.dtype).tiny)
