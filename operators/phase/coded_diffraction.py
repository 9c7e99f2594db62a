"""Coded diffraction: Fourier magnitudes of the image behind several known masks.

Model   y_l = |F P (D_l x)| for l = 1..L and each channel: D_l multiplies by a complex mask, P pads with zeros, F is the
        orthonormal Fourier transform with frequency zero in the centre. The gradient of a magnitude that is zero is
        set to zero.
Shapes  x (B, C, H, W) -> y (B, C, L, padded H, padded W), amplitudes (not intensities) in image units.
Paper   Candès, Li, Soltanolkotabi, Phase retrieval from coded diffraction patterns, 2015, for the masks; each has
        E|D|^2 = 1, so that y_l has the norm of x on average. No factor 1 / sqrt(L): each mask is another exposure.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from invdiff.shapes import describe_shape

from ..core.base import Drawn, Operator, Variants
from .phase_retrieval import centred_fourier, check_oversampling, image_length, padded_length

MODULATIONS = ("uniform", "quaternary", "octanary")


class CodedDiffraction(Operator):
    """Amplitudes of L diffraction patterns; for L >= 2 they determine almost every image up to its sign.

    masks         their number L, or the masks of an experiment, complex (L, H, W) or one set per image, (B, L, H, W)
    modulation    values of drawn masks: `uniform`, a phase in [0, 2 pi); `quaternary`, one of 1, -1, i, -i;
                  `octanary`, one of those times sqrt(1/2), or sqrt(3) in one pixel of five
    oversampling  padded size over image size along each axis, >= 1
    seed          determines the drawn masks, for all images and channels
    """

    per_image = ("given",)
    given: Tensor | None

    def __init__(
        self,
        *,
        masks: int | Tensor = 4,
        modulation: str = "uniform",
        oversampling: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if modulation not in MODULATIONS:
            raise ValueError(
                f"coded_diffraction: modulation must be one of {', '.join(MODULATIONS)}, got {modulation!r}"
            )
        given = None
        if isinstance(masks, Tensor):
            if masks.dim() not in (3, 4):
                raise ValueError(
                    f"coded_diffraction: masks must be (L, H, W) or (B, L, H, W), got {describe_shape(masks.shape)}"
                )
            given = masks.to(torch.complex64).reshape(-1, 1, *masks.shape[-3:])
        elif masks < 1:
            raise ValueError(f"coded_diffraction: masks must be an integer >= 1, got {masks}")
        self.register_buffer("given", given)
        self.masks = masks if isinstance(masks, int) else masks.shape[-3]
        self.modulation, self.seed = modulation, seed
        self.oversampling = check_oversampling("coded_diffraction", oversampling)
        self._drawn: dict[tuple, Tensor] = {}  # masks are a pure function of the size; drawn once for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {"masks": Drawn("")} if self.given is None else {}

    def masks_of(self, x: Tensor) -> Tensor:
        """The masks for these images, complex (1 or B, 1, L, H, W), in their precision and on their device."""
        size, dtype = tuple(x.shape[-2:]), x.dtype.to_complex()
        if self.given is not None:
            reason = self.mismatch(tuple(x.shape[1:]))
            if reason is not None:
                raise ValueError(reason)
            return self.given.to(x.device, dtype)
        key = (size, dtype, x.device)
        if key not in self._drawn:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                self._drawn[key] = self._draw(size).to(dtype).to(x.device)
        return self._drawn[key]

    def _draw(self, size: tuple[int, ...]) -> Tensor:
        """complex128; mask l does not depend on L."""
        masks = []
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.masks):
            if self.modulation == "uniform":
                turns = torch.rand(size, generator=generator, dtype=torch.float64)
            else:
                turns = torch.randint(4, size, generator=generator) / 4
            gain = torch.ones(size, dtype=torch.float64)
            if self.modulation == "octanary":
                gain = gain.where(torch.rand(size, generator=generator) >= 0.2, math.sqrt(6)) * math.sqrt(0.5)
            masks.append(torch.polar(gain, 2 * math.pi * turns.double()))
        return torch.stack(masks)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self._fields(x).abs()

    def _fields(self, x: Tensor) -> Tensor:
        """The complex fields, linear in x, whose magnitude is y."""
        return centred_fourier(self.masks_of(x) * x[:, :, None], self.oversampling)

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *size = image_shape
        return channels, self.masks, *(padded_length(n, self.oversampling) for n in size)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(measurement_shape) != 4 or measurement_shape[1] != self.masks:
            return None
        sizes = [image_length(n, self.oversampling) for n in measurement_shape[-2:]]
        return None if None in sizes else (measurement_shape[0], *(n for n in sizes if n))

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if self.given is not None and self.given.shape[-2:] != torch.Size(shape[-2:]):
            return (
                f"coded_diffraction: the masks are {describe_shape(self.given.shape[-2:])} pixels, "
                f"the image {describe_shape(shape[-2:])}"
            )
        return None

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        """The nearer sign of each channel of each image; masks leave no other ambiguity."""
        opposed = (x * reference).sum((-2, -1), keepdim=True) < 0
        return torch.where(opposed, -x, x)

    def first_guess(self, y: Tensor) -> Tensor | None:
        """Error reduction, 100 iterations: measured amplitudes, estimated phases, values >= 0."""
        shape = self.image_shape(tuple(y.shape[1:]))
        if shape is None:
            return None
        x = torch.full((y.shape[0], *shape), 0.5, dtype=y.dtype, device=y.device)
        masks = self.masks_of(x)
        weight = (masks.real**2 + masks.imag**2).sum(2)
        weight = weight.where(weight > 0, 1)  # a pixel that every mask blocks stays black
        amplitude = y.clamp(min=0)
        for _ in range(100):
            fields = torch.fft.ifftshift(amplitude * self._fields(x).sgn(), dim=(-2, -1))
            patches = torch.fft.ifft2(fields, norm="ortho")[..., : shape[-2], : shape[-1]]
            x = ((masks.conj() * patches).real.sum(2) / weight).clamp(min=0)
        return x

    @classmethod
    def example(cls) -> tuple["CodedDiffraction", tuple[int, ...]]:
        return cls(masks=2), (1, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        masks = torch.randn(3, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)
        return {
            "example": cls.example(),
            "quaternary": (cls(masks=1, modulation="quaternary", oversampling=2.0), (3, 7, 6)),
            "octanary": (cls(masks=3, modulation="octanary"), (1, 7, 6)),
            "masks-per-image": (cls(masks=masks, oversampling=1.5), (1, 7, 6)),
        }
