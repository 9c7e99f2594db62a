"""An inverse problem: forward model (operator), likelihood (noise) and measurement y; and simulated measurements."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from invdiff.operators import GaussianNoise, LinearOperator, Noise, Operator, SpectralOperator, as_operator
from invdiff.operators.core.base import kind_of_measurement, of_black
from invdiff.priors import Codec
from invdiff.shapes import describe_shape, row_gradient, shallow_copy
from invdiff.streams import generator


class Unsupported(ValueError):
    """A sampler cannot solve this problem with this prior; the message names the missing traits."""


class InverseProblem:
    """y = A(x) + noise, for a batch of B independent images.

    operator     an `Operator`, a `deepinv` physics or any callable (see `as_operator`)
    noise        the likelihood p(y | A x), or a number, the standard deviation of Gaussian noise
    y            measurements (B, ...), real or complex, a tensor or what numpy takes for an array; see `as_measurement`
    image_shape  (C, H, W) of the images; needed only where the operator does not determine it from y

    Raises ValueError where y holds NaN or infinity, where the number of images differs between y and the parameters of
    operator or noise, where y cannot have come from this noise (photon counts below zero), and where A of an image is
    not shaped like y. An operator without `measurement_shape` measures one black image for this, twice: results that
    differ, of a function that adds noise, are refused too.
    """

    def __init__(
        self,
        operator: Any,
        noise: Noise | float,
        y: Any,
        *,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.operator: Operator = as_operator(operator)
        self.noise = as_noise(noise)
        self.y = y = as_measurement(y)
        if y.dim() < 2:
            raise ValueError(f"a measurement has a batch axis and at least one more, got shape {tuple(y.shape)}")
        if y.shape[0] == 0:
            raise ValueError(f"the measurement holds no image, its shape is {tuple(y.shape)}")
        found = self.operator.image_shape(tuple(y.shape[1:]))
        if found is None and image_shape is None:
            raise ValueError(
                f"{type(self.operator).__name__} does not determine the image shape from y: give image_shape=(C, H, W)"
            )
        if found is not None and image_shape is not None and tuple(found) != tuple(image_shape):
            raise ValueError(
                f"the measurement belongs to images of {describe_shape(found)}, "
                f"but image_shape is {describe_shape(image_shape)}"
            )
        shape = found if found is not None else image_shape
        assert shape is not None  # the first check leaves no other case
        self.image_shape = tuple(shape)
        self._check()

    def _check(self) -> None:
        name, y = type(self.operator).__name__, self.y
        reason = self.operator.mismatch(self.image_shape)
        if reason is not None:
            raise ValueError(reason)
        if self.operator.images not in (1, self.images):
            raise ValueError(f"the operator has parameters for {self.operator.images} images, y has {self.images}")
        observed = self.observed
        values = y if observed is None else torch.where(observed, y, 0)
        if not values.isfinite().all():
            bad = int((~values.isfinite()).sum())
            raise ValueError(f"the measurement holds {bad} NaN or infinite value(s); mask them out or repair them")
        reason = self.noise.mismatch(y, observed)
        if reason is not None:
            raise ValueError(reason)
        shape, is_complex = self._kind_of_measurement()
        if is_complex != y.is_complex():
            kinds = {True: "complex", False: "real"}
            raise ValueError(
                f"{name} measures {kinds[is_complex]} numbers, "
                f"but y is {kinds[y.is_complex()]}, {str(y.dtype).removeprefix('torch.')}"
            )
        if shape != tuple(y.shape[1:]):
            raise ValueError(
                f"{name} measures {describe_shape(shape)} from an image of {describe_shape(self.image_shape)}, "
                f"but y is {describe_shape(y.shape[1:])}"
            )

    def _kind_of_measurement(self) -> tuple[tuple[int, ...], bool]:
        """See `kind_of_measurement`. Raises ValueError where two measurements of one image differ beyond rounding."""
        if self.operator.measurement_shape(self.image_shape) is not None:
            return kind_of_measurement(self.operator, self.image_shape)
        first, again = (of_black(self.operator, self.image_shape, self.y.device) for _ in range(2))
        if first.shape == again.shape and not torch.allclose(first, again, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{type(self.operator).__name__} gives another measurement of the same image at the second call; it "
                "must be deterministic: draw random choices once, from a seed, and give noise to the problem"
            )
        return tuple(first.shape), first.is_complex()

    @property
    def codec(self) -> Codec | None:
        """Of the codes that are unknown (`invdiff.latent`); None: images are."""
        return None

    @property
    def images(self) -> int:
        """B, the number of images."""
        return self.y.shape[0]

    @property
    def observed(self) -> Tensor | None:
        """Mask of the measured entries of y, None where all were measured."""
        mask = self.operator.measured(tuple(self.y.shape[1:]))
        return None if mask is None else mask.to(self.y.device)

    @property
    def linear_operator(self) -> LinearOperator:
        """The operator, if it is linear; otherwise raises Unsupported."""
        if not self.operator.linear:
            raise Unsupported(f"{type(self.operator).__name__} is not linear")
        return cast(LinearOperator, self.operator)

    @property
    def svd(self) -> SpectralOperator:
        """The operator, if its singular value decomposition is available; otherwise raises Unsupported."""
        if not self.operator.spectral:
            raise Unsupported(f"{type(self.operator).__name__} has no singular value decomposition")
        return cast(SpectralOperator, self.operator)

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of Gaussian noise, () or (B,), of a complex number where y is complex.

        Raises Unsupported for any other noise.
        """
        if not self.noise.gaussian:
            raise Unsupported(f"{type(self.noise).__name__} is not Gaussian")
        return cast(GaussianNoise, self.noise).sigma

    @property
    def noise_variance(self) -> Tensor:
        """Variance of Gaussian noise in each real number of y, () or (B,): half of `noise_std`^2 where y is complex."""
        return self.noise_std**2 / (2 if self.y.is_complex() else 1)

    @cached_property
    def first_guess(self) -> Tensor | None:
        """Images from y without a prior, (B, C, H, W), by the operator; None where it has no such method."""
        observed = self.observed
        with torch.no_grad():
            return self.operator.first_guess(self.y if observed is None else torch.where(observed, self.y, 0))

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of images (B, C, H, W), one each, (B,)."""
        return self.noise.nll(self.y, self.operator(x), self.observed)

    def nll_gradient(self, x: Tensor) -> Tensor:
        """Gradient of `nll` with respect to each image, shaped like x."""
        return row_gradient(self.nll, x)

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x), zero where nothing was measured; shaped like y."""
        residual = self.y - self.operator(x)
        observed = self.observed
        return residual if observed is None else torch.where(observed, residual, 0)

    def misfit(self, x: Tensor) -> Tensor:
        """Misfit of each image, (B,), see `Noise.misfit`: 1 where x fits to the noise."""
        return self.noise.misfit(self.y, self.operator(x), self.observed)

    def select(self, index: Tensor) -> Self:
        """The problem of these images, in this order, repetitions allowed."""
        return self._with(self.operator.select(index), self.noise.select(index), self.y[index.to(self.y.device)])

    def to(self, device: torch.device | str) -> Self:
        """This problem on a device; operator and noise are copied, so that those of the caller stay where they are."""
        return self._with(
            shallow_copy(self.operator).to(device), shallow_copy(self.noise).to(device), self.y.to(device)
        )

    def _with(self, operator: Operator, noise: Noise, y: Tensor) -> Self:
        """A copy with other parts, which fit together."""
        twin = object.__new__(type(self))
        twin.operator, twin.noise, twin.y, twin.image_shape = operator, noise, y, self.image_shape
        return twin


def as_measurement(y: Any) -> Tensor:
    """Measurements as a tensor in the precision in which the problem is solved: float64 and complex128 as they are,
    integers, truth values and other floats as float32, other complex numbers as complex64.

    Raises ValueError for a masked array with masked entries, and for what is no array of numbers.
    """
    if not isinstance(y, Tensor):
        if np.ma.is_masked(y):
            raise ValueError("the measurement is a masked array; give its mask to the operator and a plain array as y")
        array = np.asarray(y)
        if array.dtype.kind not in "buifc":
            raise ValueError(f"the measurement must be an array of numbers, got numpy's {array.dtype}")
        wide = (array.dtype.kind == "f" and array.dtype.itemsize > 4) or array.dtype.itemsize > 8
        kind = ("complex128" if wide else "complex64") if array.dtype.kind == "c" else "float64" if wide else "float32"
        y = torch.from_numpy(np.array(array, kind, order="C"))  # also of other byte orders, and of mirrored views
    if y.dtype in (torch.float64, torch.complex128):
        return y
    return y.to(torch.complex64 if y.is_complex() else torch.float32)


def as_noise(noise: Noise | float) -> Noise:
    """Noise as it is, a number as the standard deviation of Gaussian noise. Raises TypeError for anything else."""
    if isinstance(noise, Noise):
        return noise
    if isinstance(noise, bool) or not isinstance(noise, (int, float, Tensor)):
        origin = type(noise).__module__.partition(".")[0]
        kind = f"{origin}'s {type(noise).__name__}" if origin not in ("builtins", "numpy") else repr(noise)
        raise TypeError(
            f"noise must be a Noise of invdiff.operators or the standard deviation of Gaussian noise, got {kind}"
        )
    return GaussianNoise(noise)


@torch.no_grad()
def simulate(
    images: Tensor, operator: Any, noise: Noise | float, seed: int = 0, *, index: Sequence[int] | None = None
) -> Tensor:
    """Measurements y of images (B, C, H, W), with noise, on the CPU.

    operator, noise  as of `InverseProblem`
    index            of each image, where the batch is a part of a larger set; operator and noise have parameters for
                     all of the set, or for one

    The measurement of image i depends on (seed, operator, noise, i) alone, to the last bit: each image is measured by
    itself. Raises ValueError where the operator does not take such images.
    """
    operator, noise = as_operator(operator), as_noise(noise)
    reason = operator.mismatch(tuple(images.shape[1:]))
    if reason is not None:
        raise ValueError(reason)
    index = range(len(images)) if index is None else index
    for whose, count in (("operator", operator.images), ("noise", noise.images)):
        if 1 < count <= max(index):
            raise ValueError(f"the {whose} has parameters for {count} images, there are {max(index) + 1} or more")
    rows = []
    for row, i in zip(images, index, strict=True):
        own = torch.tensor([i])
        one, likelihood = operator.select(own), noise.select(own)
        clean = one(row[None])
        rows.append(likelihood.sample(clean, [generator(seed, "measure", i)], one.measured(tuple(clean.shape[1:]))))
    return torch.cat(rows)
