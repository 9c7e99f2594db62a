"""Shared by the rules: assertions with a message, comparisons with a tolerance, numbers from a seed, small problems."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from invdiff.operators import Noise, Operator
from invdiff.problem import InverseProblem
from invdiff.streams import generator

# float32, and sums of a few thousand of its numbers.
TOLERANCE = 1e-5

Module = TypeVar("Module", bound=nn.Module)


class NotApplicable(Exception):
    """A rule does not apply here; the message is the reason."""


class Broken(AssertionError):
    """A rule is broken; the message is the reason. Other assertions are those of the code under test."""


# -- assertions --------------------------------------------------------------------------------------------------------


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Broken(message)


def raises(kind: type[Exception], call: Callable[[], Any], message: str) -> None:
    try:
        call()
    except kind:
        return
    raise Broken(message)


def close(found: Tensor, wanted: Tensor, message: str, tolerance: float = TOLERANCE) -> None:
    """Equal to a fraction of the largest entry; NaN is never equal."""
    require(found.shape == wanted.shape, f"{message}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    error, scale = float((found - wanted).abs().max()), max(float(wanted.abs().max()), 1e-30)
    require(error <= tolerance * scale, f"{message}: by {error / scale:.1e} of the largest value")


def same_samples(found: Tensor, wanted: Tensor, message: str) -> None:
    """Equal to float32 rounding in image units."""
    error = float((found - wanted).abs().max())
    require(error <= 1e-5 * max(1.0, float(wanted.abs().max())), f"{message}: by {error:.1e}")


@contextmanager
def global_randomness_untouched(name: str, mend: str) -> Iterator[None]:
    """AssertionError where the block draws from or seeds the global generators of torch, NumPy or Python."""
    saved = np.random.get_state(), random.getstate()  # noqa: NPY002, these are the global ones under test
    with torch.random.fork_rng(devices=[]):
        # States that no earlier call can have left: a callee that seeds them always leaves the same.
        torch.manual_seed(2718)
        np.random.seed(2718)  # noqa: NPY002
        random.seed(2718)
        before = _random_states()
        try:
            yield
            moved = [library for library, state in _random_states().items() if state != before[library]]
        finally:
            np.random.set_state(saved[0])  # noqa: NPY002
            random.setstate(saved[1])
    require(not moved, f"{name} draws from the global random state of {' and '.join(moved)}; {mend}")


def _random_states() -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": [str(part) if isinstance(part, str) else np.asarray(part).tolist() for part in numpy_state],
        "Python": random.getstate(),
    }


# -- numbers -----------------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal_like(seed: int, y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)


def rms(y: Tensor) -> float:
    """Root mean square."""
    return float(y.abs().square().mean().sqrt())


def norm(y: Tensor) -> float:
    return float(torch.linalg.vector_norm(y))


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product over all entries, complex ones as pairs of real numbers."""
    return float((a.conj() * b).real.sum() if a.is_complex() else (a * b).sum())


def in_double(
    module: Module, call: Callable[[Module, Tensor], Tensor], x: Tensor
) -> tuple[Module, Tensor, float, float]:
    """A copy of the module and images in float64, with a step and a tolerance for finite differences.

    float32, and a coarser step, where the module computes in nothing else.
    """
    try:
        double = copy.deepcopy(module).double()
        with torch.no_grad():
            y = call(double, x.double())
    except RuntimeError:
        return module, x, 1e-2, 2e-2
    if y.dtype not in (torch.float64, torch.complex128):
        return module, x, 1e-2, 2e-2
    return double, x.double(), 1e-6, 1e-4


def measure(operator: Operator, image_shape: tuple[int, ...], noise: Noise, *, images: int = 2) -> InverseProblem:
    """A small problem: images about mid-grey, measured with noise."""
    images = operator.images if operator.images > 1 else images
    x = (0.5 + 0.25 * normal(0, images, *image_shape)).clamp(0.02, 0.98)
    with torch.no_grad():
        clean = operator(x)
    observed = operator.measured(tuple(clean.shape[1:]))
    streams = [generator(0, "measure", i) for i in range(images)]
    return InverseProblem(operator, noise, noise.sample(clean, streams, observed), image_shape=image_shape)
