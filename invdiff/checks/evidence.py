"""What the checks of one measurement look at: y, and A of typical images of the prior."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from invdiff.findings import Finding
from invdiff.operators import Operator
from invdiff.priors import Prior
from invdiff.problem import InverseProblem

Check = Callable[["Evidence"], Iterator[Finding]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """One measurement and what typical images of the prior give in its place.

    problem   of one image
    prior     for its range
    images    (K, C, H, W) typical images, see `typical_images`
    clean     (K, ...) A of these
    extremes  (3, ...) A of the constant images at both ends of the prior's range and of a rough one, see `rough_image`;
              None where calls are dear
    """

    problem: InverseProblem
    prior: Prior
    images: Tensor
    clean: Tensor
    extremes: Tensor | None

    @property
    def operator(self) -> Operator:
        return self.problem.operator

    @cached_property
    def given(self) -> Tensor:
        """y as it was given, without batch axis, in single precision, 0 for NaN."""
        y = self.problem.y[0]
        return torch.nan_to_num(y.to(torch.complex64 if y.is_complex() else torch.float32))

    @cached_property
    def observed(self) -> Tensor:
        """Which entries of y count, bool, shaped like y."""
        mask = self.problem.observed
        shape = self.problem.y.shape[1:]
        return torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu().expand(1, *shape)[0]

    @cached_property
    def y(self) -> Tensor:
        """The entries that count, (m,)."""
        return self.given[self.observed]

    def counted(self, values: Tensor) -> Tensor:
        """The entries that count of other measurements, (K, ...) -> (K, m)."""
        return values[:, self.observed]

    @cached_property
    def noise_variance(self) -> Tensor:
        """E|noise|^2 of each entry that counts, (m,), as the stated noise has it where A(x) = y."""
        shape = self.observed.shape
        return self.problem.noise.variance(self.given[None]).expand(1, *shape)[0][self.observed].cpu()

    @property
    def is_image(self) -> bool:
        """Whether y is a real array with rows and columns, (..., H, W), large enough to look at."""
        return not self.given.is_complex() and self.given.dim() >= 2 and min(self.given.shape[-2:]) >= 8


def rms(values: Tensor) -> float:
    return float(values.abs().double().square().mean().sqrt()) if values.numel() else 0.0


def alike(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two measurements, its real part."""
    scale = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float((a.flatten().conj() * b.flatten()).sum().real) / scale if scale > 0 else 0.0


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two real arrays."""
    return alike(a - a.mean(), b - b.mean())
