"""Blur by a given kernel.

Model   A x = k * x, a true convolution as in scipy and deepinv: y[i] = sum_j k[j] x[i + c - j] with the centre
        c = size // 2 of the kernel, and a boundary rule for pixels outside the image. Exact adjoint, any kernel size.
        `CircularBlur`, of periodic images, has a closed-form pseudo-inverse, solve and decomposition in the basis of
        Hartley, V^T x = Re F x - Im F x with the unitary Fourier transform F. It is real and orthonormal: it preserves
        inner products and white noise.
Shapes  x (B, C, H, W) -> y (B, C, H, W), same unit where the kernel sums to one; the same kernel for all channels. With
        boundary=valid the scene goes on outside the frame: x is larger than y by the reach of the kernel on every side.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.fft import fft2, ifft2, irfft2, rfft2
from torch.nn.functional import pad

from invdiff.files import is_picture, read_grey
from invdiff.shapes import describe_shape, per_row

from ..core.base import LinearOperator, SameShape, SpectralOperator, Variants
from ..core.conjugate_gradients import conjugate_gradients
from ..core.separable import BLUR_BOUNDARIES, BOUNDARIES, fold

Kernel = str | Path | Tensor | np.ndarray


class FramedBlur(SameShape):
    """Base of blurs with a `boundary` rule: with `valid` the image is larger than y by the reach of the kernel."""

    of_scenes: ClassVar[Mapping[str, Any]] = {"boundary": "valid"}
    boundary: str
    kernel: Tensor

    def _margins(self) -> list[tuple[int, int]]:
        """Rows above and below, and columns left and right of the frame."""
        taps = self.kernel.shape[-2:] if self.boundary == "valid" else (1, 1)
        return [(n - 1 - n // 2, n // 2) for n in taps]

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        return image_shape[0], *(n - sum(m) for n, m in zip(image_shape[1:], self._margins(), strict=True))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape[0], *(n + sum(m) for n, m in zip(measurement_shape[1:], self._margins(), strict=True))

    def frame(self, x: Tensor) -> Tensor:
        (above, below), (left, right) = self._margins()
        return x[..., above : x.shape[-2] - below, left : x.shape[-1] - right]

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        least = tuple(sum(m) + 1 for m in self._margins())
        if all(n >= m for n, m in zip(shape[-2:], least, strict=True)):
            return None
        own, size = describe_shape(least), describe_shape(shape[-2:])
        return f"blur: boundary=valid requires images of {own} pixels or more, got {size}; use a smaller kernel"

    def first_guess(self, y: Tensor) -> Tensor:
        """y, which is better than the pseudo-inverse, for that amplifies noise; its edges go on in the margin."""
        (above, below), (left, right) = self._margins()
        return pad(y, (left, right, above, below), mode="replicate") if y.dim() == 4 else y


class Blur(FramedBlur, LinearOperator):
    """Convolution with a kernel of any size, even, odd or larger than the image.

    kernel     taps, (h, w) or one kernel per image, (B, h, w) or (B, 1, h, w): an array or a file
               (`invdiff.files`), unchanged, or a grey picture, scaled to sum one
    boundary   values outside the image: `reflect` (mirrored at the centre of the edge pixel), `symmetric` (at its outer
               side), `replicate`, `circular`, `zero`; or `valid`, as in every photograph: the image goes on, and y is
               the part of its blur that no made-up value enters. `frame` cuts images to that part
    normalise  divide the kernel by its sum, which must be > 0; with another sum than one it changes the brightness
    flip       rotate the kernel by 180 degrees, for kernels of a correlation (torch's Conv2d, as in DPS and DAPS)

    `CircularBlur` equals boundary="circular", for methods that need a decomposition.
    """

    per_image = ("kernel",)

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        boundary: str = "reflect",
        flip: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if boundary not in BLUR_BOUNDARIES:
            raise ValueError(f"blur: boundary must be one of {', '.join(BLUR_BOUNDARIES)}, got {boundary!r}")
        taps = as_kernel(kernel, flip, normalise)
        self.register_buffer("kernel", trimmed(taps) if boundary == "valid" else taps)
        self.boundary = boundary

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.kernel, self.boundary)

    def adjoint(self, y: Tensor) -> Tensor:
        return convolve_adjoint(y, self.kernel, self.boundary)

    def solve(self, b: Tensor, rho: float | Tensor) -> Tensor:
        if self.boundary not in ("circular", "valid"):
            return super().solve(b, rho)
        circular = CircularBlur(self.kernel)
        if self.boundary == "circular":
            return circular.solve(b, rho)
        level = per_row(rho, b)
        # Away from the margin A^T A is that of a periodic image.
        return conjugate_gradients(
            lambda x: self.adjoint(self(x)) + level * x, b, precondition=lambda r: circular.solve(r, rho)
        )

    def pinv(self, y: Tensor) -> Tensor:
        return CircularBlur(self.kernel).pinv(y) if self.boundary == "circular" else super().pinv(y)

    @classmethod
    def example(cls) -> tuple["Blur", tuple[int, ...]]:
        return cls(_example_kernel()), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "flip": (cls(_sharp_taps(1, 3, 2), flip=True), (1, 6, 7)),
            "larger-than-the-image": (cls(_sharp_taps(1, 25, 2)), (1, 8, 9)),
            "valid": (cls(_sharp_taps(3, 3, 4), boundary="valid"), (1, 8, 9)),
        } | {f"{name}-per-image": (cls(_sharp_taps(3, 4, 3), boundary=name), (1, 8, 9)) for name in BOUNDARIES}


class CircularBlur(SameShape, SpectralOperator):
    """Convolution of a periodic image; `kernel`, `flip` and `normalise` as in `Blur`."""

    per_image = ("kernel",)
    kernel: Tensor

    def __init__(self, kernel: Kernel | None = None, *, flip: bool = False, normalise: bool = False) -> None:
        super().__init__()
        self.register_buffer("kernel", as_kernel(kernel, flip, normalise))

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.kernel, "circular")

    def adjoint(self, y: Tensor) -> Tensor:
        return convolve_adjoint(y, self.kernel, "circular")

    def _transfer(self, like: Tensor) -> Tensor:
        """Fourier transform of the kernel, (1 or B, 1, H, W), equal at k and -k to the last bit but for conjugation."""
        transfer = fft2(wrap(self.kernel.to(like), like.shape[-2:]))
        return (transfer + opposite(transfer).conj()) / 2

    def singular_values(self, like: Tensor) -> Tensor:
        return self._transfer(like).abs()

    def vt(self, x: Tensor) -> Tensor:
        f = fft2(x, norm="ortho")
        return f.real - f.imag

    def v(self, z: Tensor) -> Tensor:
        return self.vt(z)  # Hartley's transform is its own inverse

    # A multiplies a frequency by a complex number: its modulus is the singular value, its phase belongs to U.

    def ut(self, y: Tensor) -> Tensor:
        f = self._transfer(y).sgn().conj() * fft2(y, norm="ortho")
        return f.real - f.imag

    def u(self, z: Tensor) -> Tensor:
        mirrored = opposite(z)
        f = torch.complex(z + mirrored, mirrored - z) / 2
        return ifft2(self._transfer(z).sgn() * f, norm="ortho").real

    def first_guess(self, y: Tensor) -> Tensor:
        return y  # better than the pseudo-inverse, which amplifies noise

    @classmethod
    def example(cls) -> tuple["CircularBlur", tuple[int, ...]]:
        return cls(_example_kernel()), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "even": (cls(_sharp_taps(1, 5, 4)), (3, 7, 6)),
            "per-image": (cls(_sharp_taps(4, 3, 25)), (1, 8, 9)),
        }


def _example_kernel() -> Tensor:
    """A kernel that every flip and transposition changes."""
    return torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.0, 0.5, 0.2, 0.0], [0.05, 0.0, 0.1, 0.05]])


def _sharp_taps(*shape: int) -> Tensor:
    """Lopsided kernels (B, h, w) that are well conditioned under every boundary rule."""
    taps = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    taps[:, shape[1] // 2, shape[2] // 2] += taps.abs().sum((-2, -1))
    return taps


# -- convolution -------------------------------------------------------------------------------------------------------


def convolve(x: Tensor, kernel: Tensor, boundary: str) -> Tensor:
    """k * x for images (B, C, H, W) and kernels (1 or B, 1, h, w), by the Fourier transform; linear in both.

    boundary  with `valid` the result is smaller, (B, C, H - h + 1, W - w + 1)
    """
    if len(kernel) not in (1, len(x)):
        raise ValueError(f"blur: a kernel is (h, w), or one per image; there are {len(kernel)} for {len(x)} images")
    h, w = kernel.shape[-2:]
    kernel = kernel.to(x)
    if boundary == "circular":
        size = x.shape[-2:]
        return irfft2(rfft2(x) * rfft2(wrap(kernel, size)), size)
    if boundary != "valid":
        x = extend(x, (h, w), boundary)
    height, width = x.shape[-2:]
    grid = (fast_length(height), fast_length(width))
    return irfft2(rfft2(x, grid) * rfft2(kernel, grid), grid)[..., h - 1 : height, w - 1 : width]


def convolve_adjoint(y: Tensor, kernel: Tensor, boundary: str) -> Tensor:
    """The transpose of `convolve` in x."""
    (height, width), (h, w) = y.shape[-2:], kernel.shape[-2:]
    kernel = kernel.to(y)
    if boundary == "circular":
        return irfft2(rfft2(y) * rfft2(wrap(kernel, (height, width))).conj(), (height, width))
    grid = (fast_length(height + h - 1), fast_length(width + w - 1))
    product = rfft2(pad(y, (w - 1, 0, h - 1, 0)), grid) * rfft2(kernel, grid).conj()
    whole = irfft2(product, grid)[..., : height + h - 1, : width + w - 1]
    return whole if boundary == "valid" else extend_adjoint(whole, (h, w), boundary)


def extend(x: Tensor, taps: tuple[int, ...], boundary: str) -> Tensor:
    """An image with the pixels around it that a kernel of this size needs: (.., H + h - 1, W + w - 1)."""
    for dim, count in zip((-2, -1), taps, strict=True):
        before, after = (x.index_select(dim, i) for i in _outside(x.shape[dim], count, boundary, x.device))
        if boundary == "zero":
            before, after = torch.zeros_like(before), torch.zeros_like(after)
        x = torch.cat([before, x, after], dim)
    return x


def extend_adjoint(z: Tensor, taps: tuple[int, ...], boundary: str) -> Tensor:
    """The transpose of `extend`: outer values are added to the pixels that they were copied from."""
    for dim, count in zip((-2, -1), taps, strict=True):
        length = z.shape[dim] - count + 1
        before, inside, after = z.split([count - 1 - count // 2, length, count // 2], dim)
        if boundary == "zero":
            z = inside
        else:
            left, right = _outside(length, count, boundary, z.device)
            z = inside.index_add(dim, left, before).index_add(dim, right, after)
    return z


def _outside(length: int, taps: int, boundary: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of an axis that are copied before its first and after its last one."""
    before = torch.arange(taps // 2 + 1 - taps, 0, device=device)
    after = torch.arange(length, length + taps // 2, device=device)
    return fold(before, length, boundary), fold(after, length, boundary)


def wrap(kernel: Tensor, size: tuple[int, ...]) -> Tensor:
    """A kernel on the grid of a periodic image, its centre on the first pixel: (.., h, w) -> (.., H, W)."""
    for dim, length in zip((-2, -1), size, strict=True):
        taps = kernel.shape[dim]
        positions = (torch.arange(taps, device=kernel.device) - taps // 2) % length
        shape = list(kernel.shape)
        shape[dim] = length
        kernel = kernel.new_zeros(shape).index_add(dim, positions, kernel)
    return kernel


def opposite(spectrum: Tensor) -> Tensor:
    """The value at -k for every frequency k."""
    return spectrum.flip(-2, -1).roll((1, 1), (-2, -1))


def fast_length(n: int) -> int:
    """The smallest length >= n without prime factors above 5, for fast Fourier transforms."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


# -- kernels -----------------------------------------------------------------------------------------------------------


def as_kernel(kernel: Kernel | None, flip: bool = False, normalise: bool = False) -> Tensor:
    """A kernel, array or file, as float32 (1 or B, 1, h, w), with sum one if `normalise`."""
    if kernel is None:
        raise ValueError(
            "blur: kernel is required; give operator.kernel=kernel.npy (or .pt, .png), or an array of taps (h, w)"
        )
    if isinstance(kernel, (str, Path)):
        kernel = read_kernel(kernel)
    kernel = torch.as_tensor(kernel)
    if kernel.is_complex():
        raise ValueError("blur: kernel must be real, got complex taps")
    if kernel.dim() not in (2, 3, 4) or (kernel.dim() == 4 and kernel.shape[1] != 1) or not kernel.numel():
        raise ValueError(f"blur: kernel must be (h, w), (B, h, w) or (B, 1, h, w), got {describe_shape(kernel.shape)}")
    kernel = kernel.detach().float().reshape(-1, 1, *kernel.shape[-2:])
    if not kernel.isfinite().all():
        raise ValueError("blur: kernel must be finite, got NaN or infinity")
    if not kernel.flatten(1).any(1).all():
        raise ValueError("blur: kernel must have a tap other than 0")
    if normalise:
        total = kernel.double().sum((-2, -1), keepdim=True)
        if not (total > 1e-6 * kernel.abs().double().sum((-2, -1), keepdim=True)).all():
            raise ValueError(f"blur: normalise=true requires a kernel with a sum > 0, got {float(total.min()):.3g}")
        kernel = (kernel / total).float()
    return kernel.flip(-2, -1) if flip else kernel.clone()


def read_kernel(file: str | Path) -> np.ndarray:
    """A kernel from a file: arrays unchanged, pictures as grey values scaled to sum one."""
    taps = read_grey(file, "blur: kernel", "kernel")
    if not is_picture(file):
        return taps
    total = taps.sum((-2, -1), dtype=np.float64, keepdims=True)
    return taps / np.where(total == 0, 1, total)


def trimmed(kernel: Tensor) -> Tensor:
    """Kernels without the outer rows and columns that are zero in all of them, as many on both sides of the centre."""
    for dim in (-2, -1):
        taps = kernel.shape[dim]
        used = kernel.movedim(dim, 0).flatten(1).any(1).nonzero()[:, 0]
        reach = int((used - taps // 2).abs().max())
        first = max(taps // 2 - reach, 0)
        kernel = kernel.narrow(dim, first, min(taps // 2 + reach + 1, taps) - first)
    return kernel.contiguous()
