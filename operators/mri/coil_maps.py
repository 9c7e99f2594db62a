"""Receive coils: sensitivity maps, simulated or given, and coil images.

Spec    Simulated maps are the receive fields B_x - i B_y of loops on a cylinder about the field of view, each of two
        long wires with opposite currents, by the law of Biot and Savart: 1 / (w - a) - 1 / (w - b) in the complex
        plane. They are scaled to sum_c |S_c|^2 = 1 in every pixel, so that combined coils have the unit of one.
"""

import cmath
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.files import read_array
from invdiff.shapes import describe_shape

from ..core.base import Drawn, LinearOperator
from .kspace import as_complex, as_image

# Radius of the cylinder, in halves of the longer side of the image: the corners of a square lie at 1.41.
RADIUS = 1.5


class CoilArray(LinearOperator):
    """Base of operators with coils: x -> S_c x and its transpose."""

    complex_measurement = True
    maps: Tensor | None
    complex_image: bool

    def _set_coils(self, coils: int | None, maps: str | Path | Tensor | np.ndarray | None, default: int) -> None:
        if coils is not None and maps is not None:
            raise ValueError("mri: give coils, to simulate their maps, or maps, got both")
        if coils is not None and coils < 1:
            raise ValueError(f"mri: coils must be an integer >= 1, got {coils}")
        # Real and imaginary part as two reals: casting a module to a real precision would drop the imaginary part.
        self.register_buffer("maps", None if maps is None else torch.view_as_real(given_maps(maps)))
        self.coils = (coils or default) if self.maps is None else self.maps.shape[1]
        self._simulated: dict[tuple, Tensor] = {}  # a pure function of size, precision and device; kept for speed

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        given = self.maps is not None or self.coils == 1
        return {**super().drawn, **({} if given else {"maps": Drawn("operator.maps=FILE", "coils")})}

    def maps_of(self, size: tuple[int, ...], like: Tensor) -> Tensor:
        """Sensitivity maps for images of this (H, W), complex (1 or B, coils, H, W), in the precision of `like`."""
        precision = like.real.dtype
        if self.maps is not None:
            reason = self._maps_mismatch(size)
            if reason is not None:
                raise ValueError(reason)
            return torch.view_as_complex(self.maps.to(like.device, precision))
        key = (size, precision, like.device)
        if key not in self._simulated:
            with torch.inference_mode(False):  # a kept tensor must serve a later call that differentiates
                maps = torch.view_as_real(simulated_maps(self.coils, size)).to(like.device, precision)
                self._simulated[key] = torch.view_as_complex(maps)
        return self._simulated[key]

    def coil_images(self, x: Tensor) -> Tensor:
        """S_c x of each coil, complex (B, coils, H, W)."""
        return self.maps_of(tuple(x.shape[-2:]), x) * as_complex(x)

    def combined(self, z: Tensor) -> Tensor:
        """The transpose of `coil_images`: sum_c conj(S_c) z_c as an image."""
        maps = self.maps_of(tuple(z.shape[-2:]), z)
        return as_image((maps.conj() * z).sum(1, keepdim=True), self.complex_image)

    def sensitivity(self, size: tuple[int, ...], like: Tensor) -> Tensor:
        """sum_c |S_c|^2, (1 or B, 1, H, W); one for simulated maps."""
        return self.maps_of(size, like).abs().square().sum(1, keepdim=True)

    def _evened(self, x: Tensor) -> Tensor:
        """x / sum_c |S_c|^2, zero where no coil is sensitive."""
        power = self.sensitivity(tuple(x.shape[-2:]), x)
        return torch.where(power > 0, x / power.where(power > 0, 1), 0)

    def _maps_mismatch(self, size: tuple[int, ...]) -> str | None:
        if self.maps is None or tuple(self.maps.shape[-3:-1]) == tuple(size):
            return None
        own = describe_shape(tuple(self.maps.shape[-3:-1]))
        return f"mri: the sensitivity maps are {own} pixels, the image {describe_shape(size)}"


def simulated_maps(coils: int, size: tuple[int, ...]) -> Tensor:
    """complex128 (1, coils, H, W), the coils evenly around the image, the first at its right."""
    if coils == 1:
        return torch.ones(1, 1, *size, dtype=torch.complex128)
    half = max(size) / 2
    y, x = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / half for n in size)
    w = torch.complex(x.expand(size), y[:, None].expand(size))
    fields = []
    for coil in range(coils):
        # Narrower than their distance: the fields of touching loops cancel in the sum, and two loops would be equal.
        middle, reach = 2 * math.pi * coil / coils, math.pi / (coils + 1)
        a, b = (cmath.rect(RADIUS, middle + side * reach) for side in (1, -1))
        fields.append((a - b) / ((w - a) * (w - b)))
    maps = torch.stack(fields)
    return (maps / maps.abs().square().sum(0).sqrt())[None]


def given_maps(maps: str | Path | Tensor | np.ndarray) -> Tensor:
    """complex64 (1 or B, coils, H, W), from a file or an array (coils, H, W) or (B, coils, H, W)."""
    array = read_array(maps, "mri: maps", "maps") if isinstance(maps, (str, Path)) else maps
    array = torch.as_tensor(array)
    if array.dim() not in (3, 4):
        raise ValueError(
            f"mri: maps must be (coils, H, W) or (B, coils, H, W), complex, got {describe_shape(tuple(array.shape))}"
        )
    array = array.to(torch.complex64).reshape(-1, *array.shape[-3:])
    if not array.isfinite().all():
        bad = int((~array.isfinite()).sum())
        raise ValueError(
            f"mri: maps must be finite, got {bad} NaN or infinite value(s); set them to 0 where no coil is sensitive"
        )
    return array
